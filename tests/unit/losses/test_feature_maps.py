"""Channels and grids of two networks brought together."""

import pytest
import torch
from torch.nn import functional

from gkd_core.losses.feature_maps import ChannelAdapter, ChannelRemap, resample_total
from tests.unit.losses.draws import normal as maps


class TestAdapter:
    def test_is_a_1x1_map_without_bias(self):
        adapter = ChannelAdapter(2, 3, seed=0)
        assert [name for name, _ in adapter.named_parameters()] == ["weight"]
        features = torch.randn(4, 2, 3, 5)
        expected = torch.einsum("oi,bihw->bohw", adapter.weight[:, :, 0, 0], features)
        assert torch.allclose(adapter(features), expected, atol=1e-6)

    def test_is_kaiming_initialised_by_its_seed_alone(self):
        state = torch.get_rng_state()
        weight = ChannelAdapter(256, 512, seed=3).weight
        assert torch.equal(torch.get_rng_state(), state)
        assert weight.std().item() == pytest.approx((2 / 256) ** 0.5, rel=0.02)
        assert torch.equal(ChannelAdapter(256, 512, seed=3).weight, weight)
        assert not torch.equal(ChannelAdapter(256, 512, seed=4).weight, weight)

    def test_computes_in_float32_under_autocast(self):
        adapter, features = ChannelAdapter(8, 8, seed=0), torch.randn(2, 8, 3, 3)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(adapter(features), adapter.float()(features))
            assert adapter(features.bfloat16()).dtype == torch.float32
        assert adapter(features.double()).dtype == torch.float64


class TestRemap:
    @pytest.mark.parametrize(("old", "new"), [(6, 4), (4, 6)])
    def test_is_semi_orthogonal_frozen_and_seeded(self, old, new):
        state = torch.get_rng_state()
        remap = ChannelRemap(old, new, seed=0)
        assert torch.equal(torch.get_rng_state(), state)
        assert list(remap.parameters()) == []
        assert set(remap.state_dict()) == {"weight"}
        square = remap.weight @ remap.weight.T if new < old else remap.weight.T @ remap.weight
        assert torch.allclose(square, torch.eye(min(old, new)), atol=1e-6)
        assert torch.equal(ChannelRemap(old, new, seed=0).weight, remap.weight)
        assert not torch.equal(ChannelRemap(old, new, seed=1).weight, remap.weight)

    def test_into_more_channels_it_keeps_norms(self):
        maps = torch.randn(3, 4, 2, 2)
        assert torch.allclose(ChannelRemap(4, 6, seed=0)(maps).norm(dim=1), maps.norm(dim=1), atol=1e-6)

    def test_is_the_identity_when_channels_agree(self):
        remap, maps = ChannelRemap(4, 4, seed=0), torch.randn(3, 4, 2, 2)
        assert remap(maps) is maps
        assert remap.state_dict() == {}


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


def test_gradcheck():
    assert torch.autograd.gradcheck(lambda m: resample_total(m, 3, 2), maps(1, 2, 5, 4).requires_grad_())
