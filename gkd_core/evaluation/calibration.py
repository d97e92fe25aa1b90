"""Whether a network is right as often as it says it is."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gkd_core.evaluation.quality import Labels, Logits, log_probabilities


@dataclass(frozen=True)
class Reliability:
    """Images grouped by confidence (the largest probability) in bins of equal width over (0, 1].

    Attributes:
        edges: [bins + 1]; a bin holds its upper edge, not its lower.
        count: [bins] images.
        confidence: [bins] their mean confidence, NaN in an empty bin.
        accuracy: [bins] the part of them that was right, NaN in an empty bin.
    """

    edges: NDArray[np.float64]
    count: NDArray[np.int64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]

    @property
    def expected_calibration_error(self) -> float:
        """Mean |accuracy − confidence| over the images, binned.

        Source: Guo et al. 2017, eq. 3 (arXiv:1706.04599).
        """
        filled = self.count > 0
        gaps = np.abs(self.accuracy[filled] - self.confidence[filled])
        return float((gaps * self.count[filled]).sum() / self.count.sum())


def reliability(logits: Logits, labels: Labels, bins: int = 15) -> Reliability:
    """The reliability diagram of logits [N, C] against labels [N]."""
    confidence = np.exp(log_probabilities(logits)).max(1)
    correct = logits.argmax(1) == labels
    edges = np.linspace(0.0, 1.0, bins + 1)
    place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        return Reliability(
            edges=edges,
            count=count,
            confidence=np.bincount(place, weights=confidence, minlength=bins) / count,
            accuracy=np.bincount(place, weights=correct, minlength=bins) / count,
        )
