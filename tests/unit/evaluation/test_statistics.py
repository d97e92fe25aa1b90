import math

import numpy as np
import pytest

from gkd_core.evaluation.statistics import paired_difference, wilson_interval


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
