import math

import pytest
import torch

from gkd_core.losses.soft_labels import kd_loss, soft_label_kl


def logits(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def test_value_by_hand():
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3.0), 0.0]])
    # Teacher (3/4, 1/4) against (1/2, 1/2): ¾·ln 1.5 + ¼·ln 0.5.
    assert soft_label_kl(student, teacher, 1.0).item() == pytest.approx(0.130812, abs=1e-6)
    # τ = 2 makes the odds √3 : 1.
    p = math.sqrt(3) / (math.sqrt(3) + 1)
    softened = p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))
    assert soft_label_kl(student, teacher, 2.0).item() == pytest.approx(softened, rel=1e-5)
    assert kd_loss(student, teacher, 2.0).item() == pytest.approx(4 * softened, rel=1e-5)


def test_default_temperature_is_four_and_squared_once():
    student, teacher = logits(3, 5), logits(3, 5, seed=1)
    assert kd_loss(student, teacher) == 16 * soft_label_kl(student, teacher, 4.0)


@pytest.mark.parametrize("loss", [soft_label_kl, kd_loss])
class TestBoth:
    def test_large_logits_stay_finite(self, loss):
        student = torch.tensor([[1e4, -1e4]], requires_grad=True)
        value = loss(student, torch.tensor([[-1e4, 1e4]]))
        value.backward()
        assert value.isfinite()
        assert student.grad.isfinite().all()

    def test_refuses_what_does_not_fit(self, loss):
        with pytest.raises(ValueError, match="differ in shape"):
            loss(logits(2, 3), logits(2, 4))
        for temperature in (0.0, -1.0, float("nan")):
            with pytest.raises(ValueError, match="temperature"):
                loss(logits(2, 3), logits(2, 3), temperature)


def test_not_divided_by_the_number_of_classes():
    student, teacher = logits(4, 10), logits(4, 10, seed=1)
    pointwise = teacher.softmax(1) * (teacher.log_softmax(1) - student.log_softmax(1))
    assert torch.allclose(soft_label_kl(student, teacher, 1.0), 10 * pointwise.mean())


def test_limit_of_large_temperature_is_logit_matching():
    student, teacher = logits(6, 5), logits(6, 5, seed=1)
    difference = student - teacher
    difference = difference - difference.mean(1, keepdim=True)
    limit = difference.square().sum(1).mean() / (2 * 5)
    assert kd_loss(student, teacher, 1e4).item() == pytest.approx(limit.item(), rel=1e-3)
