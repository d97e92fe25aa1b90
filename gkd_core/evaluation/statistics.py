"""How much a test set of this size can tell: intervals for an accuracy, and for the difference of two."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Measure = Literal["balanced_accuracy", "macro_f1"]
RESAMPLES = 2000


def wilson_interval(hits: int, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for a proportion `hits / count`, both ends in [0, 1].

    Source: Wilson 1927, J. Am. Stat. Assoc. 22:209; computed by scipy.
    """
    interval = stats.binomtest(hits, count).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number: what stands below α here is rejected by Holm's step-down test at level α,
    which rejects a true hypothesis, any one of them, with a probability of at most α.

    The i-th smallest of m is multiplied by m − i + 1; none comes out below a smaller one's, nor above 1.

    Args:
        p_values: each in [0, 1].
    Source: Holm 1979, Scandinavian Journal of Statistics 6:65.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    values = np.asarray(p_values, dtype=float)
    order = np.argsort(values, kind="stable")
    adjusted = np.empty_like(values)
    adjusted[order] = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)).clip(max=1.0)
    return [float(value) for value in adjusted]


@dataclass(frozen=True)
class PairedDifference:
    """A measure of one network minus another's, on the same images.

    Attributes:
        difference: as observed, in [−1, 1].
        low, high: ends of the interval.
        standard_error: the interval's. Of accuracy it is never 0, not even where both networks are right on the same
            images; of `bootstrap_difference` it is where both say the same of every image.
    """

    difference: float
    low: float
    high: float
    standard_error: float


def paired_difference(
    correct: NDArray[np.bool_], reference_correct: NDArray[np.bool_], confidence: float = 0.95
) -> PairedDifference:
    """Difference of two accuracies measured on the same images, with its interval.

    Only images on which the two disagree tell them apart, so this is far sharper than comparing two intervals. Half an
    image is added to each of the four cells (both right, only one, only the other, none) before Wald's formula, which
    corrects its coverage for small samples and for few disagreements.

    Args:
        correct, reference_correct: [N] whether each network was right on each image.
    Raises:
        ValueError: not the same images, or none.
    Source: Agresti & Min 2005, Statistics in Medicine 24:729.
    """
    if correct.shape != reference_correct.shape or correct.size == 0:
        raise ValueError(f"paired images are needed, got {correct.shape} and {reference_correct.shape}")
    count = correct.size
    gained = int(np.sum(correct & ~reference_correct))
    lost = int(np.sum(~correct & reference_correct))
    more = gained - lost
    total = count + 2.0
    centre = more / total
    standard_error = math.sqrt((gained + lost + 1.0) - more**2 / total) / total
    reach = float(stats.norm.ppf((1.0 + confidence) / 2.0)) * standard_error
    return PairedDifference(
        difference=more / count,
        low=max(centre - reach, -1.0),
        high=min(centre + reach, 1.0),
        standard_error=standard_error,
    )


def bootstrap_difference(
    predicted: NDArray[np.integer],
    reference: NDArray[np.integer],
    labels: NDArray[np.integer],
    measure: Measure,
    confidence: float = 0.95,
    *,
    seed: int = 0,
) -> PairedDifference:
    """Difference of two networks' balanced accuracy or macro-F1 on the same images, with its interval.

    A paired bootstrap within classes: of every class as many images as it has are drawn with replacement, and both
    networks are measured on these. The interval is that of percentiles over 2,000 draws, the standard error their
    deviation. A class with few images tells little, and the interval says so; one with a single image cannot tell how
    much it varies, and adds nothing.

    Args:
        predicted, reference: [N] classes that each network names.
        labels: [N], all ≥ 0.
        measure: over the classes that have images.
        seed: of the draws.
    Raises:
        ValueError: not the same images, or none.
    Source: Efron & Tibshirani 1993, "An Introduction to the Bootstrap", ch. 8 (strata) and 13 (percentiles).
    """
    if not predicted.shape == reference.shape == labels.shape or labels.size == 0:
        raise ValueError(f"paired images are needed, got {predicted.shape}, {reference.shape} and {labels.shape}")
    generator = np.random.default_rng(seed)
    number = 1 + max(int(each.max()) for each in (predicted, reference, labels))
    there, sizes = np.unique(labels, return_counts=True)
    # Of each network by class: images that were taken for it, and those of its own among them. Column 0 is as observed.
    taken, right = np.zeros((2, 2, number, 1 + RESAMPLES))
    for one, size in zip(there, sizes, strict=True):
        mine = labels == one
        answers, counts = np.unique(np.stack([predicted[mine], reference[mine]], 1), axis=0, return_counts=True)
        drawn = np.concatenate([counts[:, None], generator.multinomial(size, counts / size, RESAMPLES).T], 1)
        for side in (0, 1):
            np.add.at(taken[side], answers[:, side], drawn)
            right[side, one] = drawn[answers[:, side] == one].sum(0)
    of_class, images = right[:, there], sizes[:, None]
    by_class = of_class / images if measure == "balanced_accuracy" else 2 * of_class / (images + taken[:, there])
    gaps = by_class[0].mean(0) - by_class[1].mean(0)
    low, high = np.quantile(gaps[1:], [(1 - confidence) / 2, (1 + confidence) / 2])
    return PairedDifference(float(gaps[0]), float(low), float(high), float(gaps[1:].std(ddof=1)))
