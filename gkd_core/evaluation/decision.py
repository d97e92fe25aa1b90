"""What a decision is worth on images it was not chosen on: how many are given a class, how many of these the right one,
and whether pictures of no class are told from the others."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from gkd_core.config import EvaluateConfig
from gkd_core.data.progress import progress
from gkd_core.data.unknown import UnknownPictures
from gkd_core.decision import OUTPUTS, Decision
from gkd_core.evaluation.calibration import reliability
from gkd_core.evaluation.quality import negative_log_likelihood
from gkd_core.evaluation.statistics import wilson_interval
from gkd_core.export.session import run_outputs, session

TPR = 0.95  # of known pictures, at which unknown ones that pass for known are counted
POINTS = 200  # of a curve

Scores = NDArray[np.floating[Any]]


def outputs_of(decision: Decision | None) -> list[str]:
    """What is to be asked of a model with this decision, or with none."""
    return ["logits"] if decision is None else ["logits", *OUTPUTS]


def measure_files(
    files: Mapping[str, Path],
    decisions: Mapping[str, Decision | None],
    answers: Mapping[str, Mapping[str, NDArray[Any]]],
    labels: NDArray[np.integer[Any]],
    unknown: UnknownPictures | None,
    settings: EvaluateConfig,
) -> dict[str, dict[str, Any]]:
    """`measure_decision` of each file that decides, by its own outputs, and under "unknown" `measure_unknown`.

    Args:
        files: ONNX files by name.
        decisions: of them.
        answers: of each the outputs [N, …] by name on the test images, as `outputs_of` names them.
        labels: [N].
        unknown: pictures of no class.
        settings: level of the intervals, bins of the calibration error.
    """
    deciding = {name: decision for name, decision in decisions.items() if decision is not None}
    found = {
        name: measure_decision(
            decision,
            answers[name]["logits"],
            answers[name]["score"],
            labels,
            confidence=settings.confidence,
            bins=settings.calibration_bins,
        )
        for name, decision in deciding.items()
    }
    if unknown is None or not deciding:
        return found
    models = {name: session(files[name]) for name in deciding}
    parts: dict[str, list[dict[str, NDArray[Any]]]] = {name: [] for name in deciding}
    with progress("evaluate unknown", len(unknown), unit="images") as advance:
        for batch in unknown.batches():
            for name, model in models.items():
                parts[name].append(run_outputs(model, batch, ["score", "decision"]))
            advance(len(batch))
    for name, each in parts.items():
        decided, scores = (np.concatenate([part[output] for part in each]) for output in ("decision", "score"))
        measured = measure_unknown(decided, answers[name]["score"], scores)
        found[name]["unknown"] = {**measured, "unreadable": unknown.unreadable, "sha256": unknown.sha256}
    return found


def measure_decision(
    decision: Decision,
    logits: NDArray[np.floating[Any]],
    scores: Scores,
    labels: NDArray[np.integer[Any]],
    *,
    confidence: float = 0.95,
    bins: int = 15,
) -> dict[str, Any]:
    """A decision on test images.

    Args:
        logits: [N, C].
        scores: [N].
        labels: [N].
        confidence: of the intervals, which are Wilson's.
        bins: of the calibration error.
    Returns:
        score, asked, target and temperature of the decision; `coverage`, the part that is given a class, and
        `precision`, the part of these that is given the right one (None where there are none), each with _low and
        _high; where a precision was asked for `coverage_at_precision` with its interval: the largest part that any
        threshold gives a class with this precision on these images; `aurc`, the area under the risk-coverage curve; and
        `ece` and `nll` at temperature 1, `calibrated_ece` and `calibrated_nll`.
    """
    named, _ = decision.decide(logits, scores)
    right = logits.argmax(axis=1) == labels
    given = named >= 0
    calibrated = logits / decision.temperature
    found: dict[str, Any] = {
        "score": decision.score,
        "asked": decision.asked,
        "target": decision.target,
        "temperature": decision.temperature,
        **_part("coverage", int(given.sum()), len(labels), confidence),
        **_part("precision", int(right[given].sum()), int(given.sum()), confidence),
    }
    if decision.asked == "precision":
        most = most_with_precision(scores, right, decision.target)
        found |= _part("coverage_at_precision", most, len(labels), confidence)
    return found | {
        "aurc": area_under_risk_coverage(scores, right),
        "ece": reliability(logits, labels, bins).expected_calibration_error,
        "calibrated_ece": reliability(calibrated, labels, bins).expected_calibration_error,
        "nll": negative_log_likelihood(logits, labels),
        "calibrated_nll": negative_log_likelihood(calibrated, labels),
    }


def measure_unknown(decided: NDArray[np.integer[Any]], known: Scores, unknown: Scores) -> dict[str, Any]:
    """How well pictures of no class are told from the test images.

    Args:
        decided: [M] what the model says of the unknown ones: a class, or −1.
        known: [N] scores of the test images.
        unknown: [M] scores of the unknown pictures.
    Returns:
        images; `refused`, the part that is none of the classes by the model's own threshold; `auroc` and
        `fpr_at_95_tpr`.
    """
    return {
        "images": len(unknown),
        "refused": float((decided < 0).mean()),
        "auroc": auroc(known, unknown),
        "fpr_at_95_tpr": fpr_at_tpr(known, unknown),
    }


def auroc(known: Scores, unknown: Scores) -> float:
    """The probability that a known picture has a larger score than an unknown one; of equal ones a half counts."""
    truth = np.repeat([1, 0], [len(known), len(unknown)])
    return float(roc_auc_score(truth, np.concatenate([known, unknown])))


def fpr_at_tpr(known: Scores, unknown: Scores, tpr: float = TPR) -> float:
    """The part of the unknown pictures that has at least the score which so many of the known ones have at least."""
    passing = int(np.ceil(tpr * len(known) - 1e-9))
    return float((unknown >= np.sort(known)[::-1][passing - 1]).mean())


def most_with_precision(scores: Scores, right: NDArray[np.bool_], precision: float) -> int:
    """The most images that a threshold gives a class while this part of them is right; 0 where none does."""
    counts, hits = _cumulated(scores, right)
    enough = np.flatnonzero(hits / counts >= precision - 1e-9)
    return int(counts[enough[-1]]) if len(enough) else 0


def area_under_risk_coverage(scores: Scores, right: NDArray[np.bool_]) -> float:
    """Mean over the images of the risk (the part that is wrong) of all that are as sure or surer.

    Source: Geifman, Uziel & El-Yaniv 2019, §2 (arXiv:1805.08206).
    """
    counts, hits = _cumulated(scores, right)
    risks = 1 - hits / counts
    return float((risks * np.diff(counts, prepend=0)).sum() / len(scores))


def risk_coverage(scores: Scores, right: NDArray[np.bool_]) -> list[dict[str, float]]:
    """Rows with threshold, coverage and risk, from the surest images to all; at most `POINTS`, the last among them."""
    counts, hits = _cumulated(scores, right)
    levels = np.sort(scores)[::-1][counts - 1]
    places = np.unique(np.linspace(0, len(counts) - 1, min(len(counts), POINTS)).round().astype(int))
    return [
        {
            "threshold": float(f"{levels[place]:.6g}"),
            "coverage": round(float(counts[place] / len(scores)), 6),
            "risk": round(float(1 - hits[place] / counts[place]), 6),
        }
        for place in places
    ]


def risk_coverage_of(answers: Mapping[str, NDArray[Any]], labels: NDArray[np.integer[Any]]) -> list[dict[str, float]]:
    """`risk_coverage` of a model's outputs [N, …] by name; nothing where it does not decide."""
    if "score" not in answers:
        return []
    return risk_coverage(answers["score"], answers["logits"].argmax(axis=1) == labels)


def _cumulated(scores: Scores, right: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How many images have at least each score, and how many of these are right; rising, equal scores together."""
    order = np.argsort(-scores, kind="stable")
    falling = scores[order]
    last = np.append(falling[1:] != falling[:-1], True)
    counts = np.arange(1, len(scores) + 1)[last]
    return counts, np.cumsum(right[order])[last]


def _part(name: str, hits: int, count: int, confidence: float) -> dict[str, float | None]:
    if count == 0:
        return dict.fromkeys((name, f"{name}_low", f"{name}_high"))
    low, high = wilson_interval(hits, count, confidence)
    return {name: hits / count, f"{name}_low": low, f"{name}_high": high}
