"""What holds for every solver, through the one interface."""

import math

import pytest
import torch

from gkd_core.losses.wasserstein import SOLVERS, positions, wasserstein_loss
from tests.unit.losses.draws import normal as features


def cloud(points):
    """One sample [1, C, n, 1] from a list of n atoms with C coordinates each."""
    return torch.tensor(points, dtype=torch.float64).T[None, :, :, None]


def test_value_by_hand_in_one_channel():
    # Sorted, 0 goes to 1 and 3 to 5: (1 + 2) / 2.
    student, teacher = cloud([[3.0], [0.0]]), cloud([[1.0], [5.0]])
    for solver in ("exact", "quantile"):
        assert wasserstein_loss(student, teacher, solver=solver).item() == pytest.approx(1.5, abs=1e-12)
    assert wasserstein_loss(student, teacher, epsilon=0.01).item() == pytest.approx(1.5, abs=1e-9)
    # Every direction is ±1 there, so only the factor √(π/2) of the sphere in one dimension remains.
    assert wasserstein_loss(student, teacher, solver="sliced").item() == pytest.approx(1.5 * math.sqrt(math.pi / 2))


def test_value_by_hand_in_two_channels():
    # A shift by (3, 4) costs 5 an atom; the best plan keeps partners.
    student = cloud([[0.0, 0.0], [10.0, 0.0]])
    teacher = cloud([[13.0, 4.0], [3.0, 4.0]])
    assert wasserstein_loss(student, teacher, solver="exact").item() == pytest.approx(5, abs=1e-12)
    assert wasserstein_loss(student, teacher, solver="sinkhorn").item() == pytest.approx(5, abs=1e-6)
    assert wasserstein_loss(student, teacher, solver="quantile").item() == pytest.approx((3 + 4) / 2, abs=1e-12)


def test_translation_costs_its_length():
    # METHODS: the factor of `sliced` makes it agree with W1 here (up to 1/(4d) and the number of directions).
    student = features(2, 32, 3, 3)
    shift = features(1, 32, 1, 1, seed=1)
    length = shift.norm().item()
    for solver, tolerance in (("exact", 1e-12), ("sinkhorn", 1e-3), ("sliced", 0.03)):
        value = wasserstein_loss(student, student + shift, solver=solver, projections=4000).item()
        assert value == pytest.approx(length, rel=tolerance)


