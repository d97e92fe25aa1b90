"""Folders that appear whole or not at all, and the digests that name what is in them.

Every file is written under a temporary name, flushed to disk, then renamed; every folder likewise. A reader never
sees half of either, whatever kills the writer. A folder that became whole lists the sha256 of its files in
`files.sha256`, so that `gkd verify` notices any byte that changes afterwards.
"""

import contextlib
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gkd_core.errors import GkdError


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically: temporary name, flush, rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def write_json(path: Path, content: Any) -> None:
    """Write JSON with sorted keys and a final newline, atomically; the same content gives the same bytes.

    Raises:
        ValueError: content holds NaN or infinity, which JSON cannot.
    """
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write_bytes(path, (text + "\n").encode())


LARGEST_JSON = 1 << 26  # bytes; ours have some thousand

Shape = Mapping[str, Any]


def read_json(path: Path, what: str, *, keys: Iterable[str] = (), shape: Shape | None = None) -> dict[str, Any]:
    """The JSON object in `path`.

    Args:
        what: the thing in the user's words, for the error ("the teacher folder").
        keys: what it must have.
        shape: what it must have and of which type: `str`, `int`, `float` (an integer is one too), `bool`, `list`,
            `dict`, a mapping for an object with keys of its own, or `[type]` for a list of that.
    Raises:
        GkdError: there is no such file, it is not a JSON object, or a key is missing or of another type.

    >>> read_json(Path("teacher.json"), "the teacher folder", shape={"networks": [str]})  # doctest: +SKIP
    """
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise GkdError(f"{path} has {path.stat().st_size} bytes, far more than gkd writes: run its step again")
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
        json.dumps(
            content, ensure_ascii=False
        ).encode()  # half a character (\ud800) could be neither printed nor hashed
    except (FileNotFoundError, NotADirectoryError):
        raise GkdError(f"{what} {path.parent} has no {path.name}: run the step that makes it") from None
    except OSError as error:
        raise GkdError(f"{path} cannot be read ({error.strerror}): mend that, or run its step again") from None
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, endless digits, nested without end
        raise GkdError(f"{path} is not readable JSON ({error}): delete the folder and run its step again") from None
    missing = [key for key in keys if not isinstance(content, dict) or key not in content]
    if missing or not isinstance(content, dict):
        lacks = f"lacks {missing[0]!r}" if missing else "holds no JSON object"
        raise GkdError(f"{path} {lacks}, so it is not what gkd wrote: run its step again")
    if (misfit := _misfit(content, shape or {}, "")) is not None:
        raise GkdError(f"{path} {misfit}, so it is not what gkd wrote: run its step again")
    return content


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number in JSON")


_NAMES = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}


def _misfit(content: Any, shape: Any, place: str) -> str | None:
    """What is first not of the shape that `read_json` was given; None when all is."""
    if isinstance(shape, Mapping):
        if not isinstance(content, dict):
            return f"has no object at {place!r}"
        for key, inner in shape.items():
            where = f"{place}.{key}" if place else key
            if key not in content:
                return f"lacks {where!r}"
            if (misfit := _misfit(content[key], inner, where)) is not None:
                return misfit
        return None
    if isinstance(shape, list):
        if not isinstance(content, list):
            return f"has no list at {place!r}"
        return next((m for i, item in enumerate(content) if (m := _misfit(item, shape[0], f"{place}.{i}"))), None)
    wanted = (int, float) if shape is float else shape
    if not isinstance(content, wanted) or (isinstance(content, bool) and shape is not bool):
        return f"has at {place!r} what is not {_NAMES[shape]}"
    if shape is float and not abs(content) <= sys.float_info.max:  # 1e999, or an integer that no float holds
        return f"has at {place!r} a number beyond all measure"
    return None


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a rename survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def refuse_to_replace(out: Path, inputs: Iterable[Path | None] = ()) -> None:
    """See that writing `out` loses nothing that is not a step's earlier result.

    Raises:
        GkdError: `out` is a file or a link, the current folder or one above it, or it is or holds one of the
            inputs, or anything that is not in its own `files.sha256` (but the .gitignore that DVC writes).
    """
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise GkdError(f"--out {out} is a {'link' if out.is_symlink() else 'file'}: name a folder")
    place = out.resolve()
    if Path.cwd().is_relative_to(place):
        raise GkdError(f"--out {out} is the current folder or one above it: name a folder inside it")
    for given in inputs:
        if given is not None and given.resolve().is_relative_to(place):
            raise GkdError(f"--out {out} would replace what is read from {given}: name another folder")
    if out.is_dir():
        _refuse_strangers(out)


