"""How much a test set of this size can tell: intervals for an accuracy, and for the difference of two."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats


def wilson_interval(hits: int, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for a proportion `hits / count`, both ends in [0, 1].

    Source: Wilson 1927, J. Am. Stat. Assoc. 22:209; computed by scipy.
    """
    interval = stats.binomtest(hits, count).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


@dataclass(frozen=True)
class PairedDifference:
    """Accuracy of one network minus another's, on the same images.

    Attributes:
        difference: as observed, in [−1, 1].
        low, high: ends of the interval.
        standard_error: the interval's, which is never 0, not even where both networks are right on the same images.
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
