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


def test_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="batch or channels"):
        gradient_loss(maps(2, 3, 2, 2), maps(2, 4, 2, 2))
    for r in (-0.1, 1.1):
        with pytest.raises(ValueError, match="r must lie"):
            gradient_loss(maps(2, 3, 2, 2), maps(2, 3, 2, 2), r=r)
