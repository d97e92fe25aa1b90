"""Gradients of the cross-entropy by the last feature map, and how two of them are matched."""

import math

import pytest
import torch
from torch.nn import functional

from gkd_core.losses.gradient import (
    autograd_head_gradient,
    class_probabilities,
    evaluating,
    gradient_loss,
    head_gradient,
    pooled_head_gradient,
)
from tests.unit.losses.draws import normal as maps


def one(*values):
    return torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1)


def test_value_by_hand():
    # Distance √2, cosine 24/25.
    assert gradient_loss(one(3, 4), one(4, 3)).item() == pytest.approx(0.5 * math.sqrt(2) + 0.5 / 25)
    assert gradient_loss(one(3, 4), one(4, 3), r=1.0).item() == pytest.approx(math.sqrt(2))
    assert gradient_loss(one(3, 4), one(4, 3), r=0.0).item() == pytest.approx(1 / 25)
    # Opposite directions: the cosine term has its largest value, 2.
    assert gradient_loss(one(1, 0), one(-1, 0), r=0.25).item() == pytest.approx(0.25 * 2 + 0.75 * 2)
    # Flattened before it is measured: √(1 + 4 + 4) over two positions of two channels, not a mean over positions.
    student = torch.tensor([[[[1.0, 2.0]], [[2.0, 0.0]]]])
    assert gradient_loss(student, torch.zeros(1, 2, 1, 2), r=1.0).item() == pytest.approx(3.0)


def test_grids_meet_on_the_smaller_one_with_totals_kept():
    coarse = maps(2, 3, 2, 2)
    fine = coarse.repeat_interleave(2, 2).repeat_interleave(2, 3) / 4
    assert gradient_loss(fine, coarse).item() == pytest.approx(0, abs=1e-14)
    assert gradient_loss(coarse, fine).item() == pytest.approx(0, abs=1e-14)
    assert gradient_loss(maps(2, 3, 4, 2), maps(2, 3, 2, 4, seed=1)).isfinite()


@pytest.mark.parametrize(("student_grid", "teacher_grid"), [((4, 4), (4, 4)), ((4, 2), (3, 5)), ((1, 1), (2, 2))])
def test_views_with_one_number_a_channel_give_what_whole_maps_give(student_grid, teacher_grid):
    """What a pooled head's gradient is; measured on one cell, which has to be the same."""
    leaves, teacher = [maps(3, 5, 1, 1).requires_grad_() for _ in range(2)], maps(3, 5, 1, 1, seed=1)
    views = leaves[0].expand(-1, -1, *student_grid), teacher.expand(-1, -1, *teacher_grid)
    whole = leaves[1].expand(-1, -1, *student_grid).contiguous(), teacher.expand(-1, -1, *teacher_grid).contiguous()
    values = [gradient_loss(*pair, r=0.3) for pair in (views, whole)]
    for value in values:
        value.backward()
    assert values[0].item() == pytest.approx(values[1].item(), rel=1e-12)
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad, rtol=1e-12, atol=1e-14)


