"""The evaluate step: all networks and the exported student on the test images, which only this step opens."""

import math
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from components.graph import REFERENCES, SHOWN
from components.teacher import open_teachers
from gkd_core.config import EvaluateConfig, Params
from gkd_core.data.loader import Loader
from gkd_core.data.prepared import DatasetInfo, PreparedData
from gkd_core.data.progress import progress
from gkd_core.data.unknown import UnknownPictures
from gkd_core.decision import Decision
from gkd_core.errors import GkdError
from gkd_core.evaluation.calibration import Reliability, reliability
from gkd_core.evaluation.cost import hardware, measure_latency, parameter_count
from gkd_core.evaluation.decision import measure_files, outputs_of, risk_coverage_of
from gkd_core.evaluation.evaluate import BATCH_SIZE, predict
from gkd_core.evaluation.frontier import Frontier
from gkd_core.evaluation.quality import agreement, kl_divergence, negative_log_likelihood, per_class, top_k_correct
from gkd_core.evaluation.statistics import bootstrap_difference, paired_difference, wilson_interval
from gkd_core.export.manifest import decision_of, kept_precisions, model_entry, read_manifest, refuse_other_model
from gkd_core.export.onnx import write_all
from gkd_core.export.session import run_outputs, session
from gkd_core.files import file_digest, folder_digest, refuse_to_replace, whole_folder, write_bytes, write_json
from gkd_core.models.ensemble import Ensemble
from gkd_core.models.macs import multiply_accumulates
from gkd_core.models.network import load_network
from gkd_core.models.topological import images_only
from gkd_core.records import read_teacher, read_teacher_of, read_trained, read_training, refuse_other_budget
from gkd_core.report import Findings, render_report
from gkd_core.report.heatmaps import choose_pictures
from gkd_core.report.sheets import write_sheets
from gkd_core.run_facts import run_facts
from gkd_core.tables import Row, read_table, rounded, write_table
from gkd_core.training.device import choose_device

SCHEDULE_POINTS = 1000


