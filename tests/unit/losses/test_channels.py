import pytest
import torch

from gkd_core.losses.feature_maps import ChannelAdapter, ChannelRemap


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

    def test_belongs_to_one_instance(self):
        first, second = ChannelAdapter(2, 3, seed=0), ChannelAdapter(2, 3, seed=0)
        with torch.no_grad():
            first.weight.zero_()
        assert second.weight.abs().sum() > 0

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
