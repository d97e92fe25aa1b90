"""Who is better than the reference: differences paired by seed, with intervals, corrected for how many there are."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from gkd_core.evaluation.statistics import holm


@dataclass(frozen=True)
class Difference:
    """Mean of a contender's accuracy, or of another measure, minus the reference's, seed by seed.

    The last five are None with fewer than two common seeds. What says "all" is corrected for the number of differences
    to the reference that a table has an interval of.

    Attributes:
        mean: in [−1, 1].
        seeds: how many seeds both have.
        low, high: Student's t-interval of the mean, which holds for this difference alone.
        low_all, high_all: Bonferroni's, which hold for all of them together.
        p_holm: p-value of the paired t-test, corrected by Holm.
        separable: Holm's test, at the level of the intervals, tells this difference from zero. It is the sharper of the
            two corrections: what it tells apart may have a zero near an end of Bonferroni's interval.
    """

    mean: float
    seeds: int
    low: float | None = None
    high: float | None = None
    low_all: float | None = None
    high_all: float | None = None
    p_holm: float | None = None
    separable: bool = False


@dataclass(frozen=True)
class Standing:
    """One contender in a comparison.

    Attributes:
        seeds: those it was trained with, rising.
        accuracies: by seed, in [0, 1].
        mean: over its seeds.
        deviation: standard deviation over its seeds (n − 1); None with one seed.
        difference: to the reference; None for the reference itself, and without a common seed.
    """

    name: str
    seeds: tuple[int, ...]
    accuracies: tuple[float, ...]
    mean: float
    deviation: float | None
    difference: Difference | None


def standings(
    accuracies: Mapping[str, Mapping[int, float]], reference: str, confidence: float = 0.95
) -> list[Standing]:
    """Every contender's standing, the most accurate first.

    Two trainings of one seed share their initial weights where the student is the same, the order of their images and
    their augmentation, so the difference is taken within a seed: what the seeds differ by cancels. With few seeds the
    intervals are wide.

    Args:
        accuracies: name → seed → accuracy in [0, 1]; a contender without seeds is left out.
        reference: name of the contender that the others are compared with.
    """
    base = accuracies.get(reference, {})
    gaps = {}
    for name, by_seed in accuracies.items():
        common = sorted(set(by_seed) & set(base)) if name != reference else []
        if common:
            gaps[name] = np.array([by_seed[seed] - base[seed] for seed in common])
    differences = _differences(gaps, confidence)
    found = []
    for name, by_seed in accuracies.items():
        if not by_seed:
            continue
        values = np.array([by_seed[seed] for seed in sorted(by_seed)])
        found.append(
            Standing(
                name=name,
                seeds=tuple(sorted(by_seed)),
                accuracies=tuple(map(float, values)),
                mean=float(values.mean()),
                deviation=float(values.std(ddof=1)) if len(values) > 1 else None,
                difference=differences.get(name),
            )
        )
    return sorted(found, key=lambda standing: (-standing.mean, standing.name))


def _differences(gaps: Mapping[str, NDArray[np.float64]], confidence: float) -> dict[str, Difference]:
    """Means of gaps with both intervals and the corrected p-value."""
    alpha = 1 - confidence
    several = {name: each for name, each in gaps.items() if len(each) > 1}
    corrected = dict(zip(several, holm([_p_value(each) for each in several.values()]), strict=True))
    found = {name: Difference(float(each.mean()), len(each)) for name, each in gaps.items()}
    for name, each in several.items():
        mean, p_holm = float(each.mean()), corrected[name]
        levels = np.array([alpha, alpha / len(several)])
        reach, reach_all = map(float, stats.t.ppf(1 - levels / 2, len(each) - 1) * stats.sem(each))
        ends = {"low": mean - reach, "high": mean + reach, "low_all": mean - reach_all, "high_all": mean + reach_all}
        found[name] = Difference(mean, len(each), **ends, p_holm=p_holm, separable=p_holm < alpha)
    return found


def _p_value(gaps: NDArray[np.float64]) -> float:
    """Two-sided, of Student's t-test that the mean is zero; gaps that are all the same leave no doubt."""
    error = stats.sem(gaps)
    if error == 0:
        return float(gaps[0] == 0)
    return float(2 * stats.t.sf(abs(gaps.mean()) / error, len(gaps) - 1))