def run(
    *,
    data: Path,
    teacher: Path,
    baseline: Path,
    kd: Path,
    student: Path,
    deploy: Path,
    out: Path,
    params: Params,
) -> dict[str, Any]:
    """Write metrics.json, timings.json, predictions.npy, plots/, report.html and pictures/ to `out`.

    Args:
        data: folder of the prepare step.
        teacher: folder of the teacher step.
        baseline, kd: folders of the distill step's references; one that was not trained is left out of everything.
        student: folder of the distill step.
        deploy: folder of the export step.
        out: appears whole or not at all.
        params: reads `evaluate` and `decide.unknown`; the other sections are shown in the report.
    Returns:
        {"teacher": {"top1"}, …, "onnx": {"top1", "parity_max_abs"}, "differences", "report": {"path"}}, and for each
        smaller file that was kept {"top1", "agreement_with_fp32"} under its precision.
    Raises:
        GkdError: the folders do not belong together, or a network gives logits that are not finite.
    """
    start = time.monotonic()
    inputs = [data, teacher, baseline, kd, student, deploy]
    refuse_to_replace(out, inputs, kind="report")  # before all is measured
    settings = params.evaluate
    prepared = PreparedData.open(data)
    info = prepared.info
    folders = {"baseline": baseline, "kd": kd, "student": student}
    read_teacher_of(teacher, data=data, data_sha256=info.sha256)
    facts = {
        role: read_trained(folder, role, data=data, data_sha256=info.sha256, teacher=teacher)
        for role, folder in folders.items()
        if role == "student" or read_training(folder, role)["trained"]
    }
    for role in REFERENCES:
        if role in facts:
            refuse_other_budget(folders[role], role, facts[role], facts["student"])
    frontier = None if settings.frontier is None else _frontier(Path(settings.frontier), info.sha256, teacher)
    manifest = read_manifest(deploy)
    refuse_other_model(manifest, deploy, student=student, data=data, data_sha256=info.sha256, classes=info.classes)
    unknown = _unknown(params, info, decision_of(manifest))
    histories = _histories(teacher, folders, facts)
    schedule = _thinned(read_table(student / "steps.csv"))
    teachers = open_teachers(teacher, info.classes)
    trained = {role: load_network(folders[role], info.classes) for role in facts}
    networks = {"teacher": teachers[0] if len(teachers) == 1 else Ensemble(teachers, info.classes), **trained}
    names = {"teacher": " + ".join(network.name for network in teachers)}
    names |= {role: network.name for role, network in trained.items()}

    test = prepared.test
    loader = Loader(
        test,
        batch_size=BATCH_SIZE,
        device=choose_device(settings.device, "evaluate.device"),
        shuffle=False,
        num_classes=len(info.classes),
    )
    logits = {}
    with progress("evaluate", len(test) * len(networks), unit="images") as advance:
        for role, network in networks.items():
            logits[role] = predict(network, loader, f"the {role} {names[role]}")
            advance(len(test))
    files = {name: deploy / model_entry(manifest, name)["file"] for name in ("fp32", *kept_precisions(manifest))}
    decisions = {name: decision_of(manifest, name) for name in files}
    answers = {
        name: run_outputs(session(file), test.images, outputs_of(decisions[name]), BATCH_SIZE)
        for name, file in files.items()
    }
    smaller = {name: found["logits"] for name, found in answers.items()}
    exported = smaller.pop("fp32")
    correct = {role: top_k_correct(values, test.labels, 1) for role, values in logits.items()}
    diagrams = {role: reliability(values, test.labels, settings.calibration_bins) for role, values in logits.items()}

    countable = {role: images_only(network) for role, network in networks.items()}
    metrics: dict[str, Any] = {
        "data": {
            "sha256": info.sha256,
            "source": info.source,
            "test_images": len(test),
            "confidence": params.evaluate.confidence,
        },
        "digests": {
            "manifest": file_digest(deploy / "manifest.json"),
            "student": manifest["student_digest"],
            "teacher": folder_digest(teacher),
            **{role: folder_digest(folders[role]) for role in REFERENCES if role in facts},
        },
    }
    for role, values in logits.items():
        metrics[role] = {
            "network": names[role],
            **_quality(values, test.labels, settings.confidence),
            "recall": _recalls(values, test.labels, info.classes),
            "ece": diagrams[role].expected_calibration_error,
            "parameters": parameter_count(networks[role]),
            "macs": multiply_accumulates(countable[role], info.channels, info.image_size),
        }
        if role != "teacher":
            metrics[role]["agreement_with_teacher"] = agreement(values, logits["teacher"])
            metrics[role]["kl_to_teacher"] = kl_divergence(logits["teacher"], values)
    metrics["onnx"] = {
        "top1": float(top_k_correct(exported, test.labels, 1).mean()),
        **_balanced(exported, test.labels),
        "agreement_with_student": agreement(exported, logits["student"]),
        "onnx_bytes": manifest["model"]["size_bytes"],
    }
    decided = measure_files(files, decisions, answers, test.labels, unknown, settings)
    if "fp32" in decided:
        metrics["decision"] = decided["fp32"]
    for precision, values in smaller.items():
        metrics[precision] = _beside_fp32(values, exported, test.labels, settings)
        metrics[precision]["onnx_bytes"] = manifest[precision]["size_bytes"]
        metrics[precision] |= {"decision": decided[precision]} if precision in decided else {}
    metrics["differences"] = {
        f"student_minus_{role}": {
            **asdict(paired_difference(correct["student"], correct[role], settings.confidence)),
            **_balanced_differences(logits["student"], logits[role], test.labels, settings.confidence),
        }
        for role in REFERENCES
        if role in correct
    }
    timings, sizes = _cost_as_onnx(countable, deploy, manifest, test.images[:1], info, params)
    for role, size in sizes.items():
        metrics[role]["onnx_bytes"] = size
    metrics = rounded(metrics)
    # Two significant digits: this one is all rounding error, and six decimals would leave nothing of it.
    metrics["onnx"]["parity_max_abs"] = _largest(exported, logits["student"])
    for precision, values in smaller.items():
        metrics[precision]["parity_max_abs"] = _largest(values, exported)

    findings = Findings(
        metrics=metrics,
        timings=timings | {"run": run_facts(seconds=time.monotonic() - start)},
        classes=info.classes,
        confidence=settings.confidence,
        histories=histories,
        schedule=schedule,
        confusion=_confusion(logits["student"], test.labels, len(info.classes)),
        reliability=diagrams,
        per_class=_classes(logits, test.labels, info.classes),
        training=facts["student"],
        manifest=manifest,
        configuration=_configuration(params, teacher, facts["student"]),
        frontier=frontier,
        decision=decisions["fp32"],
        risk_coverage=risk_coverage_of(answers["fp32"], test.labels),
    )
    if settings.pictures:
        pictures = choose_pictures(
            networks, logits, test, info, loader.device, decisions["fp32"], answers["fp32"].get("decision")
        )
        findings = replace(findings, pictures=pictures)
    with whole_folder(out, inputs, kind="report") as folder:
        write_json(folder / "metrics.json", metrics)
        write_json(folder / "timings.json", findings.timings)
        np.save(folder / "predictions.npy", exported.argmax(1).astype(np.int32))
        _write_plots(folder / "plots", findings, logits["student"], test.labels)
        write_bytes(folder / "report.html", render_report(findings).encode())
        (folder / "pictures").mkdir()
        if findings.pictures is not None:
            write_sheets(folder / "pictures", findings.pictures)
    return {
        **{role: {"top1": metrics[role]["top1"]} for role in logits},
        "onnx": {key: metrics["onnx"][key] for key in ("top1", "parity_max_abs")},
        **{
            precision: {key: metrics[precision][key] for key in ("top1", "agreement_with_fp32")}
            for precision in smaller
        },
        **({"decision": {key: metrics["decision"][key] for key in ("coverage", "precision")}} if decided else {}),
        "differences": metrics["differences"],
        "report": {"path": str(out / "report.html")},
    }


