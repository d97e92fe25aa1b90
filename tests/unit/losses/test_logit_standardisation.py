import math

import numpy as np
import pytest
import torch
from scipy.stats import zscore

from gkd_core.errors import GkdError
from gkd_core.losses.logit_standardisation import LogitStandardisation, standardise
from gkd_core.losses.soft_labels import kd_loss


def logits(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype) * 2


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


def test_zero_loss_and_gradient_at_an_affine_copy():
    teacher = logits(4, 7)
    student = (3 * teacher + 2).requires_grad_()
    value = loss(student, teacher)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-12)
    assert student.grad.abs().max() < 1e-7


def test_the_gradient_moves_neither_mean_nor_scale():
    student = logits(4, 7).requires_grad_()
    loss(student, logits(4, 7, seed=1)).backward()
    assert student.grad.sum(1).abs().max() < 1e-12
    assert (student.grad * (student - student.mean(1, keepdim=True))).sum(1).abs().max() < 1e-6


def test_no_gradient_into_the_teacher():
    student, teacher = logits(4, 7).requires_grad_(), logits(4, 7, seed=1).requires_grad_()
    loss(student, teacher).backward()
    assert teacher.grad is None


def test_gradcheck():
    teacher = logits(3, 4, seed=1)
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher), logits(3, 4).requires_grad_())


def test_half_types_are_computed_in_float32():
    student, teacher = logits(8, 10, dtype=torch.float32), logits(8, 10, seed=1, dtype=torch.float32)
    low = loss(student.bfloat16(), teacher.bfloat16())
    assert low.dtype == torch.float32
    assert low.item() == pytest.approx(loss(student, teacher).item(), rel=0.02)
    assert standardise(student.double()).dtype == torch.float64


def test_mean_over_the_batch_whatever_its_size_and_order():
    student, teacher = logits(5, 6), logits(5, 6, seed=1)
    samples = [loss(student[i : i + 1], teacher[i : i + 1]) for i in range(5)]
    assert torch.allclose(loss(student, teacher), torch.stack(samples).mean(), atol=1e-13)
    order = torch.tensor([3, 0, 4, 1, 2])
    assert torch.allclose(loss(student[order], teacher[order]), loss(student, teacher), atol=1e-13)


def test_constant_logits_stay_finite():
    student = torch.zeros(2, 5, requires_grad=True)
    value = loss(student, logits(2, 5, dtype=torch.float32))
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()


def test_two_classes_are_refused(make_network, make_context):
    with pytest.raises(ValueError, match="2 classes"):
        standardise(logits(3, 2))
    context = make_context(make_network(), make_network(seed=1))
    context.student.classes = ("a", "b")
    with pytest.raises(GkdError, match=r"distill\.method logit-standardisation .* 2 classes: take kd"):
        LogitStandardisation(context)


def test_the_method_weighs_as_the_authors_do_and_squares_tau_once(make_network, make_context, make_step):
    context = make_context(make_network(seed=1), make_network(seed=2))
    step = make_step(context)
    terms = LogitStandardisation(context)(step)
    student, teacher = standardise(step.student.logits), standardise(step.teacher.logits)
    kl = ((teacher / 2).softmax(1) * ((teacher / 2).log_softmax(1) - (student / 2).log_softmax(1))).sum(1).mean()
    assert terms["ce"].item() == pytest.approx(0.1 * step.cross_entropy(step.student.logits).item())
    assert terms["kd"].item() == pytest.approx(9 * 4 * kl.item(), rel=1e-4)
