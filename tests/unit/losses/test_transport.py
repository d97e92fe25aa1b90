"""The solvers of optimal transport against POT and SciPy, and Sinkhorn's gradient against its regularised value."""

import math

import numpy as np
import ot
import pytest
import torch
from scipy.stats import wasserstein_distance
from torch.nn import functional

from gkd_core.losses.transport import (
    one_dimensional_distance,
    quantile_distance,
    random_directions,
    sinkhorn_distance,
    sinkhorn_plan,
    sliced_distance,
)
from gkd_core.losses.wasserstein import wasserstein_loss
from tests.unit.losses.draws import normal


def uniform(count):
    return np.full(count, 1 / count)


def pot_plan(cost, epsilon, iterations):
    n, m = cost.shape
    return ot.bregman.sinkhorn_log(
        uniform(n), uniform(m), cost.numpy(), reg=epsilon, numItermax=iterations, stopThr=0, warn=False
    )


@pytest.mark.parametrize(("n", "m"), [(16, 16), (1, 9), (64, 49)])
@pytest.mark.parametrize("epsilon", [0.02, 0.3])
@pytest.mark.parametrize("iterations", [1, 12, 100])
def test_the_plan_is_that_of_plain_log_domain_iterations(n, m, epsilon, iterations):
    cost = torch.cdist(normal(2, n, 5), normal(2, m, 5, seed=1))
    plan = sinkhorn_plan(cost, epsilon, iterations)
    for b in range(2):
        expected = pot_plan(cost[b], epsilon * cost[b].mean().item(), iterations)
        assert np.abs(plan[b].numpy() - expected).max() < 1e-14


@pytest.mark.parametrize(("n", "m"), [(16, 16), (9, 16)])
def test_value_and_gradient_against_pot(n, m):
    """POT's own envelope gradient of the regularised value; both run to convergence, agreement 1e-9."""
    x, y = normal(1, n, 6), normal(1, m, 6, seed=1)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    value = sinkhorn_distance(torch.cdist(ours, y), epsilon=0.05, iterations=2000)
    value.sum().backward()
    cost = torch.cdist(theirs, y)[0]
    solution = ot.solve(cost, reg=0.05 * cost.mean().item(), reg_type="KL", grad="envelope", max_iter=5000, tol=1e-14)
    solution.value.backward()
    assert value.item() == pytest.approx(solution.value_linear.item(), rel=1e-9)
    assert (ours.grad - theirs.grad).abs().max() < 1e-9


@pytest.mark.parametrize(("n", "m"), [(6, 6), (5, 8)])
def test_gradient_is_that_of_the_regularised_value(n, m):
    """Central differences of min ⟨P, C⟩ + ε·KL(P ‖ a⊗b), run to convergence at fixed ε: agreement 1e-9."""
    x, y = normal(1, n, 3), normal(1, m, 3, seed=1)
    cost = torch.cdist(x, y)
    epsilon = 0.2 * cost.mean().item()

    def regularised(moved):
        # The dual value, by plain log-domain iterations written out here, independently of the solver.
        scaled = torch.cdist(moved, y) / epsilon
        f, g = torch.zeros_like(scaled[:, :, :1]), torch.zeros_like(scaled[:, :1])
        for _ in range(400):
            f = -torch.logsumexp(g - scaled - math.log(m), 2, keepdim=True)
            g = -torch.logsumexp(f - scaled - math.log(n), 1, keepdim=True)
        return epsilon * (f.mean((1, 2)) + g.mean((1, 2)))

    leaf = x.clone().requires_grad_()
    sinkhorn_distance(torch.cdist(leaf, y), epsilon=0.2, iterations=400).sum().backward()
    # Fourth order, all coordinates at once, so that the differences themselves are good to 1e-11.
    batch = 1e-4
    changes = batch * torch.eye(3 * n, dtype=torch.float64).view(3 * n, n, 3)
    near = regularised(x + changes) - regularised(x - changes)
    far = regularised(x + 2 * changes) - regularised(x - 2 * changes)
    differences = (8 * near - far).view(n, 3) / (12 * batch)
    assert (differences - leaf.grad[0]).abs().max() < 1e-9


@pytest.mark.parametrize(("grid", "tolerance", "least_cosine"), [(8, 0.03, 0.8), (2, 0.03, 0.93)])
def test_default_settings_against_the_exact_distance(grid, tolerance, least_cosine):
    student = functional.relu(normal(8, 16, grid, grid))
    teacher = functional.relu(normal(8, 16, grid, grid, seed=1))
    values, gradients = [], []
    for solver in ("sinkhorn", "exact"):
        leaf = student.clone().requires_grad_()
        value = wasserstein_loss(leaf, teacher, solver=solver)
        value.backward()
        values.append(value.item())
        gradients.append(leaf.grad.flatten(1))
    assert values[0] >= values[1] - 1e-9
    assert values[0] == pytest.approx(values[1], rel=tolerance)
    assert functional.cosine_similarity(*gradients).mean() > least_cosine


def clouds(kind, n, m, dimension):
    x, y = normal(4, n, dimension), normal(4, m, dimension, seed=1)
    return {"normal": (x, y), "relu": (x.relu(), y.relu()), "apart": (x, y + 3), "narrow": (x, 0.5 * y + 0.2)}[kind]


