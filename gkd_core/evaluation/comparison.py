"""Methods compared over several seeds: accuracies, and differences to a reference paired by seed."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Difference:
    """Mean of a method's accuracy minus the reference's, seed by seed.

    Attributes:
        mean: in [−1, 1].
        low, high: Student's t-interval of the mean; None with fewer than two common seeds.
        seeds: how many seeds both have.
    """

    mean: float
    low: float | None
    high: float | None
    seeds: int

    @property
    def separable(self) -> bool:
        """The interval leaves out zero."""
        return self.low is not None and self.high is not None and not self.low <= 0.0 <= self.high


@dataclass(frozen=True)
class Standing:
    """One method in a comparison.

    Attributes:
        mean: accuracy over its seeds, in [0, 1].
        deviation: standard deviation over its seeds (n − 1); None with one seed.
        difference: to the reference; None for the reference itself, and without a common seed.
    """

    method: str
    seeds: tuple[int, ...]
    mean: float
    deviation: float | None
    difference: Difference | None


def standings(
    accuracies: Mapping[str, Mapping[int, float]], reference: str, confidence: float = 0.95
) -> list[Standing]:
    """Every method's standing, the most accurate first.

    Two trainings of one seed share their initial weights, the order of their images and their augmentation, so the
    difference is taken within a seed: what the seeds differ by cancels. With few seeds the interval is wide, and it is
    not corrected for the number of methods.

    Args:
        accuracies: method → seed → accuracy in [0, 1]; a method without seeds is left out.
        reference: the method that the others are compared with.
    """
    base = accuracies.get(reference, {})
    found = []
    for method, by_seed in accuracies.items():
        if not by_seed:
            continue
        values = np.array([by_seed[seed] for seed in sorted(by_seed)])
        common = sorted(set(by_seed) & set(base)) if method != reference else []
        gaps = np.array([by_seed[seed] - base[seed] for seed in common])
        found.append(
            Standing(
                method=method,
                seeds=tuple(sorted(by_seed)),
                mean=float(values.mean()),
                deviation=float(values.std(ddof=1)) if len(values) > 1 else None,
                difference=_interval(gaps, confidence) if len(gaps) else None,
            )
        )
    return sorted(found, key=lambda standing: (-standing.mean, standing.method))


def _interval(gaps: np.ndarray, confidence: float) -> Difference:
    mean = float(gaps.mean())
    if len(gaps) < 2:
        return Difference(mean, None, None, len(gaps))
    reach = float(stats.t.ppf((1 + confidence) / 2, len(gaps) - 1) * stats.sem(gaps))
    return Difference(mean, mean - reach, mean + reach, len(gaps))
