"""The weight β(t) of distillation over training: pure functions of time, plottable, the same for every method.

Time `t` is in epochs and continuous (epoch + step / steps_per_epoch). Every schedule takes a number, a numpy array or
a torch tensor and gives back the same kind.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from gkd_core.errors import GkdError, unknown
from gkd_core.learning_curve import FEWEST_POINTS, LearningCurve, fit_learning_curve, rise
from gkd_core.methods import SCHEDULES

# "Saturated" means this part of the rise is done.
SATURATED = 0.99


Schedule = Callable[[Any], Any]
"""β as a function of the time in epochs: a number, a numpy array or a torch tensor in, the same kind out."""


@runtime_checkable
class Observer(Protocol):
    """A schedule that also follows the student."""

    def observe(self, accuracies: Sequence[float]) -> str:
        """Take note of the validation accuracies after epochs 1, 2, …, all of them each time; a line for the log."""


@dataclass(frozen=True)
class Gompertz:
    """β(t) = β_min + (β_max − β_min)·exp(−exp(b − c·t)).

    The inflection lies at t* = b / c, where the curve stands at 1/e of its rise. Note that β(0) is above β_min: by
    exp(−exp(b)) of the rise.

    Attributes:
        beta_min, beta_max: the limits for t → −∞ and t → ∞.
        b: displacement.
        c: rate per epoch, above 0 (the paper calls b the growth rate; it is not).
    Source: Yang & Qin 2025, eq. 6 (arXiv:2510.21649).
    """

    beta_min: float
    beta_max: float
    b: float
    c: float

    def __post_init__(self) -> None:
        """Raises: GkdError: c is not positive, so the curve would not rise."""
        if not self.c > 0:
            raise GkdError(f"distill.curve.c is {self.c:g}: the Gompertz curve rises only for c above 0")

    @classmethod
    def from_fractions(
        cls, beta_min: float, beta_max: float, *, inflection: float, saturation: float, epochs: float
    ) -> "Gompertz":
        """The curve with its inflection at one fraction of training and 99 % of its rise at a later one.

        From b = c·p·T and b − c·q·T = ln(−ln 0.99): c = −ln(−ln 0.99) / ((q − p)·T). An early inflection with a late
        saturation starts well above `beta_min`.

        Args:
            inflection: p, fraction of training.
            saturation: q, fraction of training, p < q.
            epochs: T, length of the training.
        Raises:
            GkdError: p is not before q.
        """
        if not inflection < saturation:
            raise GkdError(
                f"distill.curve.inflection ({inflection:g}) must lie before distill.curve.saturation ({saturation:g})"
            )
        c = -math.log(-math.log(SATURATED)) / ((saturation - inflection) * epochs)
        return cls(beta_min, beta_max, b=c * inflection * epochs, c=c)

    def __call__(self, time: Any) -> Any:
        """β at `time`, in epochs."""
        return self.beta_min + (self.beta_max - self.beta_min) * rise(time, self.b, self.c)


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

    def __call__(self, time: Any) -> Any:
        """β at `time`, in epochs."""
        progress = self._progress(time)
        progress = progress.clip(self._floor) if hasattr(progress, "clip") else max(self._floor, progress)
        return self.fixed.beta_min + (self.fixed.beta_max - self.fixed.beta_min) * progress

    def _progress(self, time: Any) -> Any:
        curve = self._curve or self.fixed
        return rise(time, curve.b, curve.c)


def create_schedule(
    name: str,
    *,
    epochs: float,
    beta_min: float = 0.1,
    beta_max: float = 1.0,
    b: float | None = None,
    c: float | None = None,
    inflection: float | None = None,
    saturation: float | None = None,
) -> Schedule:
    """A schedule by name.

    Args:
        name: gompertz; reversed-gompertz, the same run backwards (§2 of the Gompertz paper argues for guidance that
            fades, its eq. 6 for one that grows); adaptive-gompertz; linear, a straight line, and cosine, half a cosine,
            from `beta_min` at 0 to `beta_max` at `epochs`; or constant, which is `beta_max`.
        epochs: length of the training.
        beta_min, beta_max: β before and after the rise.
        b, c: shape of the Gompertz curve; the paper gives neither. None is b = 2, c = 7 / epochs, which puts β at
            .101, .123, .349, .820, .966, .994 after 0, 10, 25, 50, 75, 100 % of training.
        inflection, saturation: instead of b and c, see `Gompertz.from_fractions`.
    Raises:
        GkdError: the name is unknown, or the shape is not a curve that rises.
    """
    height = beta_max - beta_min
    match name:
        case "linear":
            return lambda time: beta_min + height * _fraction(time, epochs)
        case "cosine":
            return lambda time: beta_min + height * (1 - _cos(math.pi * _fraction(time, epochs))) / 2
        case "constant":
            return lambda time: beta_max + 0.0 * time
    if name not in SCHEDULES:
        raise GkdError(unknown("distill.schedule", name, SCHEDULES))
    if inflection is None and saturation is None:
        curve = Gompertz(beta_min, beta_max, 2.0 if b is None else b, 7.0 / epochs if c is None else c)
    elif inflection is None or saturation is None:
        raise GkdError("distill.curve.inflection and distill.curve.saturation go together: give both or neither")
    elif b is not None or c is not None:
        raise GkdError("distill.curve.inflection and saturation replace b and c: give one pair, not both")
    else:
        curve = Gompertz.from_fractions(beta_min, beta_max, inflection=inflection, saturation=saturation, epochs=epochs)
    match name:
        case "reversed-gompertz":
            return lambda time: curve(epochs - time)
        case "adaptive-gompertz":
            return AdaptiveGompertz(curve, epochs)
    return curve


def _cos(value: Any) -> Any:
    if hasattr(value, "cos"):  # a torch tensor
        return value.cos()
    return float(np.cos(value)) if np.ndim(value) == 0 else np.cos(value)


def _fraction(time: Any, epochs: float) -> Any:
    fraction = time / epochs
    return fraction.clip(0.0, 1.0) if hasattr(fraction, "clip") else min(max(fraction, 0.0), 1.0)
