"""What an exported model answers on the validation images: what a server's own answers are compared with.

The comparison is by classes named and by confidence, for these are all that a server sees: it has no labels. Imports no
torch.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gkd_core.files import Shape

REFERENCE: Shape = {"images": int, "predicted": [int], "mean_confidence": float}
DIGITS = 4  # of the mean confidence: CPUs differ in the seventh


def confidences(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """The probability [B] of the class named, which is the largest; NaN where a logit is not finite.

    Args:
        logits: [B, C].
    """
    with np.errstate(invalid="ignore", over="ignore"):
        shifted = logits - logits.max(axis=1, keepdims=True)
        found: NDArray[np.float32] = 1 / np.exp(shifted).sum(axis=1)
    return found


def reference(logits: NDArray[np.float32]) -> dict[str, Any]:
    """The manifest's entry `reference`: images, predicted (how many of them by class), mean_confidence.

    Args:
        logits: [N, C] of the model on the validation images, N ≥ 1, finite.
    """
    predicted = np.bincount(logits.argmax(axis=1), minlength=logits.shape[1])
    mean = float(confidences(logits).mean(dtype=np.float64))
    return {"images": len(logits), "predicted": predicted.tolist(), "mean_confidence": round(mean, DIGITS)}


def total_variation(counts: ArrayLike, expected: ArrayLike) -> float:
    """½ Σ_c |p_c − r_c| of two lists of counts by class as shares p and r: 0 when they are alike, 1 when no class is in
    both. It is the part of all images that would have to be named otherwise to make one mix of the other; NaN where a
    list is empty or sums to 0.
    """
    first, second = np.asarray(counts, np.float64), np.asarray(expected, np.float64)
    if first.sum() <= 0 or second.sum() <= 0:
        return float("nan")
    return float(np.abs(first / first.sum() - second / second.sum()).sum() / 2)
