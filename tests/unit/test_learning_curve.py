"""Adaptive Gompertz on synthetic learning curves."""

import math

import numpy as np
import pytest
import torch

from gkd_core.learning_curve import FEWEST_POINTS, fit_learning_curve
from gkd_core.schedules import AdaptiveGompertz, Gompertz, Observer, create_schedule


def curve(start: float, height: float, b: float, c: float, epochs: int) -> list[float]:
    return [start + height * math.exp(-math.exp(b - c * t)) for t in range(1, epochs + 1)]


def schedule(epochs: int = 30) -> AdaptiveGompertz:
    made = create_schedule("adaptive-gompertz", epochs=epochs)
    assert isinstance(made, AdaptiveGompertz)
    assert isinstance(made, Observer)
    return made


@pytest.mark.parametrize(
    ("start", "height", "b", "c"),
    [(0.1, 0.8, 2.0, 0.4), (0.0, 0.6, 1.0, 0.25), (0.3, 0.4, 3.0, 0.3), (0.2, 0.5, 0.5, 1.0)],
)
def test_b_and_c_are_found_again(start, height, b, c):
    found = fit_learning_curve(curve(start, height, b, c, 30), epochs=30)
    assert found is not None
    assert found.b == pytest.approx(b, rel=1e-3)
    assert found.c == pytest.approx(c, rel=1e-3)
    assert found.start == pytest.approx(start, abs=1e-3)
    assert found.height == pytest.approx(height, rel=1e-3)


def test_noise_moves_them_a_little():
    noise = np.random.default_rng(0).normal(0, 0.01, 30)
    found = fit_learning_curve(list(np.array(curve(0.1, 0.8, 2.0, 0.4, 30)) + noise), epochs=30)
    assert found is not None
    assert found.b / found.c == pytest.approx(5.0, rel=0.1)
    assert found.c == pytest.approx(0.4, rel=0.2)


def test_a_student_that_learned_most_at_once_makes_a_curve():
    """Concave from the first epoch on, as real ones often are: the inflection is held at 0, not refused."""
    found = fit_learning_curve([0.9 - 0.4 * math.exp(-0.5 * t) for t in range(1, 11)], epochs=10)
    assert found is not None
    assert 0 <= found.b / found.c < 0.5


@pytest.mark.parametrize(
    "accuracies",
    [
        curve(0.1, 0.8, 2.0, 0.4, FEWEST_POINTS - 1),
        [0.5] * 10,
        [0.5, 0.504, 0.502, 0.499, 0.501, 0.503],
        [0.9 - 0.05 * t for t in range(10)],
        list(np.random.default_rng(1).uniform(0.3, 0.7, 7)),
        [0.1, 0.2, math.nan, 0.4, 0.5, 0.6],
    ],
    ids=["few", "flat", "nearly flat", "falling", "noise", "not a number"],
)
def test_what_makes_no_curve_falls_back_to_the_fixed_one(accuracies):
    assert fit_learning_curve(accuracies, epochs=20) is None
    adaptive, fixed = schedule(20), create_schedule("gompertz", epochs=20)
    assert "fixed curve" in adaptive.observe(accuracies)
    now = len(accuracies)
    for t in (now, now + 0.5, now + 1.0):
        assert adaptive(t) == pytest.approx(fixed(t), abs=0.02)  # a fit of an earlier epoch may have led further


def test_until_there_are_five_points_it_is_the_fixed_curve_to_the_bit():
    adaptive, fixed = schedule(), create_schedule("gompertz", epochs=30)
    points = curve(0.1, 0.8, 2.0, 0.4, 30)
    for epoch in range(FEWEST_POINTS):
        assert adaptive.observe(points[:epoch]) == f"β follows the fixed curve: {epoch} of 5 accuracies"
        for t in (epoch, epoch + 0.3, epoch + 0.9):
            assert adaptive(t) == fixed(t)


def test_with_a_fit_it_follows_the_student():
    """A student at twice the fixed curve's pace: β is the formula with the student's b and c."""
    adaptive = schedule(30)
    points = curve(0.1, 0.8, 2.0, 14 / 30, 30)
    assert adaptive.observe(points[:12]).startswith("β follows the student: inflection at epoch 4.2")
    own = Gompertz(0.1, 1.0, b=2.0, c=14 / 30)
    for t in (12.0, 12.5, 12.9):
        assert adaptive(t) == pytest.approx(own(t), abs=1e-3)


@pytest.mark.parametrize("seed", range(2))
def test_beta_never_falls(seed):
    random = np.random.default_rng(seed)
    points = np.clip(np.array(curve(0.1, 0.6, 1.5, 0.3, 20)) + random.normal(0, 0.08, 20), 0, 1).tolist()
    adaptive, values = schedule(20), []
    for epoch in range(20):
        adaptive.observe(points[:epoch])
        values += [adaptive(epoch + step / 8) for step in range(8)]
    assert (np.diff(values) >= 0).all()
    assert 0.1 <= values[0] <= values[-1] <= 1.0


def test_a_resumed_one_follows_the_same_curve_to_the_bit():
    random = np.random.default_rng(7)
    points = (np.array(curve(0.1, 0.6, 1.5, 0.3, 20)) + random.normal(0, 0.05, 20)).tolist()
    whole = schedule(20)
    for epoch in range(10):
        whole.observe(points[:epoch])
    resumed = schedule(20)
    note = resumed.observe(points[:9])
    assert note == whole.observe(points[:9])
    assert [resumed(t) for t in (9.0, 9.25, 9.75)] == [whole(t) for t in (9.0, 9.25, 9.75)]


def test_another_history_starts_anew():
    used, fresh = schedule(20), schedule(20)
    used.observe(curve(0.1, 0.8, 2.0, 0.4, 8))
    other = curve(0.2, 0.3, 1.0, 0.2, 6)
    used.observe(other)
    fresh.observe(other)
    assert used(6.5) == fresh(6.5)


def test_arrays_and_tensors_after_a_fit():
    adaptive = schedule(30)
    adaptive.observe(curve(0.1, 0.8, 2.0, 0.4, 12))
    times = np.linspace(12, 13, 5)
    values = [adaptive(float(t)) for t in times]
    assert adaptive(times) == pytest.approx(values)
    assert adaptive(torch.from_numpy(times)).tolist() == pytest.approx(values)
