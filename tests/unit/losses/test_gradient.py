import math

import pytest
import torch

from gkd_core.losses.gradient import gradient_loss


def maps(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def one(*values):
    return torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1)


def test_value_by_hand():
    # Distance √2, cosine 24/25.
    assert gradient_loss(one(3, 4), one(4, 3)).item() == pytest.approx(0.5 * math.sqrt(2) + 0.5 / 25)
    assert gradient_loss(one(3, 4), one(4, 3), r=1.0).item() == pytest.approx(math.sqrt(2))
    assert gradient_loss(one(3, 4), one(4, 3), r=0.0).item() == pytest.approx(1 / 25)
    # Opposite directions: the cosine term has its largest value, 2.
    assert gradient_loss(one(1, 0), one(-1, 0), r=0.25).item() == pytest.approx(0.25 * 2 + 0.75 * 2)
    # Flattened before it is measured: √(1 + 4 + 4) over two positions of two channels, not a mean over positions.
    student = torch.tensor([[[[1.0, 2.0]], [[2.0, 0.0]]]])
    assert gradient_loss(student, torch.zeros(1, 2, 1, 2), r=1.0).item() == pytest.approx(3.0)


def test_grids_meet_on_the_smaller_one_with_totals_kept():
    coarse = maps(2, 3, 2, 2)
    fine = coarse.repeat_interleave(2, 2).repeat_interleave(2, 3) / 4
    assert gradient_loss(fine, coarse).item() == pytest.approx(0, abs=1e-14)
    assert gradient_loss(coarse, fine).item() == pytest.approx(0, abs=1e-14)
    assert gradient_loss(maps(2, 3, 4, 2), maps(2, 3, 2, 4, seed=1)).isfinite()


@pytest.mark.parametrize("r", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_loss_and_gradient_at_equality(r, dtype):
    student = maps(3, 4, 2, 2, dtype=dtype).requires_grad_()
    value = gradient_loss(student, student.detach().clone(), r=r)
    value.backward()
    rounding = 10 * torch.finfo(dtype).eps
    assert value.item() == pytest.approx(0, abs=rounding)
    assert student.grad.abs().max() < rounding


def test_never_nan_at_zero():
    for student, teacher in (
        (torch.zeros(2, 3, 2, 2), torch.zeros(2, 3, 2, 2)),
        (torch.zeros(2, 3, 2, 2), maps(2, 3, 2, 2)),
    ):
        leaf = student.clone().requires_grad_()
        value = gradient_loss(leaf, teacher.float())
        value.backward()
        assert value.isfinite()
        assert leaf.grad.isfinite().all()


def test_no_gradient_into_the_teacher():
    student, teacher = maps(2, 3, 2, 2).requires_grad_(), maps(2, 3, 2, 2, seed=1).requires_grad_()
    gradient_loss(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


def test_gradcheck():
    teacher = maps(2, 3, 2, 3, seed=1)
    assert torch.autograd.gradcheck(lambda s: gradient_loss(s, teacher, r=0.3), maps(2, 3, 3, 2).requires_grad_())


def test_half_types_are_computed_in_float32():
    student, teacher = maps(4, 6, 2, 2, dtype=torch.float32), maps(4, 6, 2, 2, seed=1, dtype=torch.float32)
    low = gradient_loss(student.bfloat16(), teacher.bfloat16())
    assert low.dtype == torch.float32
    assert low.item() == pytest.approx(gradient_loss(student, teacher).item(), rel=0.01)


def test_mean_over_the_batch_whatever_its_size_and_order():
    student, teacher = maps(5, 3, 2, 2), maps(5, 3, 2, 2, seed=1)
    samples = [gradient_loss(student[i : i + 1], teacher[i : i + 1]) for i in range(5)]
    assert torch.allclose(gradient_loss(student, teacher), torch.stack(samples).mean(), atol=1e-14)
    order = torch.tensor([3, 0, 4, 1, 2])
    assert torch.allclose(gradient_loss(student[order], teacher[order]), gradient_loss(student, teacher), atol=1e-14)


def test_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="batch or channels"):
        gradient_loss(maps(2, 3, 2, 2), maps(2, 4, 2, 2))
    for r in (-0.1, 1.1):
        with pytest.raises(ValueError, match="r must lie"):
            gradient_loss(maps(2, 3, 2, 2), maps(2, 3, 2, 2), r=r)
