import pytest
import torch
from scipy.stats import pearsonr

from gkd_core.losses.dist import pearson_correlation


def vectors(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_scipy_agrees():
    x, y = vectors(5, 9), vectors(5, 9, seed=1)
    expected = [pearsonr(a, b).statistic for a, b in zip(x.numpy(), y.numpy(), strict=True)]
    assert pearson_correlation(x, y).tolist() == pytest.approx(expected, abs=1e-13)


def test_gradcheck():
    x, y = vectors(3, 5).requires_grad_(), vectors(3, 5, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(pearson_correlation, (x, y))


@pytest.mark.parametrize("constant", [0.0, 0.1, -7.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_constant_vector_correlates_with_nothing_and_gets_no_gradient(constant, dtype):
    x = torch.full((1, 7), constant, dtype=dtype, requires_grad=True)
    y = vectors(1, 7).to(dtype).requires_grad_()
    correlation = pearson_correlation(x, y)
    correlation.sum().backward()
    assert correlation.item() == 0.0
    assert torch.equal(x.grad, torch.zeros_like(x))
    assert torch.equal(y.grad, torch.zeros_like(y))


def test_small_variation_on_a_large_mean_still_counts():
    x = torch.tensor([[1.0, 1.001, 1.002, 0.999]])
    assert pearson_correlation(x, 2 * x - 5).item() == pytest.approx(1.0, abs=1e-3)
