"""Distances in float32, by products in float64, against differences in float64."""

import pytest
import torch

from gkd_core.losses.distances import distances
from tests.unit.losses.draws import normal


def clouds(n, m, dimension, apart=1.0, *, batch=3):
    """Rounded to float32, as features are; `apart` is how far the second lies from the first, in their norms."""
    first = normal(batch, n, dimension)
    second = normal(batch, m, dimension, seed=1)
    if apart < 1:
        second = first[:, :m] + apart * second
    return first.float(), second.float()


@pytest.mark.parametrize(("n", "m", "dimension"), [(64, 64, 64), (4, 9, 3), (1, 1, 2048), (30, 49, 700), (300, 300, 2)])
def test_value_and_gradients_are_those_of_float64(n, m, dimension):
    first, second = clouds(n, m, dimension)
    pull = normal(3, n, m, seed=2)
    found = []
    for dtype in (torch.float32, torch.float64):
        leaves = [cloud.to(dtype).requires_grad_() for cloud in (first, second)]
        value = distances(*leaves)
        assert value.dtype == dtype
        found.append((value.detach().double(), *torch.autograd.grad((pull.to(dtype) * value).sum(), leaves)))
    for ours, exact in zip(*found, strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=1e-6, atol=1e-6 * exact.abs().max().item())


@pytest.mark.parametrize("apart", [1e-2, 1e-4])
def test_atoms_near_one_another_are_as_exact(apart):
    """‖x‖² + ‖y‖² − 2xy in float32 gives an error of 1e-3 of their norms there."""
    first, second = clouds(32, 32, 64, apart)
    near = torch.arange(32)
    found = []
    for dtype in (torch.float32, torch.float64):
        leaf = first.to(dtype).requires_grad_()
        value = distances(leaf, second.to(dtype))[:, near, near]
        found.append((value.detach().double(), torch.autograd.grad(value.sum(), leaf)[0].double()))
    (ours, gradient), (exact, its_gradient) = found
    torch.testing.assert_close(ours, exact, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient, its_gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dimension", [3, 64, 2048])
@pytest.mark.parametrize("size", [1e-15, 1.0, 1e15])
def test_zero_with_zero_gradient_where_atoms_agree(dimension, size):
    cloud = (size * normal(2, 40, dimension)).float()
    first, second = cloud.clone().requires_grad_(), cloud.clone().requires_grad_()
    own = distances(first, second).diagonal(dim1=1, dim2=2)
    own.sum().backward()
    for zeros in (own, first.grad, second.grad):
        assert torch.count_nonzero(zeros) == 0
    assert torch.count_nonzero(distances(first, second)) == 2 * 40 * 39


def test_nan_is_not_hidden():
    first, second = clouds(4, 4, 5)
    first[0, 0, 0] = torch.nan
    found = distances(first, second)
    assert found[0, 0].isnan().all()
    assert found[0, 1:].isfinite().all()


def test_memory_format_and_the_rest_of_the_batch_change_nothing():
    first, second = clouds(16, 16, 100, batch=40)
    turned = first.transpose(1, 2).contiguous().transpose(1, 2)
    torch.testing.assert_close(distances(turned, second), distances(first, second), rtol=1e-6, atol=0)
    torch.testing.assert_close(distances(first[7:8], second[7:8]), distances(first, second)[7:8], rtol=1e-6, atol=0)
