import math

import numpy as np
import pytest
import torch
from scipy.stats import zscore
from torch.nn import functional

from gkd_core.losses.logit_standardisation import LogitStandardisation, standardise
from gkd_core.losses.soft_labels import kd_loss
from tests.unit.losses.draws import logits


def loss(student, teacher, temperature=2.0):
    return kd_loss(standardise(student), standardise(teacher), temperature)


def test_by_hand():
    assert standardise(torch.tensor([[1.0, 2.0, 3.0], [30.0, 20.0, 10.0]])).tolist() == [
        pytest.approx([-1.0, 0.0, 1.0], abs=1e-6),
        pytest.approx([1.0, 0.0, -1.0], abs=1e-6),
    ]


def test_scipy_agrees():
    z = logits(5, 9)
    np.testing.assert_allclose(standardise(z).numpy(), zscore(z.numpy(), axis=1, ddof=1), rtol=1e-6)


def test_loss_by_hand():
    # Standardised (−1, 0, 1) against (1, 0, −1), τ = 1: Σ p·(z_T − z_S) = 2·(e − e⁻¹)/(e + 1 + e⁻¹).
    expected = 2 * (math.e - 1 / math.e) / (math.e + 1 + 1 / math.e)
    value = loss(torch.tensor([[2.0, 4.0, 6.0]]), torch.tensor([[5.0, 4.0, 3.0]]), 1.0)
    assert value.item() == pytest.approx(expected, rel=1e-5)


def test_shift_and_scale_change_nothing():
    student, teacher = logits(4, 7), logits(4, 7, seed=1)
    scale, shift = 0.5 + torch.rand(4, 1, dtype=torch.float64), logits(4, 1, seed=2)
    torch.testing.assert_close(standardise(scale * student + shift), standardise(student), rtol=0, atol=1e-6)
    torch.testing.assert_close(loss(scale * student + shift, teacher), loss(student, teacher), rtol=0, atol=1e-6)
    torch.testing.assert_close(standardise(-student), -standardise(student))


def test_the_gradient_moves_neither_mean_nor_scale():
    student = logits(4, 7).requires_grad_()
    loss(student, logits(4, 7, seed=1)).backward()
    assert student.grad.sum(1).abs().max() < 1e-12
    assert (student.grad * (student - student.mean(1, keepdim=True))).sum(1).abs().max() < 1e-6


def test_the_method_weighs_as_the_authors_do_and_squares_tau_once(make_network, make_pair, make_batch):
    pair = make_pair(make_network(seed=1), make_network(seed=2))
    batch = make_batch(pair)
    terms = LogitStandardisation(*pair)(*batch)
    student, teacher = standardise(batch.student.logits), standardise(batch.teacher.logits)
    kl = ((teacher / 2).softmax(1) * ((teacher / 2).log_softmax(1) - (student / 2).log_softmax(1))).sum(1).mean()
    assert terms["ce"].item() == pytest.approx(
        0.1 * functional.cross_entropy(batch.student.logits, batch.labels).item()
    )
    assert terms["kd"].item() == pytest.approx(9 * 4 * kl.item(), rel=1e-4)
