"""The one-dimensional solvers against POT and SciPy."""

import math

import numpy as np
import ot
import pytest
import torch
from scipy.stats import wasserstein_distance

from gkd_core.losses.transport import one_dimensional_distance, quantile_distance, random_directions, sliced_distance
from gkd_core.losses.wasserstein import wasserstein_loss

SIZES = [(16, 16), (16, 9), (4, 16), (1, 7), (49, 36)]


def points(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_unequal_numbers_by_hand():
    # {0, 6} against {0, 3, 6}: levels 0, ⅓, ½, ⅔, 1; only [⅓, ½] (0 against 3) and [½, ⅔] (6 against 3) differ.
    value = one_dimensional_distance(torch.tensor([6.0, 0.0]), torch.tensor([3.0, 6.0, 0.0]))
    assert value.item() == pytest.approx(3 / 6 + 3 / 6)


@pytest.mark.parametrize(("n", "m"), SIZES)
def test_one_dimension_against_scipy(n, m):
    x, y = points(3, n), points(3, m, seed=1)
    expected = [wasserstein_distance(x[i].numpy(), y[i].numpy()) for i in range(3)]
    assert one_dimensional_distance(x, y).tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("student_grid", "teacher_grid"), [((4, 4), (4, 4)), ((2, 3), (5, 5))])
def test_quantile_is_scipys_distance_per_channel(student_grid, teacher_grid):
    student, teacher = points(2, 3, *student_grid), points(2, 3, *teacher_grid, seed=1)
    expected = np.mean(
        [wasserstein_distance(student[b, c].flatten(), teacher[b, c].flatten()) for b in range(2) for c in range(3)]
    )
    assert wasserstein_loss(student, teacher, solver="quantile").item() == pytest.approx(expected, abs=1e-12)
    assert quantile_distance(student, teacher).shape == (2,)


@pytest.mark.parametrize(("n", "m"), SIZES)
@pytest.mark.parametrize("dimension", [2, 8])
def test_sliced_against_pot_with_the_same_directions(n, m, dimension):
    x, y = points(2, n, dimension), points(2, m, dimension, seed=1)
    directions = random_directions(dimension, 20, 3, x)
    value = sliced_distance(x, y, directions) / math.sqrt(math.pi * dimension / 2)
    for b in range(2):
        expected = ot.sliced_wasserstein_distance(x[b].numpy(), y[b].numpy(), projections=directions.numpy(), p=1)
        assert value[b].item() == pytest.approx(expected, abs=1e-12)


def test_directions_are_unit_seeded_and_leave_the_global_generator_alone():
    state = torch.get_rng_state()
    first, again, other = (random_directions(5, 7, seed, torch.zeros(1)) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.allclose(first.norm(dim=0), torch.ones(7))


def test_seed_reaches_the_directions():
    student, teacher = points(2, 4, 2, 2), points(2, 4, 2, 2, seed=1)
    one, again, other = (wasserstein_loss(student, teacher, solver="sliced", seed=seed) for seed in (1, 1, 2))
    assert one == again
    assert one != other
