"""Choosing a decision by what a model answers on the validation images: temperature and thresholds."""

import math
from decimal import ROUND_FLOOR, Context, Decimal
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from gkd_core.decision import Decision, Score, Shown, Spread
from gkd_core.evaluation.quality import negative_log_likelihood

FOLDS = 5
COOLEST, HOTTEST = 0.05, 20.0
FEW = 10  # images: with fewer that are named so, a class has no threshold of its own
DIGITS = 6  # of a threshold
MARGIN = 2e-6  # a threshold lies so much below the score it stands for: CPUs differ in the seventh digit

Asked = Literal["precision", "coverage"]


def choose_decision(
    logits: NDArray[np.floating[Any]],
    labels: NDArray[np.integer[Any]],
    *,
    score: Score,
    asked: Asked,
    target: float,
    by_class: bool = False,
    calibrate: bool = True,
    distances: NDArray[np.floating[Any]] | None = None,
    model: str = "fp32",
) -> Decision:
    """The decision that does on these images what is asked for.

    Args:
        logits: [N, C] on the validation images.
        labels: [N].
        score: what says how sure the model is.
        asked, target: see `Decision`.
        by_class: a threshold for each class that is named on `FEW` images at least.
        calibrate: look for a temperature.
        distances: [N] of `ClassDistance.scores`, needed for the scores that look at features.
        model: whose logits they are.
    Returns:
        With threshold None where no threshold gives the precision.
    """
    temperature, note = fit_temperature(logits, labels) if calibrate else (1.0, "")
    shown = Shown(
        images=len(labels),
        coverage=0.0,
        precision=None,
        nll=round(negative_log_likelihood(logits, labels), DIGITS),
        calibrated_nll=round(negative_log_likelihood(logits / temperature, labels), DIGITS),
    )
    draft = Decision(
        temperature=temperature,
        score=score,
        distance=None if distances is None or score == "feature_distance" else Spread.of(distances),
        threshold=None,
        asked=asked,
        target=target,
        model=model,
        validation=shown,
    )
    found = draft.scores(logits, distances)
    named = logits.argmax(axis=1)
    right = named == labels
    limit = threshold(found, right, asked, target)
    limits: tuple[float | None, ...] | None = None
    if by_class:
        mine = [named == each for each in range(logits.shape[1])]
        limits = tuple(threshold(found[own], right[own], asked, target) if own.sum() >= FEW else limit for own in mine)
    chosen = draft.model_copy(update={"threshold": limit, "thresholds": limits})
    given = chosen.decide(logits, found)[0] >= 0
    shown = shown.model_copy(
        update={
            "coverage": round(float(given.mean()), DIGITS),
            "precision": round(float(right[given].mean()), DIGITS) if given.any() else None,
            "note": note,
        }
    )
    return chosen.model_copy(update={"validation": shown})


def fit_temperature(logits: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]]) -> tuple[float, str]:
    """The temperature with the lowest NLL, and why it is 1 where no other is worth having, else an empty sentence.

    It is kept where, fitted on four fifths of the images, it lowers NLL on the last, over all five. One that is fitted
    to images lowers NLL on these always.

    Args:
        logits: [N, C].
        labels: [N].
    Source: Guo et al. 2017, §4.2 (arXiv:1706.04599).
    """
    if bool((logits.argmax(axis=1) == labels).all()):
        return 1.0, "no temperature can be told from validation images that are all right"
    if len(labels) < 2 * FOLDS:
        return 1.0, f"{len(labels)} validation images are too few for a temperature"
    order = np.random.default_rng(0).permutation(len(labels))
    fitted, plain = 0.0, negative_log_likelihood(logits, labels)
    for fold in range(FOLDS):
        out = order[fold::FOLDS]
        rest = np.setdiff1d(order, out)
        part = negative_log_likelihood(logits[out] / _best_temperature(logits[rest], labels[rest]), labels[out])
        fitted += part * len(out) / len(labels)
    if not fitted < plain:
        return 1.0, f"no temperature lowers NLL on validation, cross-fitted ({plain:.4f} without, {fitted:.4f} with)"
    return float(f"{_best_temperature(logits, labels):.{DIGITS}g}"), ""


def _best_temperature(logits: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]]) -> float:
    found = minimize_scalar(
        lambda power: negative_log_likelihood(logits / math.exp(power), labels),
        bounds=(math.log(COOLEST), math.log(HOTTEST)),
        method="bounded",
    )
    return math.exp(float(found.x))


def threshold(scores: NDArray[np.floating[Any]], right: NDArray[np.bool_], asked: Asked, target: float) -> float | None:
    """The threshold that gives a class to as many images as possible, or to as many as asked for.

    It lies just below the score of the least sure image that is still given a class, however much lower the next is:
    what is less sure than all these is unlike them.

    Args:
        scores: [N], larger is surer.
        right: [N] whether the named class is the right one.
        asked: "precision": the part of the images with at least this score that is right; "coverage": the part of all
            images that has it.
        target: how much of it.
    Returns:
        None where no threshold gives the precision, or there are no images.

    Example:
        >>> threshold(np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, True, False, True]), "precision", 0.75)
        0.599998
        >>> threshold(np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, True, False, True]), "precision", 1.0)
        0.799998
    """
    if len(scores) == 0:
        return None
    order = np.argsort(-scores, kind="stable")
    falling = scores[order].astype(np.float64)
    limits = np.array([_below(value) for value in falling])
    reached = np.searchsorted(-falling, -limits, side="right")  # images with at least this score: equal ones together
    if asked == "coverage":
        return float(limits[max(math.ceil(target * len(scores) - 1e-9), 1) - 1])
    precision = np.cumsum(right[order])[reached - 1] / reached
    enough = np.flatnonzero(precision >= target - 1e-9)
    return float(limits[enough[-1]]) if len(enough) else None


def _below(score: float) -> float:
    """A decimal of `DIGITS` digits that is a little smaller."""
    lowered = Decimal(float(score) - MARGIN * abs(float(score)))
    return float(Context(prec=DIGITS, rounding=ROUND_FLOOR).create_decimal(lowered))
