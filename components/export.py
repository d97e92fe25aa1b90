"""The export step: the student as one ONNX file, checked against torch, smaller files of it, and the manifest."""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gkd_core.config import DecideConfig, ExportConfig, Int8Config, Params
from gkd_core.data.prepared import PreparedData, Split
from gkd_core.decision import OF_FEATURES, Decision
from gkd_core.errors import GkdError
from gkd_core.export.class_distance import ClassDistance
from gkd_core.export.decide import choose_decision
from gkd_core.export.decision_graph import EMBEDDING, append_decision
from gkd_core.export.fidelity import fidelity, fp16_shortfall, int8_shortfall
from gkd_core.export.half import to_half
from gkd_core.export.manifest import (
    FILES,
    MODEL_FILE,
    PIXELS_INPUT,
    build_manifest,
    decision_entry,
    dropped_file,
    kept_file,
    kept_precisions,
    lineage,
    pixels_file,
    write_manifest,
)
from gkd_core.export.onnx import input_shape, parity, preprocessing, write_onnx
from gkd_core.export.pixels import pixels_parity, write_pixels
from gkd_core.export.quantise import Quantiser, stratified_pick
from gkd_core.export.reference import reference
from gkd_core.export.session import run_outputs, run_session, session
from gkd_core.files import file_digest, folder_digest, whole_folder, write_json
from gkd_core.models.network import load_network
from gkd_core.records import read_teacher_of, read_trained
from gkd_core.run_facts import run_facts

FEATURE_IMAGES = 5000  # of training, on which the classes' features are measured


@dataclass(frozen=True)
class Attempt:
    """A way to int8.

    Attributes:
        name: in the manifest.
        in_float: part of the layers that stay in float, those that add most noise.
        symmetric: activations are int8 around zero.
    """

    name: str
    in_float: float = 0.0
    symmetric: bool = False


ATTEMPTS = (
    Attempt("as configured"),
    Attempt("with the noisiest quarter of the layers in float", in_float=0.25),
    Attempt("with symmetric activations", symmetric=True),
    Attempt("with the noisiest half of the layers in float", in_float=0.5),
)
"""In the order in which they are made; each costs about as much as validating the model."""


def run(*, data: Path, teacher: Path, student: Path, out: Path, params: Params) -> dict[str, Any]:
    """Write model.onnx, manifest.json, run.json, and the smaller files that are good enough, to `out`.

    Args:
        data: folder of the prepare step; int8 is calibrated on training images, and every file is judged on the
            validation images.
        teacher: folder of the teacher step; only its digest is read, for the lineage.
        student: folder of the distill step.
        out: appears whole or not at all.
        params: reads `export` and `decide`.
    Returns:
        The model's path, size, digest and parity; by smaller precision {"kept", and "reason" or "bytes"}.
    Raises:
        GkdError: the folders do not belong together, the network cannot be exported, or the file disagrees with torch.
    """
    start = time.monotonic()
    prepared = PreparedData.open(data)
    info, settings = prepared.info, params.export
    read_teacher_of(teacher, data=data, data_sha256=info.sha256)
    training = read_trained(student, "student", data=data, data_sha256=info.sha256, teacher=teacher)
    network = load_network(student, info.classes)
    digests = lineage(training, student_digest=folder_digest(student), export_digest=params.digest("export", "decide"))
    described = {**digests, "method": training["method"], "network": network.spec.name, "precision": "fp32"}
    if info.crop is not None:  # whoever makes a square of a picture for it must know
        described["crop"] = info.crop
    with whole_folder(out, [data, teacher, student], kind="deploy") as folder:
        model = folder / MODEL_FILE
        write_onnx(
            network,
            model,
            classes=info.classes,
            channels=info.channels,
            image_size=info.image_size,
            input=settings.input,
            opset=settings.opset,
            metadata=described,
            name=f"the student {network.spec.name}",
            embedding=params.decide is not None and params.decide.score in OF_FEATURES,
        )
        agreement = parity(network, model, prepared.validation.images, tolerance=settings.parity_tolerance)
        logits = run_session(session(model), prepared.validation.images)
        smaller = _smaller(model, prepared, logits, settings)
        decision = None if params.decide is None else _decide(folder, prepared, smaller, params.decide)
        pixels = _pixels(folder, ["fp32", *kept_precisions(smaller)], prepared, settings)
        manifest = build_manifest(
            model,
            input=settings.input,
            input_shape=input_shape(settings.input, info.channels, info.image_size),
            opset=settings.opset,
            classes=info.classes,
            lineage=digests,
            method=training["method"],
            network=network.spec.name,
            preprocessing=preprocessing(network),
            parity=agreement,
            smaller=smaller,
            pixels=pixels,
            reference=reference(logits),
            decision=decision,
        )
        write_manifest(folder, manifest)
        write_json(folder / "run.json", run_facts(seconds=time.monotonic() - start))
    return {
        "path": str(out / MODEL_FILE),
        "bytes": manifest["model"]["size_bytes"],
        "sha256": manifest["model"]["sha256"],
        "parity_max_abs": agreement["max_abs"],
        **{
            precision: {"kept": True, "bytes": entry["size_bytes"]}
            if entry["kept"]
            else {"kept": False, "reason": entry["reason"]}
            for precision, entry in smaller.items()
        },
        **({"pixels": pixels} if pixels else {}),
    }


