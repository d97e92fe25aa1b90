"""The Gompertz curve, and the one that a student's validation accuracies follow."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FEWEST_POINTS = 5
LEAST_RISE = 0.01  # of accuracy; below it there is no curve to follow
LEAST_EXPLAINED = 0.5  # share of the points' variance that the curve must account for
FASTEST_RATE = 20.0  # per epoch: all of the rise within one
SLOWEST_RISE = 0.01  # of the rate at which a curve takes the whole training: a straight line, no curve


def rise(time: Any, b: float, c: float) -> Any:
    """exp(−exp(b − c·t)), from 0 to 1, in the kind of `time`: a number, a numpy array or a torch tensor."""
    return _exp(-_exp(b - c * time))


@dataclass(frozen=True)
class LearningCurve:
    """a₀ + A·exp(−exp(b − c·t)), t in epochs.

    Attributes:
        start: a₀.
        height: A > 0.
        b, c: displacement and rate per epoch, c > 0.
    """

    start: float
    height: float
    b: float
    c: float


def fit_learning_curve(accuracies: Sequence[float], *, epochs: float) -> LearningCurve | None:
    """The curve through a student's validation accuracies, or None where there is none to speak of.

    Bounds: A > 0, a₀ ≥ 0, a₀ + A ≤ 1, c > 0, inflection b / c in [0, 2·epochs]. There is none to speak of with fewer
    than five points, without a rise, when the fit does not converge or explains less than half of the points' variance,
    and when it ends at a bound that means no curve (no height, no rate, an inflection out of sight). An inflection at 0
    is a curve: a student that learned most in its first epoch.

    Args:
        accuracies: after epochs 1, 2, …; in [0, 1].
        epochs: length of the training.
    """
    from scipy.optimize import curve_fit

    points: NDArray[np.float64] = np.asarray(accuracies, dtype=np.float64)
    if len(points) < FEWEST_POINTS or not np.isfinite(points).all() or np.ptp(points) < LEAST_RISE:
        return None
    times = np.arange(1, len(points) + 1, dtype=np.float64)

    # By share of what is left above a₀ and by inflection, so that the bounds are a box.
    def curve(t: Any, start: float, share: float, inflection: float, c: float) -> Any:
        return start + share * (1 - start) * rise(t, c * inflection, c)

    slowest = SLOWEST_RISE / epochs
    lower, upper = (0.0, 0.0, 0.0, slowest), (1.0, 1.0, 2.0 * epochs, FASTEST_RATE)
    low, high = float(points.min()), float(points.max())
    share = min(max((high - low) / max(1 - low, 1e-6), 1e-3), 1 - 1e-3)
    best: tuple[float, NDArray[np.float64]] | None = None
    # Where the rise lies is what a local search cannot find by itself.
    for inflection in (0.0, len(points) / 3, 2 * len(points) / 3, float(len(points))):
        guess = (min(max(low, 1e-3), 1 - 1e-3), share, max(inflection, 1e-3), 5.0 / len(points))
        try:
            found, _ = curve_fit(curve, times, points, p0=guess, bounds=(lower, upper))
        except RuntimeError:  # no convergence
            continue
        squares = float(np.square(curve(times, *found) - points).sum())
        if best is None or squares < best[0] * (1 - 1e-9):
            best = squares, found
    if best is None:
        return None
    squares, (start, share, inflection, c) = best
    height = share * (1 - start)
    explained = 1 - squares / float(np.square(points - points.mean()).sum())
    at_a_bound = height < LEAST_RISE or inflection > 1.999 * epochs or c < 1.001 * slowest
    if explained < LEAST_EXPLAINED or at_a_bound or not math.isfinite(explained):
        return None
    return LearningCurve(float(start), float(height), float(c * inflection), float(c))


def _exp(value: Any) -> Any:
    if hasattr(value, "exp"):  # a torch tensor
        return value.exp()
    with np.errstate(over="ignore"):  # exp(−inf) = 0 is the right limit far before the rise
        result = np.exp(value)
    return float(result) if np.ndim(value) == 0 else result
