"""The manifest beside an exported model: what it is, and what it was made from. Imports no torch.

The lineage it holds: `data_sha256` (the prepared images) → `teacher_digest` → `student_digest` → `model.sha256`, with
`config_digest` (how the student was trained and exported), `code_sha256` (by which sources) and, where the student
started from learnt weights, `weights_digest` (their file), where plugins took part, `plugins` (which, by the digests of
their sources). `int8` and `fp16` say
whether there is a smaller file, its digest and what it showed, or why there is none; `reference` says what the model
answers on the validation images, which a server's answers are compared with, and `decision`, where there is one, when
it gives an image no class. The same inputs give the same bytes; what varies by run is in run.json beside it.
"""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gkd_core import __version__
from gkd_core.decision import Decision
from gkd_core.errors import GkdError, unknown
from gkd_core.export.reference import REFERENCE
from gkd_core.files import (
    Shape,
    expect_kind,
    expect_shape,
    file_digest,
    folder_digest,
    json_digest,
    read_json,
    write_json,
)
from gkd_core.records import PlainName

FORMAT = 1
PACKAGES = ("gkd_core", "components", "pipelines")
SOURCES = (".py", ".j2")
MODEL_FILE = "model.onnx"
FILES = {"fp32": MODEL_FILE, "int8": "model_int8.onnx", "fp16": "model_fp16.onnx"}  # by precision
SMALLER = tuple(precision for precision in FILES if precision != "fp32")
# Of the files that take pictures of any size (gkd_core/export/pixels.py): uint8 [N, height, width, 3].
PIXELS_FORM = "pixels_nhwc"
PIXELS_INPUT = "pixels"
PIXELS_SUFFIX = "-pixels"  # after a model's name on a server
CHANNELS = 3

OPTIONAL = ("weights_digest", "plugins")
"""What the lineage of some students has, and of others not."""

# What readers count on.
ENTRY: Shape = {"file": PlainName, "sha256": str, "size_bytes": int}
SHAPE: Shape = {
    "model": {**ENTRY, "opset": int, "input": str, "input_name": str, "input_shape": [int], "output": str},
    "classes": [str],
    **dict.fromkeys(("data_sha256", "teacher_digest", "student_digest", "config_digest", "code_sha256"), str),
    "method": str,
    "network": str,
    "parity": {"max_abs": float},
}


def code_sha256() -> str:
    """sha256 over the installed packages' sources, by relative path; the same in a checkout and in a wheel.

    A package that is not installed (pipelines, where only training runs) is left out.
    """
    found: dict[str, str] = {}
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        for location in (spec.submodule_search_locations or ()) if spec else ():
            root = Path(location)
            for file in root.rglob("*"):
                if file.suffix in SOURCES and file.is_file():
                    found[f"{package}/{file.relative_to(root).as_posix()}"] = file_digest(file)
    return json_digest(found)


def lineage(training: dict[str, Any], *, student_digest: str, export_digest: str) -> dict[str, str]:
    """The digests that travel with a student.

    Args:
        training: the student's training.json.
        student_digest: `folder_digest` of the student's folder.
        export_digest: digest of the `export` section.
    """
    return {
        "data_sha256": training["data_sha256"],
        "teacher_digest": training["teacher_digest"],
        "student_digest": student_digest,
        "config_digest": json_digest({"training": training["config_digest"], "export": export_digest}),
        **{key: training[key] for key in OPTIONAL if key in training},
    }


def build_manifest(
    model: Path,
    *,
    input: str,
    input_shape: tuple[int, ...],
    opset: int,
    classes: tuple[str, ...],
    lineage: dict[str, str],
    method: str,
    network: str,
    preprocessing: dict[str, Any],
    parity: dict[str, Any],
    smaller: dict[str, dict[str, Any]] | None = None,
    pixels: dict[str, dict[str, Any]] | None = None,
    reference: dict[str, Any] | None = None,
    decision: Decision | None = None,
) -> dict[str, Any]:
    """The content of manifest.json for an exported file.

    Args:
        model: the ONNX file.
        input_shape: of one image, without the batch axis.
        lineage: what `lineage` gives.
        preprocessing: what the graph does to its input, for people; clients need to do none of it.
        parity: what `gkd_core.export.onnx.parity` gave.
        smaller: by precision (int8, fp16) what `kept_file` or `dropped_file` gave.
        pixels: by the precision of the model inside the same of the files that take pictures of any size.
        reference: what `gkd_core.export.reference.reference` gave on the validation images; None where there are none.
        decision: of the float32 file; those of smaller files are in `smaller`. None where there is none.
    """
    return {
        "format": FORMAT,
        "gkd_version": __version__,
        "model": {
            "file": model.name,
            "sha256": file_digest(model),
            "size_bytes": model.stat().st_size,
            "opset": opset,
            "input": input,
            "input_name": "image",
            "input_shape": list(input_shape),
            "output": "logits",
        },
        "classes": list(classes),
        **lineage,
        "code_sha256": code_sha256(),
        "method": method,
        "network": network,
        "preprocessing": preprocessing,
        "parity": parity,
        **(smaller or {}),
        **({"pixels": pixels} if pixels else {}),
        **({} if reference is None else {"reference": reference}),
        **({} if decision is None else {"decision": decision_entry(decision)}),
    }