def _refuse_strangers(out: Path) -> None:
    """Raises: GkdError: the folder holds what is not in its own list of files, or has things and no such list."""
    there = sorted({entry.name for entry in out.iterdir()} - BESIDE)
    if (out / SIDECAR).is_file():
        try:
            listed = sealed(out)
        except GkdError as error:
            raise GkdError(f"--out {out} is no folder that gkd left so ({error}): name another, or empty it") from None
        for parent, folders, files in os.walk(out):
            entries = [*files, *(name for name in folders if Path(parent, name).is_symlink())]
            names = {Path(parent, name).relative_to(out).as_posix() for name in entries}
            if strangers := sorted(names - listed.keys() - BESIDE - {SIDECAR}):
                raise GkdError(
                    f"--out {out} holds {strangers[0]}, which is not in its {SIDECAR}, so gkd did not write it: move "
                    "it away, or name another folder"
                )
    elif there:
        raise GkdError(
            f"--out {out} holds {there[0]} and has no {SIDECAR}, so it is no folder that gkd wrote: name another, or "
            "empty it"
        )
    if (out / ".gitignore").is_file() and not all(
        line.startswith(b"/") for line in (out / ".gitignore").read_bytes().split(b"\n") if line
    ):
        raise GkdError(f"--out {out} holds a .gitignore that is not DVC's: move it away, or name another folder")


@contextlib.contextmanager
def whole_folder(out: Path, inputs: Iterable[Path | None] = ()) -> Iterator[Path]:
    """A folder to fill, which becomes `out` when the block ends well and vanishes when it does not.

    An existing `out` of an earlier run stays as it was until the new one is complete. The last file written is the
    list of all others, see `seal`.

    Args:
        out: where the folder will be.
        inputs: what the block reads; `out` must not replace any of it.
    Raises:
        GkdError: `out` holds something that must not be lost, see `refuse_to_replace`.

    >>> with whole_folder(Path("student")) as folder:  # doctest: +SKIP
    ...     (folder / "model.json").write_text("{}")
    """
    refuse_to_replace(out, inputs)
    out.parent.mkdir(parents=True, exist_ok=True)
    _sweep(out)
    building = out.with_name(f".{out.name}.{os.getpid()}.building")
    replaced = out.with_name(f".{out.name}.{os.getpid()}.replaced")
    building.mkdir()
    try:
        yield building
        seal(building)
        for file in building.rglob("*"):
            if file.is_file():
                with file.open("rb") as stream:
                    os.fsync(stream.fileno())
        if out.exists():
            out.rename(replaced)
        building.rename(out)
        sync_folder(out.parent)
    finally:
        shutil.rmtree(building, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def _sweep(out: Path) -> None:
    """Remove what killed processes left beside `out`; an `out` they were about to replace is put back."""
    for leftover in out.parent.glob(f".{out.name}.*"):
        _, _, rest = leftover.name.partition(f".{out.name}.")
        pid, _, kind = rest.partition(".")
        if kind not in ("building", "replaced") or not pid.isdigit() or (int(pid) != os.getpid() and _alive(int(pid))):
            continue
        if kind == "replaced" and not out.exists():
            leftover.rename(out)
        else:
            shutil.rmtree(leftover)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def json_digest(content: Any) -> str:
    """sha256 of JSON content, in hex; independent of key order and spacing."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


SIDECAR = "files.sha256"
BESIDE = frozenset({".gitignore"})  # DVC writes it into a folder after the step
SIDECAR_HEAD = "# sha256 of the lines below: "


def seal(folder: Path) -> None:
    """Write `files.sha256`: the sha256 of every file in the folder, as `sha256sum --check` reads it.

    Its own first line holds the sha256 of the rest, so a changed byte in it shows as well. It is in no digest, for it
    also speaks of files that vary by run.
    """
    files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    for name in (SIDECAR, *BESIDE):
        files.pop(name, None)
    lines = "".join(f"{file_digest(files[name])}  {name}\n" for name in sorted(files)).encode()
    head = f"{SIDECAR_HEAD}{hashlib.sha256(lines).hexdigest()}\n".encode()
    write_bytes(folder / SIDECAR, head + lines)


def sealed(folder: Path) -> dict[str, str]:
    """What `seal` wrote: sha256 by file name.

    Raises:
        GkdError: there is no such list, or it is not as it was written.
    """
    path = folder / SIDECAR
    try:
        head, _, lines = path.read_bytes().partition(b"\n")
    except (FileNotFoundError, NotADirectoryError):
        raise GkdError(
            f"{folder} has no {SIDECAR}, the list of its files: run the step that makes it (again, if an earlier gkd "
            "made it)"
        ) from None
    except OSError as error:
        raise GkdError(f"{path} cannot be read ({error.strerror})") from None
    if head != f"{SIDECAR_HEAD}{hashlib.sha256(lines).hexdigest()}".encode():
        raise GkdError(f"{path} was changed: its first line is not the sha256 of the others")
    try:
        entries = [line.split("  ", 1) for line in lines.decode().split("\n")[:-1]]
        return {name: digest for digest, name in entries}
    except ValueError:  # not UTF-8, or a line of another form
        raise GkdError(f"{path} is no list of hashes and names") from None


# What varies from one run to the next by nature: times, hosts, pictures with dates in them, the list of their hashes.
VARIES = frozenset({"run.json", "timings.json", "report.html", SIDECAR})


def folder_digest(folder: Path) -> str:
    """sha256 over the names and contents of a folder's files, leaving out what varies by run (`VARIES`).

    Raises:
        GkdError: the folder does not exist.
    """
    if not folder.is_dir():
        raise GkdError(f"{folder} does not exist: run the step that makes it")
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in VARIES)
    return json_digest({p.relative_to(folder).as_posix(): file_digest(p) for p in files})
