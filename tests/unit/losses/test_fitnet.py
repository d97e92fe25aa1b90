import pytest
import torch
from torch.nn import functional

from gkd_core.errors import GkdError
from gkd_core.losses.fitnet import FitNet, Regressor, hint_loss


def test_value_by_hand():
    student = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    # Squares 1, 4, 9, 16 over four elements.
    assert hint_loss(student, torch.zeros(1, 1, 2, 2)).item() == 7.5
    # On a 1 × 1 grid the student is its mean, 2.5.
    assert hint_loss(student, torch.ones(1, 1, 1, 1)).item() == 2.25
    # Each direction goes to the smaller side: rows (1.5, 3.5) against columns (1, 2) meet at 2.5 and 1.5.
    assert hint_loss(torch.tensor([[[[1.5], [3.5]]]]), torch.tensor([[[[1.0, 2.0]]]])).item() == 1.0


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