def decision_entry(decision: Decision) -> dict[str, Any]:
    """What a manifest says of a decision: what the metadata of its file says."""
    entry: dict[str, Any] = decision.model_dump(mode="json")
    return entry


def decision_of(manifest: Mapping[str, Any], precision: str = "fp32") -> Decision | None:
    """The decision of the file in one precision, which `read_manifest` has checked; None where it has none."""
    entry = (manifest if precision == "fp32" else manifest.get(precision, {})).get("decision")
    return None if entry is None else Decision.model_validate(entry)


def kept_file(file: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """A manifest's entry for a smaller file that stands beside the model; `facts` says what it showed."""
    return {**facts, "kept": True, "file": file.name, "sha256": file_digest(file), "size_bytes": file.stat().st_size}


def dropped_file(reason: str, facts: dict[str, Any] | None = None) -> dict[str, Any]:
    """A manifest's entry for a smaller file that is not there, and why, in one sentence."""
    return {**(facts or {}), "kept": False, "reason": reason}


def kept_precisions(manifest: dict[str, Any]) -> list[str]:
    """int8, fp16: those of which there is a file."""
    return [name for name in SMALLER if isinstance(manifest.get(name), dict) and manifest[name].get("kept")]


def pixels_file(precision: str) -> str:
    """Name of the file that takes pictures of any size for the model in one precision."""
    return FILES[precision].replace(".onnx", "_pixels.onnx")


def kept_pixels(manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The entries of the files that take pictures of any size, by precision; empty where `export.pixels` was off."""
    found = manifest.get("pixels")
    entries = found.items() if isinstance(found, dict) else ()
    return {name: entry for name, entry in entries if name in FILES and isinstance(entry, dict) and entry.get("kept")}


def model_entry(manifest: dict[str, Any], precision: str, where: str = "the deploy folder") -> dict[str, Any]:
    """file, sha256 and size_bytes of the model in one precision.

    Raises:
        GkdError: there is no such precision, or its file was not kept: the sentence says why.
    """
    if precision not in FILES:
        raise GkdError(unknown("precision", precision, FILES))
    if precision == "fp32":
        entry: dict[str, Any] = manifest["model"]
        return entry
    if precision not in kept_precisions(manifest):
        found = manifest.get(precision)
        entry = found if isinstance(found, dict) else dropped_file("it was exported before there was one")
        raise GkdError(f"{where} has no {precision} model: {entry.get('reason', 'no reason given')}; take fp32")
    return dict(manifest[precision])


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write manifest.json into an existing folder."""
    write_json(folder / "manifest.json", manifest)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest in a deploy folder or a bundle, checked against the model files beside it.

    Raises:
        GkdError: manifest or a model missing, of another format, or a model is not the one it describes.
    """
    expect_kind(folder, "deploy")
    path = folder / "manifest.json"
    manifest = read_json(path, "the deploy folder")
    if manifest.get("format") != FORMAT:
        raise GkdError(f"{path} is not a manifest of format {FORMAT}: run `gkd export` again")
    kept = kept_precisions(manifest)
    told: dict[str, Any] = {"reference": REFERENCE} if "reference" in manifest else {}
    told |= _decided(manifest)
    smaller = {name: {**ENTRY, **_decided(manifest[name])} for name in kept}
    expect_shape(path, manifest, {**SHAPE, **smaller, **told})
    pixels = kept_pixels(manifest)
    expect_shape(path, pixels, dict.fromkeys(pixels, ENTRY))
    for entry in (manifest["model"], *(manifest[name] for name in kept), *pixels.values()):
        model = folder / entry["file"]
        if not model.is_file():
            raise GkdError(f"the deploy folder {folder} has no {model.name}: run `gkd export` again")
        if file_digest(model) != entry["sha256"]:
            raise GkdError(f"{model} is not the file its manifest describes (sha256 differs): run `gkd export` again")
    return manifest


def _decided(entry: Mapping[str, Any]) -> Shape:
    return {"decision": Decision} if "decision" in entry else {}


def refuse_other_model(
    manifest: dict[str, Any], folder: Path, *, student: Path, data: Path, data_sha256: str, classes: tuple[str, ...]
) -> None:
    """See that the model in `folder` was exported from this student, which was trained on this data.

    Raises:
        GkdError: it was made of others.
    """
    if manifest["student_digest"] != folder_digest(student):
        raise GkdError(
            f"the model in {folder} was exported from another student than {student}: run `gkd export` again"
        )
    if manifest["data_sha256"] != data_sha256 or tuple(manifest["classes"]) != classes:
        raise GkdError(f"the model in {folder} was made from other data than {data}: run `gkd export` again")