@pytest.mark.parametrize("solver", SOLVERS)
class TestEverySolver:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("grid", [1, 2, 6])  # 36 atoms: where cdist would take its matrix product
    @pytest.mark.parametrize("normalise", ["none", "teacher_rms"])
    def test_zero_loss_and_gradient_at_equality(self, solver, dtype, grid, normalise):
        student = features(3, 4, grid, grid, dtype=dtype).requires_grad_()
        value = wasserstein_loss(student, student.detach().clone(), solver=solver, normalise=normalise)
        value.backward()
        assert value.item() == 0
        assert torch.equal(student.grad, torch.zeros_like(student))

    def test_defined_for_atoms_that_coincide_and_for_zeros(self, solver):
        for student, teacher in (
            (torch.zeros(2, 3, 6, 6), torch.zeros(2, 3, 6, 6)),
            (torch.zeros(2, 3, 6, 6), torch.ones(2, 3, 6, 6)),
            (
                features(2, 3, 6, 6, dtype=torch.float32).relu(),
                features(2, 3, 6, 6, seed=1, dtype=torch.float32).relu(),
            ),
            (torch.zeros(2, 3, 2, 2), features(2, 3, 5, 5, dtype=torch.float32)),
            (torch.full((2, 3, 4, 4), 1e18), torch.full((2, 3, 4, 4), -1e18)),
            (torch.full((2, 3, 4, 4), 1e-18), torch.zeros(2, 3, 4, 4)),
        ):
            for normalise in ("none", "teacher_rms"):
                leaf = student.clone().requires_grad_()
                value = wasserstein_loss(leaf, teacher, solver=solver, normalise=normalise)
                value.backward()
                assert not value.isnan()
                assert not leaf.grad.isnan().any()

    def test_positions_do_not_count_unless_asked(self, solver):
        student, teacher = features(2, 4, 3, 3), features(2, 4, 3, 3, seed=1)
        moved = teacher.flatten(2)[:, :, torch.randperm(9, generator=torch.Generator().manual_seed(2))].view(2, 4, 3, 3)
        value = wasserstein_loss(student, teacher, solver=solver)
        assert torch.allclose(wasserstein_loss(student, moved, solver=solver), value, atol=1e-12)

    def test_teacher_rms_makes_it_free_of_scale(self, solver):
        student, teacher = features(2, 4, 3, 3), features(2, 4, 3, 3, seed=1)
        value = wasserstein_loss(student, teacher, solver=solver, normalise="teacher_rms")
        scaled = wasserstein_loss(1000 * student, 1000 * teacher, solver=solver, normalise="teacher_rms")
        assert torch.allclose(value, scaled, rtol=1e-9)
        rms = teacher.permute(0, 2, 3, 1).norm(dim=-1).square().mean().sqrt()
        assert torch.allclose(value, wasserstein_loss(student, teacher, solver=solver) / rms, rtol=1e-9)

    def test_one_atom_on_each_side(self, solver):
        student, teacher = features(3, 4, 1, 1), features(3, 4, 1, 1, seed=1)
        difference = (student - teacher).flatten(1)
        expected = difference.abs().mean() if solver == "quantile" else difference.norm(dim=1).mean()
        assert torch.allclose(wasserstein_loss(student, teacher, solver=solver), expected, atol=1e-14)


class TestPositions:
    def test_are_the_centres_of_cells(self):
        expected = [[0.25, 1 / 6], [0.25, 0.5], [0.25, 5 / 6], [0.75, 1 / 6], [0.75, 0.5], [0.75, 5 / 6]]
        assert torch.allclose(positions(2, 3, torch.zeros(1)), torch.tensor(expected))

    @pytest.mark.parametrize("solver", ["sinkhorn", "exact"])
    def test_by_hand(self, solver):
        # Equal features, swapped places: leave them (cost ½λ an atom, the distance between the centres) or swap the
        # features (cost 1 an atom), whichever is cheaper.
        student = torch.tensor([[[[0.0, 1.0]]]])
        teacher = torch.tensor([[[[1.0, 0.0]]]])
        for weight, expected in ((0.0, 0.0), (1.0, 0.5), (10.0, 1.0)):
            value = wasserstein_loss(student, teacher, solver=solver, position_weight=weight)
            assert value.item() == pytest.approx(expected, abs=1e-6)

    @pytest.mark.parametrize("solver", ["sinkhorn", "exact"])
    def test_zero_loss_and_gradient_at_equality(self, solver):
        student = features(2, 3, 6, 6).requires_grad_()
        value = wasserstein_loss(student, student.detach(), solver=solver, position_weight=0.7)
        value.backward()
        assert value.item() == 0
        assert torch.equal(student.grad, torch.zeros_like(student))

    @pytest.mark.parametrize("solver", ["sliced", "quantile"])
    def test_need_a_ground_cost(self, solver):
        with pytest.raises(ValueError, match="position_weight"):
            wasserstein_loss(features(1, 1, 2, 2), features(1, 1, 2, 2), solver=solver, position_weight=1.0)


@pytest.mark.parametrize(
    "arguments",
    [
        {"solver": "simplex"},
        {"normalise": "rms"},
        {"epsilon": 0.0},
        {"iterations": 0},
        {"projections": 0},
        {"position_weight": -1.0},
    ],
)
def test_refuses_arguments_out_of_range(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        wasserstein_loss(features(1, 2, 2, 2), features(1, 2, 2, 2), **arguments)
