"""The chain from data to deployed model, walked link by link over a run's folders. Imports no torch.

Two things hold a run together. Every folder lists the sha256 of its files (`files.sha256`), so that one changed byte
anywhere shows and is named. And every artifact names by digest what it was made from: data → teacher → student →
ONNX file → manifest → report. Either may be consistent where the other is broken, so both are looked at.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from gkd_core.data.prepared import PreparedData
from gkd_core.errors import GkdError
from gkd_core.export.manifest import FILES, read_manifest
from gkd_core.export.session import session
from gkd_core.files import BESIDE, SIDECAR, file_digest, folder_digest, json_digest, read_json, sealed
from gkd_core.records import read_bundle, read_teacher, read_training, read_version

FOLDERS = ("data", "teacher", "baseline", "kd", "student", "deploy", "report", "registration")
BUNDLE = "bundle.json"
LINEAGE = ("data_sha256", "teacher_digest", "student_digest", "config_digest")


class Broken(GkdError):
    """A link of the chain does not hold; the message names the link or the file."""

    exit_code = 1


@dataclass(frozen=True)
class Link:
    """A link that holds: what was compared, and what was found."""

    name: str
    found: str


@dataclass(frozen=True)
class Gap:
    """A link that could not be looked at, and why; `wanted` is false where nobody asked for it."""

    name: str
    reason: str
    wanted: bool = True


@dataclass
class Chain:
    """What a walk came to: the links that hold, those not looked at, and the first that does not hold, if any."""

    links: list[Link] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    broken: Broken | None = None

    def walk(self, steps: Iterator[Link | Gap]) -> "Chain":
        """Take steps until one is broken; whatever cannot be read is a link that does not hold."""
        if self.broken is not None:
            return self
        try:
            for step in steps:
                if isinstance(step, Link):
                    self.links.append(step)
                else:
                    self.gaps.append(step)
        except GkdError as error:
            self.broken = error if isinstance(error, Broken) else Broken(str(error))
        return self

    def refuse_gaps(self) -> "Chain":
        """Count what could not be looked at, though it was wanted, as broken."""
        missing = [gap for gap in self.gaps if gap.wanted]
        if self.broken is None and missing:
            more = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
            self.broken = Broken(f"{missing[0].name} was not walked ({missing[0].reason}){more}: --strict wants all")
        return self

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "verified": self.broken is None,
            "broken": None if self.broken is None else str(self.broken),
            "links": [{"link": link.name, "found": link.found} for link in self.links],
            "not_walked": [{"link": gap.name, "reason": gap.reason} for gap in self.gaps],
        }


def folders_of(root: Path) -> dict[str, Path]:
    """The steps' folders in a run's folder by step, or a deploy folder or bundle itself as {"deploy": root}.

    Raises:
        GkdError: there is nothing of the kind.
    """
    if not root.is_dir():
        raise GkdError(f"{root} is not a folder: name a run's folder, a deploy folder, a bundle, or models:/NAME@ALIAS")
    if (root / "manifest.json").is_file():
        return {"deploy": root}
    found = {name: root / name for name in FOLDERS if (root / name).is_dir()}
    if not found:
        raise GkdError(
            f"{root} holds neither a run ({', '.join(f'{name}/' for name in FOLDERS)}) nor a deploy folder "
            "(manifest.json): name another folder"
        )
    return found


def walk_folders(folders: dict[str, Path], *, lists_required: bool = True) -> Iterator[Link | Gap]:
    """Every link within and between these folders, in the order of the pipeline.

    Args:
        folders: by step; a step that is missing leaves gaps.
        lists_required: a folder without `files.sha256` is a broken link, else a gap (a registry may hold artifacts that
            an earlier gkd wrote). A bundle always needs it.
    Raises:
        GkdError: a link does not hold; the caller names it.
    """
    steps: dict[str, Callable[[dict[str, Path]], Iterator[Link | Gap]]] = {
        "data": _data,
        "teacher": _teacher,
        "baseline": lambda known: _network("baseline", known),
        "kd": lambda known: _network("kd", known),
        "student": lambda known: _network("student", known),
        "deploy": _deploy,
        "report": _report,
        "registration": _registration,
    }
    for name, step in steps.items():
        if name not in folders:
            yield Gap(name, "it is not there")
            continue
        listed, bundle = (folders[name] / SIDECAR).exists(), (folders[name] / BUNDLE).exists()
        if bundle and not listed:  # what it does not describe is worth more to know than that the list is gone
            check_bundle(folders[name])
        if listed or bundle or lists_required:
            yield from check_files(folders[name], name)
        else:
            yield Gap(f"{name}: files", f"it came without {SIDECAR}")
        if bundle:
            yield Link(f"{BUNDLE} → files", f"{check_bundle(folders[name])} as it describes them")
        yield from step(folders)


def check_files(folder: Path, name: str) -> Iterator[Link]:
    """See that a folder holds the files its list names, byte for byte, and no others.

    Raises:
        Broken: the list was changed, or a file is missing, changed or none of the list's.
    """
    written = sealed(folder)
    present = dict(_entries(folder))
    for file, path in present.items():
        if file not in written:
            raise Broken(f"{path} is not among the files that {folder / SIDECAR} lists: it was added later")
    for file, digest in written.items():
        if file not in present:
            raise Broken(f"{folder / file} is missing: {folder / SIDECAR} lists it")
        if file_digest(present[file]) != digest:
            raise Broken(f"{present[file]} was changed: its sha256 is not the one in {folder / SIDECAR}")
    for file in BESIDE:
        if (folder / file).is_file():
            _is_of_dvc(folder / file, written)
    yield Link(f"{name}: files", f"{len(written)} as they were written")


def check_some(folder: Path, *files: str) -> None:
    """See that these files are in a folder and in its list, byte for byte; the others are not looked at.

    Raises:
        GkdError: the folder has no list, or one of them is missing, changed or not in it.
    """
    written = sealed(folder)
    for file in files:
        if file not in written:
            raise Broken(f"{folder / file} is not among the files that {folder / SIDECAR} lists")
        if not (folder / file).is_file():
            raise Broken(f"{folder / file} is missing: {folder / SIDECAR} lists it")
        if file_digest(folder / file) != written[file]:
            raise Broken(f"{folder / file} was changed: its sha256 is not the one in {folder / SIDECAR}")


def _is_of_dvc(path: Path, written: Iterable[str]) -> None:
    """See that a .gitignore has nothing but the lines DVC adds: `/OUTPUT` for a file or folder beside it."""
    outputs = {SIDECAR, *written, *(str(above) for file in written for above in PurePosixPath(file).parents)} - {"."}
    allowed = {b"", *(f"/{output}".encode() for output in outputs)}
    if not allowed.issuperset(path.read_bytes().split(b"\n")):
        raise Broken(f"{path} holds more than the lines by which DVC ignores outputs beside it: it was changed")


def check_bundle(folder: Path) -> int:
    """See that a bundle holds the files that bundle.json describes, byte for byte, and no others.

    Returns:
        Their number.
    Raises:
        GkdError: bundle.json cannot be read, or a file is missing, changed or not described.
    """
    described = read_bundle(folder)["files"]
    present = {file: path for file, path in _entries(folder) if file != BUNDLE}
    for file in sorted({*described, *present}):
        if file not in present:
            raise Broken(f"{folder / file} is missing: {folder / BUNDLE} describes it")
        if file not in described:
            raise Broken(f"{present[file]} is none of the files that {folder / BUNDLE} describes: it was added later")
        if file_digest(present[file]) != described[file]:
            raise Broken(f"{present[file]} was changed: its sha256 is not the one in {folder / BUNDLE}")
    return len(described)


def _entries(folder: Path) -> Iterator[tuple[str, Path]]:
    """Whatever is in the folder, by its name in the list, which is itself left out."""
    for parent, folders, files in os.walk(folder):
        # A link to a folder is no folder of ours, and nothing in it is in the list.
        links = [name for name in folders if Path(parent, name).is_symlink()]
        for name in sorted([*files, *links]):
            path = Path(parent, name)
            file = path.relative_to(folder).as_posix()
            if not path.is_file() or (file in BESIDE and path.is_symlink()):
                raise Broken(f"{path} is no plain file: it was added later")
            if file != SIDECAR and file not in BESIDE:
                yield file, path


def _data(folders: dict[str, Path]) -> Iterator[Link]:
    info = PreparedData.open(folders["data"]).info
    yield Link("data", f"{_short(info.sha256)}: images and labels are those of dataset.json")


def _teacher(folders: dict[str, Path]) -> Iterator[Link | Gap]:
    folder = folders["teacher"]
    content = read_teacher(folder)
    read_json(folder / "teacher.json", "the teacher folder", shape={"data_sha256": str, "digest": str, "trained": list})
    everyone = sorted({*content["networks"], *content["trained"]})
    if content["digest"] != json_digest({name: folder_digest(folder / name) for name in everyone}):
        raise Broken(f"{folder / 'teacher.json'} speaks of other networks than those beside it")
    yield from _of_this_data(f"{folder / 'teacher.json'}: the teacher", content["data_sha256"], folders, "teacher")
    before = ""
    for name in everyone if not content["trained"] else content["trained"]:
        training = read_training(folder / name, "teacher")
        digest = training.get("teacher_digest", "")
        if digest not in ("", before):
            raise Broken(f"{folder / name}: its network was taught by another one than the assistant before it")
        before = folder_digest(folder / name)
        if training.get("data_sha256") != content["data_sha256"]:
            raise Broken(f"{folder / name}: its network was trained on other data than teacher.json says")
    yield Link("teacher", f"{_short(folder_digest(folder))}: {', '.join(everyone)}")


def _network(role: str, folders: dict[str, Path]) -> Iterator[Link | Gap]:
    folder = folders[role]
    training = read_training(folder, role)
    if not training["trained"]:
        yield Gap(role, str(training.get("reason", "it was not trained")), wanted=False)
        return
    yield from _of_this_data(f"{folder}: the {role}", training["data_sha256"], folders, role)
    if training["teacher_digest"] == "":
        yield Link(f"teacher → {role}", "it learned from no teacher")
    elif "teacher" not in folders:
        yield Gap(f"teacher → {role}", "there is no teacher folder")
    elif training["teacher_digest"] != (digest := folder_digest(folders["teacher"])):
        raise Broken(f"{folder}: the {role} was taught by another teacher than the one in {folders['teacher']}")
    else:
        yield Link(f"teacher → {role}", f"{_short(digest)} taught it ({training['method']})")


def _of_this_data(what: str, digest: str, folders: dict[str, Path], role: str) -> Iterator[Link | Gap]:
    if "data" not in folders:
        yield Gap(f"data → {role}", "there is no data folder")
        return
    info = PreparedData.open(folders["data"], check=False).info
    if digest != info.sha256:
        raise Broken(f"{what} was trained on other data than {folders['data']} holds")
    yield Link(f"data → {role}", f"trained on {_short(digest)}")


def _deploy(folders: dict[str, Path]) -> Iterator[Link | Gap]:
    folder = folders["deploy"]
    manifest = read_manifest(folder)  # compares the models' bytes, too
    if "student" not in folders:
        yield Gap("student → manifest", "there is no student folder")
    else:
        student = folders["student"]
        if manifest["student_digest"] != (digest := folder_digest(student)):
            raise Broken(f"{folder}: its model was exported from another student than the one in {student}")
        training = read_training(student, "student")
        for key in ("data_sha256", "teacher_digest", "method", "network"):
            if manifest[key] != training.get(key):
                raise Broken(f"{folder / 'manifest.json'} and {student / 'training.json'} differ in {key}")
        yield Link("student → manifest", f"exported from {_short(digest)}")
    if "data" in folders:
        info = PreparedData.open(folders["data"], check=False).info
        if manifest["data_sha256"] != info.sha256 or tuple(manifest["classes"]) != info.classes:
            raise Broken(f"{folder}: its model was made from other data than {folders['data']} holds")
        yield Link("data → manifest", f"{_short(info.sha256)}, {len(info.classes)} classes")
    for precision, file in _models(manifest).items():
        _same_inside(folder / file, manifest, precision)
        yield Link(f"manifest → {file}", "its bytes, and the lineage and classes inside it, are the manifest's")


def _models(manifest: dict[str, Any]) -> dict[str, str]:
    """File by precision, of those that were kept."""
    smaller = {p: manifest.get(p) for p in FILES if p != "fp32"}
    return {"fp32": manifest["model"]["file"]} | {
        p: entry["file"] for p, entry in smaller.items() if isinstance(entry, dict) and entry.get("kept")
    }


def _same_inside(model: Path, manifest: dict[str, Any], precision: str) -> None:
    inside = session(model).get_modelmeta().custom_metadata_map
    wanted = {key: manifest[key] for key in (*LINEAGE, "method", "network")}
    wanted |= {"input": manifest["model"]["input"], "classes": json.dumps(manifest["classes"], ensure_ascii=False)}
    if precision != "fp32":
        wanted |= {"precision": precision, "fp32_sha256": manifest["model"]["sha256"]}
    for key, value in wanted.items():
        if inside.get(key) != value:
            raise Broken(f"{model}: the {key} inside it is not the one in manifest.json")


def _report(folders: dict[str, Path]) -> Iterator[Link | Gap]:
    folder = folders["report"]
    shape = {"data": {"sha256": str}, "digests": {"manifest": str, "student": str, "teacher": str}}
    metrics = read_json(folder / "metrics.json", "the report folder", shape=shape)
    measured: dict[str, tuple[str, Callable[[Path], str]]] = {
        "data": (metrics["data"]["sha256"], lambda data: PreparedData.open(data, check=False).info.sha256),
        "teacher": (metrics["digests"]["teacher"], folder_digest),
        "student": (metrics["digests"]["student"], folder_digest),
        "deploy": (metrics["digests"]["manifest"], lambda deploy: file_digest(deploy / "manifest.json")),
    }
    for name, (digest, now) in measured.items():
        if name not in folders:
            yield Gap(f"{name} → report", f"there is no {name} folder")
        elif digest != now(folders[name]):
            raise Broken(f"{folder / 'metrics.json'} measures something else than what is in {folders[name]}")
        else:
            yield Link(f"{name} → report", f"measured {_short(digest)}")


def _registration(folders: dict[str, Path]) -> Iterator[Link | Gap]:
    folder = folders["registration"]
    version = read_version(folder)
    if "deploy" not in folders:
        yield Gap("manifest → registration", "there is no deploy folder")
    elif version["manifest"] != (digest := file_digest(folders["deploy"] / "manifest.json")):
        raise Broken(f"{folder / 'version.json'} speaks of another manifest than the one in {folders['deploy']}")
    else:
        yield Link("manifest → registration", f"{_short(digest)} is {version['name']} version {version['version']}")


def _short(digest: str) -> str:
    return digest[:12]
