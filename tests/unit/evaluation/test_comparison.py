"""Standings over seeds, held against scipy's paired t-test and a t-table."""

import math

import numpy as np
import pytest
from scipy import stats

from gkd_core.evaluation.comparison import standings


def by_method(found):
    return {standing.method: standing for standing in found}


def test_the_interval_is_the_paired_t_tests():
    rng = np.random.default_rng(0)
    kd, other = rng.normal(0.6, 0.02, 5), rng.normal(0.61, 0.02, 5)
    found = by_method(standings({"kd": dict(enumerate(kd)), "dkd": dict(enumerate(other))}, "kd"))
    expected = stats.ttest_rel(other, kd).confidence_interval(0.95)
    difference = found["dkd"].difference
    assert (difference.low, difference.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert difference.mean == pytest.approx((other - kd).mean())
    assert found["kd"].difference is None


def test_by_hand_with_the_t_table():
    found = by_method(standings({"kd": {0: 0.50, 1: 0.52, 2: 0.54}, "at": {0: 0.51, 1: 0.54, 2: 0.57}}, "kd"))
    difference = found["at"].difference  # gaps .01 .02 .03: mean .02, standard deviation .01, t(2, .975) = 4.303
    assert difference.mean == pytest.approx(0.02)
    assert difference.high - difference.mean == pytest.approx(4.303 * 0.01 / math.sqrt(3), rel=1e-4)
    assert not difference.separable
    assert found["at"].mean == pytest.approx(0.54)
    assert found["at"].deviation == pytest.approx(0.03)


def test_pairs_by_seed_whatever_the_order_and_leaves_out_seeds_that_only_one_has():
    found = by_method(standings({"kd": {2: 0.4, 0: 0.2, 9: 0.9}, "at": {0: 0.3, 2: 0.5, 5: 0.0}}, "kd"))
    difference = found["at"].difference
    assert difference.seeds == 2
    assert difference.mean == pytest.approx(0.1)
    assert difference.separable  # the same gap twice
    assert found["at"].seeds == (0, 2, 5)


def test_one_seed_has_no_interval_and_tells_nothing_apart():
    found = by_method(standings({"kd": {0: 0.5}, "at": {0: 0.7}, "ce": {}}, "kd"))
    assert found["at"].difference.low is None
    assert not found["at"].difference.separable
    assert found["at"].deviation is None
    assert "ce" not in found


def test_the_best_comes_first_and_without_the_reference_there_are_no_differences():
    found = standings({"at": {0: 0.3}, "rkd": {0: 0.4}}, "kd")
    assert [standing.method for standing in found] == ["rkd", "at"]
    assert all(standing.difference is None for standing in found)
