"""Folders that appear whole or not at all, and the digests that name what is in them.

Every file is written under a temporary name, flushed to disk, then renamed; every folder likewise. A reader never
sees half of either, whatever kills the writer. A folder says what it is (`kind_of`), so that nobody reads another for
it, and nobody writes into it or over it by mistake.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import ConfigDict, Field, ValidationError, create_model
from pydantic_core import from_json

from gkd_core.errors import GkdError


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically: temporary name, flush, rename. Where that fails nothing is left behind.

    Raises:
        OSError: it fails; the file it names is `path`.
    """
    with whole_file(path) as stream:
        stream.write(content)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A stream to write to, which becomes `path` when the block ends well and vanishes when it does not.

    Raises:
        OSError: as of `write_bytes`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            error.filename, error.filename2 = str(path), None
        raise
    sync_folder(path.parent)


def write_json(path: Path, content: Any) -> None:
    """Write JSON with sorted keys and a final newline, atomically; the same content gives the same bytes.

    Raises:
        ValueError: content holds NaN or infinity, which JSON cannot.
    """
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write_bytes(path, (text + "\n").encode())


LARGEST_JSON = 1 << 26  # bytes; ours have some thousand


Shape = Mapping[Any, Any]
STRICT = ConfigDict(strict=True, allow_inf_nan=False)


def read_json(path: Path, what: str, *, keys: Iterable[str] = (), shape: Shape | None = None) -> dict[str, Any]:
    """The JSON object in `path`.

    Args:
        what: the thing in the user's words, for the error ("the teacher folder").
        keys: what it must have.
        shape: what it must have and of which type: one that pydantic knows, a mapping for an object with keys of its
            own, `{str: type}` for one with any keys, or `[type]` for a list. NaN and infinity are no `float`.
    Raises:
        GkdError: there is no such file, it is not a JSON object, or a key is missing or of another type.

    >>> read_json(Path("teacher.json"), "the teacher folder", shape={"networks": [str]})  # doctest: +SKIP
    """
    try:
        if (size := path.stat().st_size) > LARGEST_JSON:
            raise GkdError(f"{path} has {size} bytes, far more than gkd writes: run its step again")
        content = from_json(path.read_bytes(), allow_inf_nan=False)
    except (FileNotFoundError, NotADirectoryError):
        kind = next((word for word in what.split() if word in _KINDS and word != "network"), None)
        maker = "the step that makes it" if kind is None else f"`{command_of(kind)}`, which writes it"
        raise GkdError(f"{what} {path.parent} has no {path.name}: run {maker}") from None
    except OSError as error:
        raise GkdError(f"{path} cannot be read ({error.strerror}): fix that, or run its step again") from None
    except ValueError as error:
        raise GkdError(f"{path} is not readable JSON ({error}): delete the folder and run its step again") from None
    if not isinstance(content, dict):
        raise GkdError(f"{path} holds no JSON object, so it is not what gkd wrote: run its step again")
    expect_shape(path, content, dict.fromkeys(keys, Any) | dict(shape or {}))
    return content


def expect_shape(path: Path, content: dict[str, Any], shape: Shape) -> None:
    """See that what was read from `path` is of a shape as `read_json` takes it.

    Raises:
        GkdError: a key is missing or of another type.
    """
    try:
        _type(shape).model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place, reason = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
        reason = reason[0].lower() + reason[1:]
        found = f"lacks {place!r}" if first["type"] == "missing" else f"has a wrong {place!r} ({reason})"
        raise GkdError(f"{path} {found}, so it is not what gkd wrote: run its step again") from None


def _type(shape: Any) -> Any:
    """What pydantic calls a shape."""
    if isinstance(shape, list):
        return list[_type(shape[0])]  # type: ignore[misc]
    if not isinstance(shape, Mapping):
        return shape
    if str in shape:
        return dict[str, _type(shape[str])]  # type: ignore[misc]
    fields: Any = {f"field{n}": (_type(inner), Field(alias=key)) for n, (key, inner) in enumerate(shape.items())}
    return create_model("Shape", __config__=STRICT, **fields)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a rename survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# A finished folder is known by one file with these keys; of a training the role in it says the kind.