def _decide(
    folder: Path, prepared: PreparedData, smaller: dict[str, dict[str, Any]], settings: DecideConfig
) -> Decision:
    """Put a decision into every file, chosen by its own answers on the validation images; that of the float32 file.

    The entries of `smaller` become those of the files as they are then.
    """
    train, validation = prepared.train, prepared.validation
    distance, names = None, ["logits"]
    if settings.score in OF_FEATURES:
        names.append(EMBEDDING)
        chosen = stratified_pick(train.labels, FEATURE_IMAGES, 0)
        features = run_outputs(session(folder / MODEL_FILE), train.images[chosen], [EMBEDDING])[EMBEDDING]
        distance = ClassDistance.fit(features, train.labels[chosen])
    asked, target = settings.wish
    decisions: dict[str, Decision] = {}
    source: dict[str, str] = {}
    for precision in ("fp32", *kept_precisions(smaller)):
        file = folder / FILES[precision]
        answers = run_outputs(session(file), validation.images, names)
        decision = choose_decision(
            answers["logits"],
            validation.labels,
            score=settings.score,
            asked=asked,
            target=target,
            by_class=settings.by_class,
            calibrate=settings.calibrate,
            distances=None if distance is None else distance.scores(answers[EMBEDDING]),
            model=precision,
        )
        append_decision(file, decision, distance, source)
        if precision == "fp32":
            source["fp32_sha256"] = file_digest(file)  # which is another now
        else:
            smaller[precision] = kept_file(file, smaller[precision] | {"decision": decision_entry(decision)})
        decisions[precision] = decision
    return decisions["fp32"]


def _smaller(
    model: Path, prepared: PreparedData, logits: NDArray[np.float32], settings: ExportConfig
) -> dict[str, dict[str, Any]]:
    """Make the smaller files beside `model`, keep those that are near enough to it; the manifest's entries.

    `logits` [N, C] are the model's on the validation images.
    """
    validation = prepared.validation
    entries: dict[str, dict[str, Any]] = {
        "int8": dropped_file("export.int8.enabled is false"),
        "fp16": dropped_file("export.fp16 is false"),
    }
    for precision, wanted in (("int8", settings.int8.enabled), ("fp16", settings.fp16)):
        if not wanted:
            continue
        file = model.with_name(FILES[precision])
        try:
            if precision == "int8":
                entries[precision] = _int8(model, file, prepared, logits, settings.int8)
            else:
                entries[precision] = _fp16(model, file, validation, logits, settings.fp16_tolerance)
        except GkdError as error:  # there is still the model itself
            file.unlink(missing_ok=True)
            entries[precision] = dropped_file(str(error))
    return entries


def _pixels(
    folder: Path, precisions: list[str], prepared: PreparedData, settings: ExportConfig
) -> dict[str, dict[str, Any]]:
    """Make the files that take pictures of any size, beside the models; the manifest's entries, none if not wanted."""
    entries: dict[str, dict[str, Any]] = {}
    crop, images = prepared.info.crop or "center", prepared.validation.images
    for precision in precisions if settings.pixels else ():
        model, file = folder / FILES[precision], folder / pixels_file(precision)
        try:
            write_pixels(model, file, crop=crop)
            tolerance = settings.parity_tolerance if precision == "fp32" else settings.fp16_tolerance
            found = pixels_parity(model, file, images, crop=crop, tolerance=tolerance)
            entries[precision] = kept_file(file, {"input": PIXELS_INPUT, "parity": found})
        except GkdError as error:  # there is still the model itself
            file.unlink(missing_ok=True)
            entries[precision] = dropped_file(str(error))
    return entries


def _int8(
    model: Path, file: Path, prepared: PreparedData, expected: NDArray[np.float32], settings: Int8Config
) -> dict[str, Any]:
    """As configured; where that is not near enough, by `ATTEMPTS` in order. The first that passes is kept."""
    train, validation = prepared.train, prepared.validation
    chosen = stratified_pick(train.labels, settings.calibration_images, settings.seed)
    quantiser = Quantiser(
        model,
        train.images[chosen],
        calibration=settings.calibration,
        percentile=settings.percentile,
        reduce_range=settings.reduce_range,
    )
    facts: dict[str, Any] = {
        "calibration": settings.calibration,
        "calibration_images": len(chosen),
        "reduce_range": settings.reduce_range,
    }
    noisiest: list[str] = []
    results: list[dict[str, Any]] = []
    first: dict[str, Any] = {}
    for attempt in ATTEMPTS:
        if attempt.in_float and not noisiest:
            noisiest = quantiser.noisiest()
        spared = noisiest[: math.ceil(attempt.in_float * len(noisiest))]
        quantiser.write(file, symmetric=attempt.symmetric, in_float=spared)
        found = fidelity(run_session(session(file), validation.images), expected, validation.labels)
        reason = int8_shortfall(
            found, min_agreement=settings.min_agreement, max_accuracy_drop=settings.max_accuracy_drop
        )
        results.append({"attempt": attempt.name, "agreement": found["agreement"], "top1": found["top1"]})
        tried = {"attempts": results} if len(results) > 1 else {}
        if reason is None:
            how = {"in_float": sorted(spared)} if spared else {}
            return kept_file(file, facts | how | tried | {"validation": found})
        if not first:
            first = {"reason": reason, "validation": found}
    file.unlink()
    others = ", ".join(f"{each['attempt']} {100 * each['agreement']:.2f} %" for each in results[1:])
    return dropped_file(
        f"{first['reason']}; nor did it help otherwise ({others})",
        facts | {"attempts": results, "validation": first["validation"]},
    )


def _fp16(
    model: Path, file: Path, validation: Split, expected: NDArray[np.float32], tolerance: float
) -> dict[str, Any]:
    to_half(model, file)
    found = fidelity(run_session(session(file), validation.images), expected, validation.labels)
    reason = fp16_shortfall(found, tolerance=tolerance)
    if reason is None:
        return kept_file(file, {"validation": found})
    file.unlink()
    return dropped_file(reason, {"validation": found})
