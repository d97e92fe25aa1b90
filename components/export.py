"""The export step: the student as one ONNX file, checked against torch, with its manifest."""

import time
from pathlib import Path
from typing import Any

from gkd_core.config import Params
from gkd_core.data.prepared import PreparedData
from gkd_core.errors import GkdError
from gkd_core.export.manifest import MODEL_FILE, build_manifest, lineage, write_manifest
from gkd_core.export.onnx import export_onnx, input_shape, parity
from gkd_core.files import folder_digest, read_json, whole_folder, write_json
from gkd_core.models.network import load_network
from gkd_core.run_facts import run_facts


def run(*, data: Path, teacher: Path, student: Path, out: Path, params: Params) -> dict[str, Any]:
    """Write model.onnx, manifest.json and run.json to `out`.

    Args:
        data: folder of the prepare step; its validation images are what torch and onnxruntime are compared on.
        teacher: folder of the teacher step; only its digest is read, for the lineage.
        student: folder of the distill step.
        out: appears whole or not at all.
        params: reads `export`.
    Returns:
        The model's path, size, digest and parity.
    Raises:
        GkdError: the folders do not belong together, the network cannot be exported, or the file disagrees with torch.
    """
    start = time.monotonic()
    prepared = PreparedData.open(data)
    info, settings = prepared.info, params.export
    training = trained_facts(student, data_sha256=info.sha256, data=data, teacher=teacher)
    network = load_network(student, info.classes)
    digests = lineage(training, student_digest=folder_digest(student), export_digest=params.digest("export"))
    with whole_folder(out, [data, teacher, student]) as folder:
        model = folder / MODEL_FILE
        export_onnx(
            network,
            model,
            classes=info.classes,
            channels=info.channels,
            image_size=info.image_size,
            input=settings.input,
            opset=settings.opset,
            metadata={**digests, "method": training["method"], "network": network.spec.name},
            name=f"the student {network.spec.name}",
        )
        agreement = parity(network, model, prepared.validation.images, tolerance=settings.parity_tolerance)
        manifest = build_manifest(
            model,
            input=settings.input,
            input_shape=input_shape(settings.input, info.channels, info.image_size),
            opset=settings.opset,
            classes=info.classes,
            lineage=digests,
            method=training["method"],
            network=network.spec.name,
            preprocessing={
                "image_size": network.spec.image_size,
                "channels": network.spec.in_channels,
                "mean": list(network.spec.mean),
                "std": list(network.spec.std),
            },
            parity=agreement,
        )
        write_manifest(folder, manifest)
        write_json(folder / "run.json", run_facts(seconds=time.monotonic() - start))
    return {
        "path": str(out / MODEL_FILE),
        "bytes": manifest["model"]["size_bytes"],
        "sha256": manifest["model"]["sha256"],
        "parity_max_abs": agreement["max_abs"],
    }


def trained_facts(student: Path, *, data_sha256: str, data: Path, teacher: Path) -> dict[str, Any]:
    """A trained network's training.json, once it is sure that it learned from this data and this teacher.

    Raises:
        GkdError: it was not trained, or it learned from something else.
    """
    training: dict[str, Any] = read_json(student / "training.json", "the student folder", keys=["trained"])
    if not training.get("trained"):
        raise GkdError(
            f"{student} holds no trained student ({training.get('reason', 'no reason given')}): run `gkd distill`"
        )
    read_json(student / "training.json", "the student folder", keys=["data_sha256", "teacher_digest", "config_digest"])
    if training["data_sha256"] != data_sha256:
        raise GkdError(f"the student in {student} was trained on other data than {data} holds: run `gkd distill` again")
    if training["teacher_digest"] not in ("", folder_digest(teacher)):
        raise GkdError(
            f"the student in {student} learned from another teacher than the one in {teacher}: run `gkd distill` again"
        )
    return training