_RECORDS = {
    "bundle.json": ("bundle", ("gkd_version", "files")),  # before manifest.json, which a bundle has too
    "dataset.json": ("data", ("sha256", "preparation")),
    "teacher.json": ("teacher", ("networks", "classes")),
    "training.json": ("", ("role", "trained")),
    "manifest.json": ("deploy", ("gkd_version", "student_digest")),
    "metrics.json": ("report", ("digests", "differences")),
    "version.json": ("registration", ("manifest", "run_id")),
    "comparison.json": ("comparison", ("reference", "pairs")),
    "frontier.json": ("frontier", ("candidates", "pareto")),
    "search.json": ("search", ("studies", "best")),
    "health.json": ("health", ("findings", "images")),  # after dataset.json, beside which it lies too
}
# By kind: what it holds, and what writes it.
_KINDS = {
    "data": ("prepared images", "gkd prepare"),
    "teacher": ("a teacher", "gkd teacher"),
    "network": ("one network of a teacher", "gkd teacher"),
    "baseline": ("the student trained alone", "gkd distill --reference baseline"),
    "kd": ("the student taught by plain KD", "gkd distill --reference kd"),
    "student": ("a distilled student", "gkd distill"),
    "deploy": ("an exported model", "gkd export"),
    "bundle": ("a bundle", "gkd bundle"),
    "report": ("a report", "gkd evaluate"),
    "registration": ("a registration", "gkd register"),
    "comparison": ("a comparison of methods", "gkd compare"),
    "frontier": ("a frontier of students", "gkd frontier"),
    "search": ("what a search found", "gkd search"),
    "health": ("what `gkd check` found", "gkd check"),
}


def record_of(folder: Path) -> str | None:
    """The file of a folder that says what it holds, by its name; None where there is none."""
    return next((file for file in _RECORDS if (folder / file).is_file()), None)


def kind_of(folder: Path) -> str | None:
    """What a finished folder of ours says it is: data, teacher, baseline, …; None for any other folder."""
    for file, (kind, keys) in _RECORDS.items():
        if not (folder / file).is_file():
            continue
        try:
            content = read_json(folder / file, "the folder", keys=keys)
        except GkdError:
            continue
        role = content.get("role")
        return kind or ("network" if role in ("teacher", "assistant") else role if role in _KINDS else None)
    return None


def expect_kind(folder: Path, wanted: str) -> None:
    """See that a folder is not of another kind than what is read from it. What is in it, its reader checks.

    Raises:
        GkdError: it says that it is another.
    """
    found = kind_of(folder)
    if found in (None, wanted) or (found, wanted) == ("bundle", "deploy"):  # a bundle has all that is read of deploy/
        return
    assert found is not None
    what, command = _KINDS[wanted]
    raise GkdError(f"{folder} holds {_KINDS[found][0]}, not {what}: give --{wanted} the folder that `{command}` wrote")


def command_of(kind: str) -> str:
    """The command that writes such a folder."""
    return _KINDS[kind][1]


