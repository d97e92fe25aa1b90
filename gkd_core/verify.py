"""The chain from data to registration over the folders of a run: each notes by digest what it was made from.

A link compares what was noted of a folder with what it holds now; what nobody noted is not verified, and is told so.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from gkd_core.data.prepared import PreparedData
from gkd_core.decision import METADATA
from gkd_core.errors import GkdError
from gkd_core.export.manifest import (
    FILES,
    OPTIONAL,
    PIXELS_FORM,
    decision_of,
    kept_pixels,
    kept_precisions,
    model_entry,
    read_manifest,
)
from gkd_core.export.session import session
from gkd_core.files import expect_kind, file_digest, folder_digest, record_of
from gkd_core.records import ROLES, read_bundle, read_gate, read_metrics, read_teacher, read_training, read_version

LINEAGE = ("data_sha256", "teacher_digest", "student_digest", "config_digest")


class Broken(GkdError):
    """A link of the chain does not hold; the message names the folder or the file."""

    exit_code = 1


@dataclass(frozen=True)
class Link:
    """What was compared, and what was found; or, with `holds` false, why it was not. `wanted` is for --strict."""

    name: str
    found: str
    holds: bool = True
    wanted: bool = True


@dataclass
class Chain:
    """What a walk came to: the links in order, and the sentence on the first that does not hold, if any."""

    links: list[Link] = field(default_factory=list)
    broken: Broken | None = None

    def walk(self, links: Iterator[Link]) -> None:
        """Take links until one is broken; whatever cannot be read is a link that does not hold."""
        try:
            for link in links if self.broken is None else ():
                self.links.append(link)
        except GkdError as error:
            self.broken = error if isinstance(error, Broken) else Broken(str(error))


def walk_folders(folders: dict[str, Path], order: Iterable[str]) -> Iterator[Link]:
    """Every link within and between folders by name, in this order. Raises GkdError where one does not hold."""
    digests: dict[str, str] = {}
    noted: set[str] = set()
    for name in order:
        if name not in folders:
            yield Link(name, "it is not there", holds=False)
            continue
        record = record_of(folders[name])
        sources, digests[name] = _notes(name, folders[name], record)
        noted.update(sources)
        for source, digest in sources.items():
            if digest is None or source not in digests:
                reason = f"there is no {source} folder" if digest else "an earlier gkd noted no digest"
                yield Link(f"{source} → {name}", reason, holds=False)
            elif digest != digests[source]:
                raise Broken(f"{folders[name]} was made from another {source} than {folders[source]} holds")
            else:
                yield Link(f"{source} → {name}", digest[:12])
        if record in ("bundle.json", "manifest.json"):
            yield from _models(folders[name])
        if record == "training.json" and not sources:
            yield Link(name, "it was not trained", holds=False, wanted=False)
            noted.add(name)
        if record in ("dataset.json", "version.json"):  # one holds its own digest, one is compared with the registry
            noted.add(name)
    for name in sorted(digests.keys() - noted):
        yield Link(f"{name}: bytes", "not verified: no later step that is here noted their digest", holds=False)


def _notes(name: str, folder: Path, record: str | None) -> tuple[dict[str, str | None], str]:
    """The digests a folder notes of what it was made from, by name, and what later steps note of it, as it is now."""
    expect_kind(folder, name)
    noted: dict[str, str | None]
    match record:
        case "dataset.json":
            noted, now = {}, PreparedData.open(folder).info.sha256  # compares every byte of the arrays
        case "teacher.json":
            noted, now = {"data": read_teacher(folder)["data_sha256"]}, folder_digest(folder)
        case "training.json":
            training, now = read_training(folder, name), folder_digest(folder)
            noted = {"data": training.get("data_sha256", ""), "teacher": training.get("teacher_digest", "")}
        case "bundle.json" | "manifest.json":
            facts, now = read_manifest(folder), file_digest(folder / "manifest.json")  # compares the models' bytes
            noted = {"data": facts["data_sha256"], **{k: facts[f"{k}_digest"] for k in ("teacher", "student")}}
        case "metrics.json":
            metrics, now = read_metrics(folder), file_digest(folder / "metrics.json")
            noted = {role: metrics["digests"].get(role) for role in ROLES if role in metrics}
            noted |= {"data": metrics["data"]["sha256"], "deploy": metrics["digests"]["manifest"]}
        case "version.json":
            noted = {"deploy": read_version(folder)["manifest"], "report": read_gate(folder).get("metrics_sha256")}
            now = ""
        case _:
            raise Broken(f"{folder} has no file that says what it holds: run the step that makes it")
    return {step: digest for step, digest in noted.items() if digest != ""}, now


def _models(folder: Path) -> Iterator[Link]:
    """The lineage inside the models, and the files of a bundle."""
    manifest = read_manifest(folder)
    wanted = {key: manifest[key] for key in (*LINEAGE, *OPTIONAL, "method", "network") if key in manifest}
    wanted |= {"input": manifest["model"]["input"], "classes": json.dumps(manifest["classes"], ensure_ascii=False)}
    for precision in ("fp32", *kept_precisions(manifest)):
        smaller: dict[str, str] = {}
        if precision != "fp32":
            smaller = {"precision": precision, "fp32_sha256": manifest["model"]["sha256"]}
        if decision := decision_of(manifest, precision):
            smaller[METADATA] = decision.as_json()
        expected = {FILES[precision]: wanted | smaller}
        if any_size := kept_pixels(manifest).get(precision):
            wraps = {"input": PIXELS_FORM, "wraps_sha256": model_entry(manifest, precision)["sha256"]}
            expected[any_size["file"]] = wanted | smaller | wraps
        for file, facts in expected.items():
            inside = session(folder / file).get_modelmeta().custom_metadata_map
            if wrong := next((key for key, value in facts.items() if inside.get(key) != value), None):
                raise Broken(f"{folder / file}: the {wrong} inside it is not the one in manifest.json")
            yield Link(f"deploy → {file}", "its bytes, the lineage and the classes inside it")
    for file, digest in (read_bundle(folder)["files"] if (folder / "bundle.json").is_file() else {}).items():
        if not (folder / file).is_file() or file_digest(folder / file) != digest:
            raise Broken(f"{folder / file} is missing or was changed: bundle.json holds its sha256")
        yield Link(f"bundle.json → {file}", digest[:12])