def images(batch=5):
    return torch.rand(batch, 3, 4, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


LABELS = torch.tensor([0, 3, 1, 1, 2])
MIXED = torch.tensor([[0.7, 0.3, 0.0, 0.0]] * 2 + [[0.25] * 4] * 3, dtype=torch.float64)


def test_closed_form_by_hand():
    # Logits 0: p = (½, ½), label 0: (p − y) = (−½, ½); times W = [[1, 2], [3, 5]]: (1, 1.5); spread over 2 × 3 cells.
    gradient = pooled_head_gradient(
        torch.zeros(1, 2), torch.tensor([[1.0, 2.0], [3.0, 5.0]]), torch.tensor([0]), (2, 3)
    )
    assert gradient.shape == (1, 2, 2, 3)
    assert torch.allclose(gradient[0, 0], torch.full((2, 3), 1 / 6))
    assert torch.allclose(gradient[0, 1], torch.full((2, 3), 1.5 / 6))


@pytest.mark.parametrize("targets", [LABELS, MIXED], ids=["labels", "probabilities"])
def test_closed_form_agrees_with_autograd_to_first_and_second_order(make_network, targets):
    network = make_network("pooled", stride=2).double()
    output = network(images())
    output.stages[-1].retain_grad()
    teacher = torch.randn(5, 5, 2, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    wanted = [output.stages[-1], network.classifier.linear.weight, network.classifier.linear.bias]
    wanted.append(network.classifier.convolution.weight)

    closed = head_gradient(network, output, targets, differentiable=True)
    by_autograd = autograd_head_gradient(network.head, output.stages[-1], targets, differentiable=True)
    assert (closed - by_autograd).abs().max() < 1e-10
    second = [
        torch.autograd.grad(
            gradient_loss(g, teacher), wanted, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        for g in (closed, by_autograd)
    ]
    for one, other in zip(*second, strict=True):
        assert one.abs().sum() > 0
        assert (one - other).abs().max() < 1e-10


@pytest.mark.parametrize("kind", ["pooled", "flattened"])
def test_is_each_samples_own_gradient(make_network, kind):
    network = make_network(kind).double().eval()
    output = network(images())
    together = head_gradient(network, output, LABELS, differentiable=False)
    for i in range(5):
        stage = output.stages[-1][i : i + 1].detach().requires_grad_()
        functional.cross_entropy(network.head(stage.clone()), LABELS[i : i + 1]).backward()
        assert torch.allclose(together[i], stage.grad[0], atol=1e-12)


def test_gradcheck_through_a_flattening_head(make_network):
    network = make_network("flattened", channels=2, stride=2).double()
    stage = network(images()).stages[-1].detach().requires_grad_()

    def loss(features):
        with evaluating(network):
            return autograd_head_gradient(network.head, features, LABELS, differentiable=True)

    assert torch.autograd.gradcheck(loss, stage)


def test_dropout_is_off_in_the_head_and_modes_are_left_as_they_were(make_network):
    network = make_network("flattened").double().train()
    network.classifier.convolution.eval()
    modes = [module.training for module in network.modules()]
    output = network(images())
    first, second = (head_gradient(network, output, LABELS, differentiable=True) for _ in range(2))
    assert torch.equal(first, second)
    assert [module.training for module in network.modules()] == modes
    with pytest.raises(RuntimeError, match="within"), evaluating(network):
        raise RuntimeError("within")
    assert [module.training for module in network.modules()] == modes


@pytest.mark.parametrize("kind", ["pooled", "flattened"])
def test_not_differentiable_means_constant(make_network, kind):
    network = make_network(kind)
    output = network(images().float())
    assert not head_gradient(network, output, LABELS, differentiable=False).requires_grad
    with torch.no_grad():
        output = network(images().float())
        assert head_gradient(network, output, LABELS, differentiable=True).isfinite().all()


@pytest.mark.parametrize("kind", ["pooled", "flattened"])
def test_the_logits_of_chosen_classes_have_their_own_gradient(make_network, kind):
    network = make_network(kind).double().eval()
    network.select_classes(("d", "b"))
    output = network(images())
    targets = LABELS % 2
    by_autograd = autograd_head_gradient(network.head, output.stages[-1], targets, differentiable=False)
    assert torch.allclose(head_gradient(network, output, targets, differentiable=False), by_autograd, atol=1e-12)


@pytest.mark.parametrize("kind", ["pooled", "flattened"])
def test_half_types_are_computed_in_float32(make_network, kind):
    network = make_network(kind).eval()
    full = head_gradient(network, network(images().float()), LABELS, differentiable=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = network(images().float())
        assert output.logits.dtype == torch.bfloat16
        low = head_gradient(network, output, LABELS, differentiable=True)
    assert low.dtype == torch.float32
    assert torch.allclose(low, full, atol=0.02 * full.abs().max().item())


def test_class_probabilities_of_labels_are_one_hot():
    expected = functional.one_hot(LABELS, 4).float()
    assert torch.equal(class_probabilities(LABELS, torch.randn(5, 4)), expected)