def refuse_to_replace(
    out: Path,
    inputs: Iterable[Path | None] = (),
    work: Path | None = None,
    *,
    kind: str | None = None,
    option: str = "--out",
) -> None:
    """See that writing `out` loses nothing but a step's earlier result, and leaves other results as they are.

    Args:
        kind: what `out` will be (`kind_of`), so that no finished folder of another kind is replaced; None is any.
        option: what the caller calls `out`, for the error.
    Raises:
        GkdError: `out` is a file or a link, the current folder or one above it; it is, holds or lies in one of the
            inputs; it holds `work`; it lies in a finished folder of ours; it is one of another kind; or it holds
            something and is none itself.
    """
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise GkdError(f"{option} {out} is a {'link' if out.is_symlink() else 'file'}: name a folder")
    place = out.resolve()
    if Path.cwd().is_relative_to(place):
        raise GkdError(f"{option} {out} is the current folder or one above it: name a folder inside it")
    for given in (*inputs, work):
        source = None if given is None else given.resolve()
        if source is None:
            continue
        if source.is_relative_to(place):
            raise GkdError(f"{option} {out} would replace what is read from {given}: name another folder")
        if place.is_relative_to(source) and given != work:
            raise GkdError(f"{option} {out} lies inside {given}, which is read: name a folder outside it")
    for above in place.parents:
        if (around := kind_of(above)) is not None:
            raise GkdError(
                f"{option} {out} lies inside {above}, which holds {_KINDS[around][0]} and would be another then: name "
                "a folder outside it"
            )
    present = kind_of(out)
    if present is not None and kind is not None and present != kind:
        raise GkdError(
            f"{option} {out} holds {_KINDS[present][0]}, which {_KINDS[kind][0]} would replace: name another folder, "
            "or delete that one first"
        )
    if out.is_dir() and present is None:
        there = sorted(entry.name for entry in out.iterdir() if entry.name != ".gitignore")  # which DVC leaves behind
        if there:
            raise GkdError(
                f"{option} {out} holds {there[0]} and is no finished folder that gkd wrote: name another, or empty it"
            )


@contextlib.contextmanager
def whole_folder(
    out: Path,
    inputs: Iterable[Path | None] = (),
    work: Path | None = None,
    *,
    kind: str | None = None,
    option: str = "--out",
) -> Iterator[Path]:
    """A folder to fill, which becomes `out` when the block ends well and vanishes when it does not.

    An existing `out` of an earlier run stays as it was until the new one is complete.

    Args:
        out: where the folder will be.
        inputs: what the block reads; `out` must neither replace any of it nor lie in it.
        work: where checkpoints are; `out` must not replace it.
        kind: what it will be (`kind_of`): a finished folder of another kind is not replaced.
        option: what the caller calls `out`, for the error.
    Raises:
        GkdError: see `refuse_to_replace`; or no folder can be made there.

    >>> with whole_folder(Path("student")) as folder:  # doctest: +SKIP
    ...     (folder / "model.json").write_text("{}")
    """
    refuse_to_replace(out, inputs, work, kind=kind, option=option)
    building = out.with_name(f".{out.name}.{os.getpid()}.building")
    replaced = out.with_name(f".{out.name}.{os.getpid()}.replaced")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _sweep(out)
        building.mkdir()
    except OSError as error:
        raise GkdError(f"{option} {out} cannot be made ({error.strerror}): name a folder elsewhere") from None
    try:
        yield building
        for file in building.rglob("*"):
            if file.is_file():
                with file.open("rb") as stream:
                    os.fsync(stream.fileno())
        if out.exists():
            out.rename(replaced)
        building.rename(out)
        sync_folder(out.parent)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):  # a write tells no name, a copy that of what it reads
            raise OSError(error.errno, error.strerror, str(out)) from error
        raise
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


# What varies from one run to the next by nature: times, hosts, pictures with dates in them; and what is said about a
# data set, which makes it no other. An earlier gkd listed the hashes of them all in files.sha256.
VARIES = frozenset({"run.json", "timings.json", "report.html", "health.json", "health.html", "files.sha256"})


def folder_digest(folder: Path) -> str:
    """sha256 over the names and contents of a folder's files, leaving out what varies by run (`VARIES`).

    Raises:
        GkdError: the folder does not exist.
    """
    if not folder.is_dir():
        raise GkdError(f"{folder} does not exist: run the step that makes it")
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in VARIES)
    return json_digest({p.relative_to(folder).as_posix(): file_digest(p) for p in files})
