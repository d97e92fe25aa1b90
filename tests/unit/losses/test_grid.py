import pytest
import torch
from torch.nn import functional

from gkd_core.losses.feature_maps import resample_total


def maps(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_three_cells_into_two_by_hand():
    # The middle cell is shared half and half.
    assert resample_total(torch.tensor([[[[1.0, 4.0, 7.0]]]]), 1, 2).tolist() == [[[[3.0, 9.0]]]]


@pytest.mark.parametrize(("old", "new"), [((8, 8), (4, 4)), ((6, 4), (2, 1)), ((4, 4), (4, 4))])
def test_sums_of_cells_where_sizes_divide(old, new):
    block = (old[0] // new[0], old[1] // new[1])
    expected = functional.avg_pool2d(maps(2, 3, *old), block) * block[0] * block[1]
    assert torch.allclose(resample_total(maps(2, 3, *old), *new), expected, atol=1e-14)


@pytest.mark.parametrize(("old", "new"), [((7, 7), (4, 4)), ((8, 5), (3, 2)), ((5, 3), (1, 1))])
def test_the_total_is_kept(old, new):
    result = resample_total(maps(2, 3, *old), *new)
    assert result.shape == (2, 3, *new)
    assert torch.allclose(result.sum((2, 3)), maps(2, 3, *old).sum((2, 3)), atol=1e-12)


def test_a_constant_map_stays_constant():
    result = resample_total(torch.ones(1, 1, 7, 5, dtype=torch.float64), 3, 2)
    assert torch.allclose(result, torch.full_like(result, 35 / 6))


def test_gradcheck():
    assert torch.autograd.gradcheck(lambda m: resample_total(m, 3, 2), maps(1, 2, 5, 4).requires_grad_())
