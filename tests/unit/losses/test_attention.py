import math

import pytest
import torch
from torch.nn import functional

from gkd_core.losses.attention import AttentionTransfer, attention_loss, attention_map


def maps(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def one(*rows):
    return torch.tensor(rows, dtype=torch.float64)[None]


def test_map_by_hand():
    # Channels (3, 0) and (0, −2) on a 1 × 2 grid: mean squares (4.5, 2), scaled to unit length.
    features = one([[3.0, 0.0]], [[0.0, -2.0]])
    length = math.hypot(4.5, 2)
    assert attention_map(features).tolist() == [pytest.approx([4.5 / length, 2 / length])]
    # p = 1: mean absolute values (1.5, 1).
    length = math.hypot(1.5, 1)
    assert attention_map(features, 1.0).tolist() == [pytest.approx([1.5 / length, 1 / length])]
    assert attention_map(features, 3.0).isfinite().all()


def test_value_by_hand():
    # Attention (1, 0) against (0, 1): two squared differences of 1 over two positions.
    assert attention_loss(one([[2.0, 0.0]]), one([[0.0, 5.0]])).item() == pytest.approx(1.0)
    # (1, 0) against (3, 4)/5 with p = 1: (0.4² + 0.8²)/2.
    assert attention_loss(one([[7.0, 0.0]]), one([[3.0, 4.0]]), p=1.0).item() == pytest.approx(0.4)
    # On a 1 × 1 grid every attention map is 1.
    assert attention_loss(maps(3, 4, 2, 2), maps(3, 2, 1, 1, seed=1)).item() == pytest.approx(0, abs=1e-15)


def test_features_are_averaged_to_the_smaller_grid_before_the_power():
    fine = one([[1.0, -1.0, 2.0, 2.0]])  # averages 0 and 2
    assert attention_loss(fine, one([[0.0, 9.0]])).item() == pytest.approx(0, abs=1e-15)
    assert attention_loss(one([[0.0, 9.0]]), fine).item() == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("p", [1.0, 2.0, 3.5])
def test_zero_loss_and_gradient_at_equality_up_to_scale(p):
    student = maps(3, 4, 3, 3).requires_grad_()
    value = attention_loss(student, -2.5 * student.detach(), p)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-15)
    assert student.grad.abs().max() < 1e-14


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0])
def test_never_nan_at_zero(p):
    for student, teacher in ((torch.zeros(2, 3, 2, 2), maps(2, 3, 2, 2)), (maps(2, 3, 2, 2), torch.zeros(2, 3, 2, 2))):
        leaf = student.clone().requires_grad_()
        value = attention_loss(leaf, teacher, p)
        value.backward()
        assert value.isfinite()
        assert leaf.grad.isfinite().all()
        assert (leaf.grad.abs().max() == 0) == (student.abs().max() == 0)


def test_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="differ in batch"):
        attention_loss(maps(2, 3, 2, 2), maps(3, 3, 2, 2))
    with pytest.raises(ValueError, match="p must"):
        attention_loss(maps(2, 3, 2, 2), maps(2, 3, 2, 2), p=0.5)


class TestMethod:
    def test_terms(self, make_staged, make_pair, make_batch):
        pair = make_pair(make_staged(), make_staged("resnet8x4", seed=1))
        batch = make_batch(pair)
        terms = AttentionTransfer(*pair)(*batch)
        assert set(terms) == {"ce", "attention"}
        assert torch.equal(terms["ce"], functional.cross_entropy(batch.student.logits, batch.labels))
        each = [attention_loss(s, t) for s, t in zip(batch.student.stages, batch.teacher.stages, strict=True)]
        assert torch.allclose(terms["attention"], 1000 * sum(each))

    def test_stages_are_paired_from_the_deepest(self, make_staged, make_network, make_pair, make_batch):
        pair = make_pair(make_staged(), make_network(stride=2))
        batch = make_batch(pair)
        assert (len(batch.student.stages), len(batch.teacher.stages)) == (3, 1)
        expected = 2 * attention_loss(batch.student.stages[-1], batch.teacher.stages[-1], 3.0)
        assert torch.allclose(AttentionTransfer(*pair, weight=2.0, p=3.0)(*batch)["attention"], expected)

    def test_it_owns_nothing_and_the_student_learns(self, make_staged, make_pair, make_batch):
        pair = make_pair(make_staged(), make_staged("resnet8x4", seed=1))
        loss = AttentionTransfer(*pair)
        assert not loss.state_dict()
        loss(*make_batch(pair))["attention"].backward()
        assert pair.student.classifier.conv1.weight.grad.abs().sum() > 0
        assert pair.student.classifier.fc.weight.grad is None