def _unknown(params: Params, info: DatasetInfo, decision: Decision | None) -> UnknownPictures | None:
    """The pictures of no class, where there are any.

    Raises:
        GkdError: the section `decide` asks for another decision than the model has; or they cannot be read.
    """
    if params.decide is not None and decision is None:
        raise GkdError("decide asks for a decision, and the exported model has none: run `gkd export` again")
    if decision is not None:
        asked = None if params.decide is None else (*params.decide.wish, params.decide.score)
        if asked != (decision.asked, decision.target, decision.score):
            wish = "no decision" if asked is None else f"{asked[0]} {asked[1]:g} by {asked[2]}"
            raise GkdError(
                f"decide asks for {wish}, and the model was exported for {decision.asked} {decision.target:g} by "
                f"{decision.score}: run `gkd export` again"
            )
    if params.decide is None or params.decide.unknown is None:
        return None
    return UnknownPictures(Path(params.decide.unknown), info.image_size, info.channels, info.crop or "center")


def _frontier(folder: Path, data_sha256: str, teacher: Path) -> Frontier:
    """The students of a frontier.

    Raises:
        GkdError: there is none, or they learned from another teacher or other data.
    """
    found = Frontier.read(folder)
    if (found.data_sha256, found.teacher_digest) != (data_sha256, folder_digest(teacher)):
        raise GkdError(
            f"evaluate.frontier {folder} was made with other data or another teacher than this report: run `gkd "
            "frontier` again, or leave it out"
        )
    return found


def _quality(logits: NDArray[np.float32], labels: NDArray[np.int64], confidence: float) -> dict[str, float]:
    """top1, and top5 where there are more than five classes, with intervals; what counts classes alike; nll."""
    found: dict[str, float] = {}
    for k in (1, 5) if logits.shape[1] > 5 else (1,):
        correct = top_k_correct(logits, labels, k)
        low, high = wilson_interval(int(correct.sum()), len(labels), confidence)
        found |= {f"top{k}": float(correct.mean()), f"top{k}_low": low, f"top{k}_high": high}
    return found | _balanced(logits, labels) | {"nll": negative_log_likelihood(logits, labels)}


