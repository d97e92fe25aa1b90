import math

import pytest
import torch

from gkd_core.losses.soft_labels import kd_loss, soft_label_kl
from tests.unit.losses.draws import normal


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
    student, teacher = normal(3, 5), normal(3, 5, seed=1)
    assert kd_loss(student, teacher) == 16 * soft_label_kl(student, teacher, 4.0)


def test_limit_of_large_temperature_is_logit_matching():
    student, teacher = normal(6, 5), normal(6, 5, seed=1)
    difference = student - teacher
    difference = difference - difference.mean(1, keepdim=True)
    limit = difference.square().sum(1).mean() / (2 * 5)
    assert kd_loss(student, teacher, 1e4).item() == pytest.approx(limit.item(), rel=1e-3)