@pytest.mark.parametrize("kind", ["normal", "relu", "apart", "narrow"])
@pytest.mark.parametrize(
    ("n", "m", "dimension"), [(16, 16, 64), (64, 64, 64), (16, 49, 64), (64, 64, 512), (4, 16, 128)]
)
def test_default_settings_are_near_the_exact_value_in_many_dimensions(kind, n, m, dimension):
    """The figures of `sinkhorn_distance`: POT's exact value, and 100 iterations."""
    x, y = clouds(kind, n, m, dimension)
    found = []
    for iterations in (30, 100):
        leaf = x.clone().requires_grad_()
        value = sinkhorn_distance(torch.cdist(leaf, y), epsilon=0.02, iterations=iterations)
        value.sum().backward()
        found.append((value.detach(), leaf.grad.flatten(1)))
    (value, gradient), (longer, theirs) = found
    exact = [ot.emd2(uniform(n), uniform(m), cost.numpy()) for cost in torch.cdist(x, y)]
    off = value / torch.tensor(exact) - 1
    assert -1e-3 < off.min() <= off.max() < 0.03
    assert (value / longer - 1).abs().max() < 0.0015
    assert functional.cosine_similarity(gradient, theirs).min() > 0.9999


@pytest.mark.parametrize("kind", ["normal", "relu"])
def test_default_settings_are_far_from_the_exact_value_in_one_dimension(kind):
    x, y = clouds(kind, 64, 64, 1)
    exact = torch.tensor([wasserstein_distance(a, b) for a, b in zip(x[..., 0], y[..., 0], strict=True)])
    off, converged = (sinkhorn_distance(torch.cdist(x, y), iterations=n) / exact - 1 for n in (30, 3000))
    assert -0.8 < off.min() < -0.4
    assert converged.abs().max() < 0.03


def test_float32_is_near_float64_and_underflow_does_no_harm():
    cost = torch.cdist(normal(4, 64, 8), normal(4, 64, 8, seed=1))
    for epsilon, tolerance in ((0.02, 1e-4), (0.002, 1e-3)):  # the latter: C/ε reaches far below what float32 can hold
        low = sinkhorn_distance(cost.float(), epsilon=epsilon, iterations=200)
        assert low.dtype == torch.float32
        assert torch.allclose(low.double(), sinkhorn_distance(cost, epsilon=epsilon, iterations=200), rtol=tolerance)


SIZES = [(16, 16), (16, 9), (4, 16), (1, 7), (49, 36)]


def test_unequal_numbers_by_hand():
    # {0, 6} against {0, 3, 6}: levels 0, ⅓, ½, ⅔, 1; only [⅓, ½] (0 against 3) and [½, ⅔] (6 against 3) differ.
    value = one_dimensional_distance(torch.tensor([6.0, 0.0]), torch.tensor([3.0, 6.0, 0.0]))
    assert value.item() == pytest.approx(3 / 6 + 3 / 6)


@pytest.mark.parametrize(("n", "m"), SIZES)
def test_one_dimension_against_scipy(n, m):
    x, y = normal(3, n), normal(3, m, seed=1)
    expected = [wasserstein_distance(x[i].numpy(), y[i].numpy()) for i in range(3)]
    assert one_dimensional_distance(x, y).tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_with_or_without_a_gradient_one_dimension_gives_the_same_bits(dtype):
    """Sorted by torch or by numpy; many values are equal, and rows are not laid out one after the other."""
    x, y = (normal(3, 70, 4, seed=seed, dtype=dtype).relu().transpose(1, 2) for seed in (0, 1))
    expected = one_dimensional_distance(x.clone().requires_grad_(), y.clone().requires_grad_())
    assert torch.equal(one_dimensional_distance(x, y), expected)
    assert torch.equal(
        one_dimensional_distance(x[..., ::2], y), one_dimensional_distance(x[..., ::2], y.requires_grad_())
    )


@pytest.mark.parametrize(("student_grid", "teacher_grid"), [((4, 4), (4, 4)), ((2, 3), (5, 5))])
def test_quantile_is_scipys_distance_per_channel(student_grid, teacher_grid):
    student, teacher = normal(2, 3, *student_grid), normal(2, 3, *teacher_grid, seed=1)
    expected = np.mean(
        [wasserstein_distance(student[b, c].flatten(), teacher[b, c].flatten()) for b in range(2) for c in range(3)]
    )
    assert wasserstein_loss(student, teacher, solver="quantile").item() == pytest.approx(expected, abs=1e-12)
    assert quantile_distance(student, teacher).shape == (2,)


@pytest.mark.parametrize(("n", "m"), SIZES)
@pytest.mark.parametrize("dimension", [2, 8])
def test_sliced_against_pot_with_the_same_directions(n, m, dimension):
    x, y = normal(2, n, dimension), normal(2, m, dimension, seed=1)
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


def test_against_pot_on_the_atoms():
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(3, 4, 3, 3, generator=generator, dtype=torch.float64)
    teacher = torch.randn(3, 4, 2, 4, generator=generator, dtype=torch.float64)
    expected = np.mean(
        [
            ot.emd2(
                np.full(9, 1 / 9),
                np.full(8, 1 / 8),
                ot.dist(s.flatten(1).T.numpy(), t.flatten(1).T.numpy(), "euclidean"),
            )
            for s, t in zip(student, teacher, strict=True)
        ]
    )
    assert wasserstein_loss(student, teacher, solver="exact").item() == pytest.approx(expected, abs=1e-12)
