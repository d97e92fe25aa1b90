"""Adaptive Gompertz: the weight follows how far the student has come instead of how long it has trained."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from gkd_core.schedules import Gompertz, rise

FEWEST_POINTS = 5
LEAST_RISE = 0.01  # of accuracy; below it there is no curve to follow
LEAST_EXPLAINED = 0.5  # share of the points' variance that the curve must account for
FASTEST_RATE = 20.0  # per epoch: all of the rise within one
SLOWEST_RISE = 0.01  # of the rate at which a curve takes the whole training: a straight line, no curve


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


class AdaptiveGompertz:
    """β = β_min + (β_max − β_min)·u(t), where u = exp(−exp(b̂ − ĉ·t)) is read off the student's learning curve.

    Before every epoch the curve is fitted to the validation accuracies so far; u never falls. Until there is a fit, and
    after an epoch whose fit is degenerate, the fixed curve's u is used. What it does is a pure function of the
    accuracies it has observed, so a resumed training that hands it its history goes on as if never interrupted.

    Args:
        fixed: the curve to use until the student's own is known; its β_min and β_max hold for both.
        epochs: length of the training.
    Source: the future work that Yang & Qin 2025 (arXiv:2510.21649) name; how is ours.
    """

    def __init__(self, fixed: Gompertz, epochs: float) -> None:
        self.fixed = fixed
        self.epochs = epochs
        self._observed: tuple[float, ...] = ()
        self._curve: LearningCurve | None = None
        self._floor = 0.0

    def observe(self, accuracies: Sequence[float]) -> str:
        """Take note of the student's validation accuracies after epochs 1, 2, …, all of them each time.

        Returns:
            Which curve the next epoch follows, for the log.
        """
        known = len(self._observed)
        if tuple(accuracies[:known]) != self._observed:
            self._observed, self._curve, self._floor, known = (), None, 0.0, 0
        for count in range(known + 1, len(accuracies) + 1):
            self._floor = max(self._floor, self._progress(float(count)))  # where the epoch that ended has led
            self._curve = fit_learning_curve(accuracies[:count], epochs=self.epochs)
        self._observed = tuple(accuracies)
        if self._curve is not None:
            curve = self._curve
            return f"β follows the student: inflection at epoch {curve.b / curve.c:.2f}, rate {curve.c:.3f} per epoch"
        if len(accuracies) < FEWEST_POINTS:
            return f"β follows the fixed curve: {len(accuracies)} of {FEWEST_POINTS} accuracies"
        return "β follows the fixed curve: the student's accuracies do not make one"

    @overload
    def __call__(self, time: float) -> float: ...
    @overload
    def __call__(self, time: Any) -> Any: ...
    def __call__(self, time: Any) -> Any:
        """β at `time`, in epochs."""
        progress = self._progress(time)
        progress = progress.clip(self._floor) if hasattr(progress, "clip") else max(self._floor, progress)
        return self.fixed.beta_min + (self.fixed.beta_max - self.fixed.beta_min) * progress

    def _progress(self, time: Any) -> Any:
        curve = self._curve or self.fixed
        return rise(time, curve.b, curve.c)
