import pytest
import torch
from torch.nn import functional

from gkd_core.errors import GkdError
from gkd_core.losses.fitnet import FitNet, Regressor, hint_loss


def maps(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def test_value_by_hand():
    student = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    # Squares 1, 4, 9, 16 over four elements.
    assert hint_loss(student, torch.zeros(1, 1, 2, 2)).item() == 7.5
    # On a 1 × 1 grid the student is its mean, 2.5.
    assert hint_loss(student, torch.ones(1, 1, 1, 1)).item() == 2.25
    # Each direction goes to the smaller side: rows (1.5, 3.5) against columns (1, 2) meet at 2.5 and 1.5.
    assert hint_loss(torch.tensor([[[[1.5], [3.5]]]]), torch.tensor([[[[1.0, 2.0]]]])).item() == 1.0


def test_refuses_maps_that_do_not_fit():
    with pytest.raises(ValueError, match="batch or channels"):
        hint_loss(maps(2, 3, 2, 2), maps(2, 4, 2, 2))


def test_the_regressor_is_seeded_trains_and_stays_in_float32():
    before = torch.get_rng_state()
    regressor, same, other = Regressor(3, 5, seed=0), Regressor(3, 5, seed=0), Regressor(3, 5, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(regressor.adapter.weight, same.adapter.weight)
    assert not torch.equal(regressor.adapter.weight, other.adapter.weight)
    with torch.autocast("cpu", torch.bfloat16):
        out = regressor(maps(4, 3, 2, 2, dtype=torch.bfloat16))
    assert (out.shape, out.dtype) == ((4, 5, 2, 2), torch.float32)
    assert out.min() == 0


class TestMethod:
    def test_terms(self, make_staged, make_pair, make_batch):
        pair = make_pair(make_staged(), make_staged("resnet8x4", seed=1))
        batch = make_batch(pair)
        loss = FitNet(*pair)
        terms = loss(*batch)
        assert set(terms) == {"ce", "hint"}
        assert torch.equal(terms["ce"], functional.cross_entropy(batch.student.logits, batch.labels))
        guided = Regressor(32, 128, seed=0)(batch.student.stages[1])
        assert torch.allclose(terms["hint"], 100 * functional.mse_loss(guided, batch.teacher.stages[1]))

    def test_only_the_regressor_belongs_to_it_and_both_learn(self, make_staged, make_pair, make_batch):
        pair = make_pair(make_staged(), make_staged("resnet8x4", seed=1))
        loss = FitNet(*pair)
        assert {name.split(".")[0] for name in loss.state_dict()} == {"regressor"}
        loss(*make_batch(pair))["hint"].backward()
        assert all(p.grad is not None for p in loss.parameters())
        assert pair.student.classifier.conv1.weight.grad.abs().sum() > 0
        assert pair.student.classifier.layer3[0].conv1.weight.grad is None
        assert all(p.grad is None for p in pair.teacher.parameters())
        (group,) = loss.parameter_groups()
        assert len(group["params"]) == 3

    def test_stages_of_different_depth_and_grid(self, make_staged, make_pair, make_batch):
        pair = make_pair(make_staged(), make_staged("vgg8", seed=1))
        loss = FitNet(*pair, stage=3, teacher_stage=1)
        batch = make_batch(pair)
        assert batch.student.stages[2].shape[2:] != batch.teacher.stages[0].shape[2:]
        assert loss(*batch)["hint"].isfinite()

    def test_a_stage_that_is_not_there_is_refused(self, make_staged, make_network, make_pair):
        with pytest.raises(GkdError, match=r"fitnet\.stage is 4, but the student has 3 stages"):
            FitNet(*make_pair(make_staged(), make_staged()), stage=4)
        with pytest.raises(GkdError, match=r"fitnet\.teacher_stage is 2, but the teacher has 1 stage"):
            FitNet(*make_pair(make_staged(), make_network()))
