import math

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score

from gkd_core.evaluation.statistics import PairedDifference, bootstrap_difference, paired_difference, wilson_interval


def outcomes(both: int, only_ours: int, only_theirs: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    cells = (
        [(True, True)] * both + [(True, False)] * only_ours + [(False, True)] * only_theirs + [(False, False)] * neither
    )
    ours, theirs = zip(*cells, strict=True)
    return np.array(ours), np.array(theirs)


def test_wilson_interval_by_hand() -> None:
    # p = 8/10, z = 1.96: (p + z²/2n ± z·√(p(1−p)/n + z²/4n²)) / (1 + z²/n)
    z = 1.959964
    centre = (0.8 + z**2 / 20) / (1 + z**2 / 10)
    reach = z * math.sqrt(0.016 + z**2 / 400) / (1 + z**2 / 10)
    assert wilson_interval(8, 10) == pytest.approx((centre - reach, centre + reach), abs=1e-6)
    assert wilson_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)


def test_paired_difference_by_hand() -> None:
    # 12 images only ours, 4 only theirs, of 100. Half an image more in each cell: 12.5 and 4.5 of 102.
    # centre 8/102; variance (17 − 64/102)/102².
    found = paired_difference(*outcomes(70, 12, 4, 14))
    assert found.difference == pytest.approx(0.08)
    assert found.standard_error == pytest.approx(math.sqrt(16.372549) / 102, rel=1e-6)
    assert (found.low, found.high) == pytest.approx((0.000681, 0.156182), abs=2e-6)


def test_identical_networks_are_not_told_apart_with_certainty() -> None:
    ours, _ = outcomes(90, 0, 0, 10)
    found = paired_difference(ours, ours)
    assert found.difference == 0.0
    assert found.low < 0.0 < found.high
    assert found.standard_error == pytest.approx(1 / 102)


def test_paired_difference_agrees_with_a_bootstrap() -> None:
    random = np.random.default_rng(0)
    ours = random.random(2000) < 0.85
    theirs = np.where(random.random(2000) < 0.9, ours, random.random(2000) < 0.8)
    gains = ours.astype(int) - theirs.astype(int)
    resampled = random.choice(gains, (4000, 2000)).mean(1)
    found = paired_difference(ours, theirs)
    assert found.standard_error == pytest.approx(resampled.std(), rel=0.05)
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(resampled, (2.5, 97.5))), abs=0.001)


def test_one_sided_evidence_at_the_edge_stays_in_range() -> None:
    found = paired_difference(*outcomes(0, 2, 0, 0))
    assert found.difference == 1.0
    assert -1.0 <= found.low <= found.high <= 1.0


def test_unpaired_images_are_refused() -> None:
    with pytest.raises(ValueError, match="paired images are needed"):
        paired_difference(np.array([True]), np.array([True, False]))
    with pytest.raises(ValueError, match="paired images are needed"):
        paired_difference(np.array([], dtype=bool), np.array([], dtype=bool))


SIZES = (400, 120, 40)
LABELS = np.repeat([0, 1, 2], SIZES)


def answers(right: tuple[float, ...], seed: int) -> np.ndarray:
    """Of each class that part right, the rest said to be the next one."""
    hit = np.random.default_rng(seed).random(len(LABELS)) < np.array(right)[LABELS]
    return np.where(hit, LABELS, (LABELS + 1) % 3)


def test_the_bootstrap_of_balanced_accuracy_has_the_error_of_its_formula() -> None:
    """A mean over classes of means over their images: variance Σ_c v_c / n_c / C², v_c of the images' differences."""
    ours, theirs = answers((0.9, 0.7, 0.6), 0), answers((0.95, 0.6, 0.3), 1)
    found = bootstrap_difference(ours, theirs, LABELS, "balanced_accuracy")
    gaps = (ours == LABELS).astype(float) - (theirs == LABELS)
    by_class = [gaps[one == LABELS] for one in range(3)]
    expected = math.sqrt(sum(each.var() / len(each) for each in by_class)) / 3
    assert found.difference == pytest.approx(np.mean([each.mean() for each in by_class]))
    assert found.difference == pytest.approx(
        balanced_accuracy_score(LABELS, ours) - balanced_accuracy_score(LABELS, theirs)
    )
    assert found.standard_error == pytest.approx(expected, rel=0.06)
    assert (found.low, found.high) == pytest.approx(
        (found.difference - 1.96 * expected, found.difference + 1.96 * expected), abs=0.3 * expected
    )


def test_the_bootstrap_of_macro_f1_is_that_of_images_drawn_one_by_one() -> None:
    ours, theirs = answers((0.9, 0.7, 0.6), 0), answers((0.95, 0.6, 0.3), 1)
    found = bootstrap_difference(ours, theirs, LABELS, "macro_f1")
    assert found.difference == pytest.approx(
        f1_score(LABELS, ours, average="macro") - f1_score(LABELS, theirs, average="macro")
    )
    random, drawn = np.random.default_rng(3), []
    places = [np.flatnonzero(one == LABELS) for one in range(3)]
    for _ in range(400):
        rows = np.concatenate([random.choice(own, len(own)) for own in places])
        confusions = [np.bincount(LABELS[rows] * 3 + each[rows], minlength=9).reshape(3, 3) for each in (ours, theirs)]
        f1 = [np.mean(2 * np.diag(c) / (c.sum(0) + c.sum(1))) for c in confusions]
        drawn.append(f1[0] - f1[1])
    assert found.standard_error == pytest.approx(np.std(drawn), rel=0.12)
    assert (found.low, found.high) == pytest.approx(
        tuple(np.percentile(drawn, (2.5, 97.5))), abs=0.5 * found.standard_error
    )


def test_the_bootstrap_is_a_function_of_its_seed() -> None:
    ours, theirs = answers((0.9, 0.7, 0.6), 0), answers((0.95, 0.6, 0.3), 1)
    one, again, other = (bootstrap_difference(ours, theirs, LABELS, "macro_f1", seed=seed) for seed in (0, 0, 1))
    assert one == again != other
    assert one.difference == other.difference
    wide = bootstrap_difference(ours, theirs, LABELS, "macro_f1", 0.99)
    assert wide.low < one.low < one.high < wide.high


def test_networks_that_say_the_same_have_no_difference() -> None:
    ours = answers((0.9, 0.7, 0.6), 0)
    assert bootstrap_difference(ours, ours, LABELS, "macro_f1") == PairedDifference(0.0, 0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="paired images are needed"):
        bootstrap_difference(ours, ours[:-1], LABELS, "macro_f1")