def _balanced(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> dict[str, float]:
    """What counts every class alike, however many images it has."""
    found = per_class(logits.argmax(1), labels, logits.shape[1])
    return {"balanced_accuracy": found.balanced_accuracy, "macro_f1": found.macro_f1}


def _balanced_differences(
    logits: NDArray[np.float32], reference: NDArray[np.float32], labels: NDArray[np.int64], confidence: float
) -> dict[str, dict[str, float]]:
    answers = logits.argmax(1), reference.argmax(1), labels
    return {
        "balanced_accuracy": asdict(bootstrap_difference(*answers, "balanced_accuracy", confidence)),
        "macro_f1": asdict(bootstrap_difference(*answers, "macro_f1", confidence)),
    }


def _recalls(
    logits: NDArray[np.float32], labels: NDArray[np.int64], classes: tuple[str, ...]
) -> dict[str, float | None]:
    """By class; None for one without test images."""
    recall = per_class(logits.argmax(1), labels, len(classes)).recall
    return {name: _known(value) for name, value in zip(classes, recall, strict=True)}


def _beside_fp32(
    logits: NDArray[np.float32], reference: NDArray[np.float32], labels: NDArray[np.int64], settings: EvaluateConfig
) -> dict[str, Any]:
    """A smaller file's quality, and what became of float32's answers."""
    correct = top_k_correct(logits, labels, 1)
    return {
        **_quality(logits, labels, settings.confidence),
        "ece": reliability(logits, labels, settings.calibration_bins).expected_calibration_error,
        "agreement_with_fp32": agreement(logits, reference),
        "difference_to_fp32": asdict(
            paired_difference(correct, top_k_correct(reference, labels, 1), settings.confidence)
        ),
    }


def _largest(logits: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    return float(f"{np.abs(logits - reference).max():.1e}")


def _cost_as_onnx(
    networks: dict[str, nn.Module],
    deploy: Path,
    manifest: dict[str, Any],
    image: NDArray[np.uint8],
    info: DatasetInfo,
    params: Params,
) -> tuple[dict[str, Any], dict[str, int]]:
    """Content of timings.json, and the size in bytes of every network exported the way the student was."""
    with tempfile.TemporaryDirectory(prefix="gkd-") as name:
        form, opset = manifest["model"]["input"], manifest["model"]["opset"]
        models = write_all(networks, Path(name), info, input=form, opset=opset)
        sizes = {role: path.stat().st_size for role, path in models.items()}
        runs, threads = params.evaluate.latency_runs, params.evaluate.latency_threads
        models["onnx"] = deploy / manifest["model"]["file"]
        if "int8" in kept_precisions(manifest):  # a half's speed on a CPU says nothing: it is for GPUs
            models["int8"] = deploy / manifest["int8"]["file"]
        latencies = measure_latency(models, np.array(image), runs=runs, threads=threads)
    return {"hardware": {**hardware(), "threads": threads, "runs": runs}, **latencies}, sizes


def _classes(
    logits: dict[str, NDArray[np.float32]], labels: NDArray[np.int64], classes: tuple[str, ...]
) -> list[dict[str, Any]]:
    found = {role: per_class(values.argmax(1), labels, len(classes)) for role, values in logits.items()}
    student = found.pop("student")
    return [
        {
            "name": name,
            "support": int(student.support[position]),
            **{key: _known(getattr(student, key)[position]) for key in ("recall", "precision", "f1")},
            **{f"{role}_recall": _known(other.recall[position]) for role, other in found.items()},
        }
        for position, name in enumerate(classes)
    ]


def _known(value: float) -> float | None:
    return None if math.isnan(value) else rounded(float(value))


def _confusion(logits: NDArray[np.float32], labels: NDArray[np.int64], num_classes: int) -> NDArray[np.int64]:
    counts = np.bincount(labels * num_classes + logits.argmax(1), minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def _configuration(params: Params, teacher: Path, student: dict[str, Any]) -> dict[str, Any]:
    """What the results depend on, with what recipes put in for null; where the data lies is nobody's business.

    Args:
        teacher: its folder.
        student: its training.json.
    """
    content = params.model_dump(mode="json", include=set(SHOWN))
    trained = read_training(teacher / read_teacher(teacher)["networks"][-1], "network")
    content["teacher"]["train"] |= trained.get("training", {})
    content["train"] |= student.get("training", {})
    content["data"].pop("root")
    content["evaluate"].pop("frontier")
    (content["decide"] or {}).pop("unknown", None)
    return {section: content[section] for section in SHOWN if content[section] is not None}


def _histories(teacher: Path, folders: dict[str, Path], facts: dict[str, Any]) -> dict[str, list[Row]]:
    names = read_teacher(teacher)["networks"]
    found = {"teacher": teacher / names[-1] / "history.csv"}
    found |= {role: folders[role] / "history.csv" for role in facts}
    return {role: read_table(path) for role, path in found.items() if path.exists()}


def _thinned(rows: list[Row]) -> list[Row]:
    """At most so many rows, evenly spaced, the first and the last among them."""
    places = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), SCHEDULE_POINTS)).round().astype(int))
    return [rows[place] for place in places]


def _write_plots(folder: Path, findings: Findings, logits: NDArray[np.float32], labels: NDArray[np.int64]) -> None:
    """The tables behind the figures, in the forms `dvc plots` reads."""
    folder.mkdir()
    classes = findings.classes
    pairs = zip(labels, logits.argmax(1), strict=True)
    tables: dict[str, Iterable[Mapping[str, Any]]] = {
        "confusion": ({"actual": classes[actual], "predicted": classes[predicted]} for actual, predicted in pairs),
        "history": ({"network": role, **row} for role, rows in findings.histories.items() for row in rows),
        "schedule": findings.schedule,
        "per_class": findings.per_class,
        **({"risk_coverage": findings.risk_coverage} if findings.risk_coverage else {}),
        "calibration": (row for role, bins in findings.reliability.items() for row in _bins(role, bins)),
    }
    for name, rows in tables.items():
        write_table(folder / f"{name}.csv", rows)


def _bins(role: str, bins: Reliability) -> list[dict[str, Any]]:
    return [
        {
            "network": role,
            "low": rounded(float(bins.edges[i])),
            "high": rounded(float(bins.edges[i + 1])),
            "confidence": _known(bins.confidence[i]),
            "accuracy": _known(bins.accuracy[i]),
            "count": int(bins.count[i]),
        }
        for i in range(len(bins.count))
    ]
