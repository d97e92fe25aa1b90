"""What holds for every plain loss function, whatever it computes. Its values are in the file of its method."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from gkd_core.losses.attention import attention_loss
from gkd_core.losses.cmkd import cmkd_loss
from gkd_core.losses.dist import relation_losses
from gkd_core.losses.dkd import dkd_loss
from gkd_core.losses.dynamickd import entropy_corrected_kd_loss
from gkd_core.losses.fitnet import hint_loss
from gkd_core.losses.gradient import gradient_loss
from gkd_core.losses.logit_standardisation import standardise
from gkd_core.losses.reviewkd import hierarchical_context_loss
from gkd_core.losses.rkd import rkd_angle_loss, rkd_distance_loss
from gkd_core.losses.self_distillation import feature_distance
from gkd_core.losses.soft_labels import kd_loss, soft_label_kl
from gkd_core.losses.wasserstein import SOLVERS, wasserstein_loss
from gkd_core.models.classifier import Output
from gkd_core.schemes.amalgamation import AmalgamationLoss


@dataclass(frozen=True)
class Case:
    """A loss as a function of student, teacher and labels, and what it is called with.

    Attributes:
        student, teacher: shapes without the batch.
        same: student → a teacher that has nothing to teach it.
        mean: it is a mean over samples; else its samples count together.
        smooth: `gradcheck` applies; Sinkhorn's gradient is that of another value (see test_sinkhorn.py).
        steep: near zero the published formula's gradient is enormous.
        on_device: it never asks the device for a value.
        rest: value and gradient that a published ε leaves where there is nothing to learn.
    """

    loss: Callable[[Tensor, Tensor, Tensor], Tensor]
    student: tuple[int, ...] = (5,)
    teacher: tuple[int, ...] = (5,)
    same: Callable[[Tensor], Tensor] = torch.clone
    mean: bool = True
    smooth: bool = True
    steep: bool = False
    on_device: bool = True
    rest: float = 0.0


PARTS = [[0, 1, 2], [2, 4, 3]]


def amalgamation(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    outputs = (Output(logits, (), logits) for logits in (student, teacher))
    return AmalgamationLoss(PARTS)(*outputs, labels)["kd"]


MAPS = {"student": (3, 4, 4), "teacher": (3, 2, 2)}
VECTORS = {"student": (3,), "teacher": (2,), "mean": False}

CASES = {
    "soft_label_kl": Case(lambda s, t, y: soft_label_kl(s, t, 3.0), same=lambda s: s + 3),
    "kd_loss": Case(lambda s, t, y: kd_loss(s, t), same=lambda s: s + 3),
    "dkd_loss": Case(dkd_loss, same=lambda s: s + 3),
    "relation_losses": Case(lambda s, t, y: sum(relation_losses(s, t)), same=lambda s: s + 3, mean=False, rest=1e-5),
    "cmkd_loss": Case(lambda s, t, y: cmkd_loss(s, t), same=lambda s: 3 * s + 2),
    "standardised": Case(
        lambda s, t, y: kd_loss(standardise(s), standardise(t), 2.0), same=lambda s: 3 * s + 2, steep=True
    ),
    "entropy_corrected": Case(
        lambda s, t, y: entropy_corrected_kd_loss(s, t, torch.full((), 1.5, dtype=s.dtype, device=s.device)),
        same=lambda s: 1.5 * s,
    ),
    "hint_loss": Case(lambda s, t, y: hint_loss(s, t), **MAPS),
    "attention_loss": Case(lambda s, t, y: attention_loss(s, t), **MAPS, same=lambda s: -2 * s),
    "hierarchical": Case(lambda s, t, y: hierarchical_context_loss(s, t), student=(3, 5, 3), teacher=(3, 5, 3)),
    "gradient_loss": Case(lambda s, t, y: gradient_loss(s, t, r=0.3), **MAPS, steep=True),
    "rkd_distance_loss": Case(lambda s, t, y: rkd_distance_loss(s, t), **VECTORS, same=lambda s: 2.5 * s + 4),
    "rkd_angle_loss": Case(lambda s, t, y: rkd_angle_loss(s, t), **VECTORS, same=lambda s: 2.5 * s + 4),
    "feature_distance": Case(lambda s, t, y: feature_distance(s, t), mean=False),
    "amalgamation": Case(amalgamation, teacher=(6,), same=lambda s: torch.cat([s[:, PARTS[0]] + 5, s[:, PARTS[1]]], 1)),
} | {
    f"wasserstein {solver}": Case(
        lambda s, t, y, solver=solver: wasserstein_loss(s, t, solver=solver, projections=8),
        student=(3, 2, 2),
        teacher=(3, 2, 3),
        smooth=solver != "sinkhorn",
        on_device=solver != "exact",
    )
    for solver in SOLVERS
}

every = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
LABELS = torch.tensor([0, 3, 1, 4, 4])


def drawn(shape: tuple[int, ...], seed: int, count: int = 5) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2


def both(case: Case) -> tuple[Tensor, Tensor]:
    return drawn(case.student, 0), drawn(case.teacher, 1)


@every
def test_no_loss_and_no_gradient_where_there_is_nothing_to_learn(case):
    student = drawn(case.student, 0).requires_grad_()
    value = case.loss(student, case.same(student.detach()), LABELS)
    value.backward()
    assert value.item() == pytest.approx(0, abs=max(1e-12, case.rest))
    assert student.grad.abs().max() < max(1e-7, case.rest)


@every
def test_the_student_gets_a_gradient_and_the_teacher_none(case):
    student, teacher = (tensor.requires_grad_() for tensor in both(case))
    case.loss(student, teacher, LABELS).backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


@pytest.mark.parametrize("case", [c for c in CASES.values() if c.smooth], ids=[n for n, c in CASES.items() if c.smooth])
def test_gradcheck(case):
    student, teacher = both(case)
    assert torch.autograd.gradcheck(lambda s: case.loss(s, teacher, LABELS), student.requires_grad_())


@every
def test_half_types_are_computed_in_float32_and_float64_stays(case):
    student, teacher = both(case)
    full = case.loss(student.float(), teacher.float(), LABELS)
    with torch.autocast("cpu", torch.bfloat16):
        low = case.loss(student.bfloat16(), teacher.bfloat16(), LABELS)
        assert torch.equal(case.loss(student.float(), teacher.float(), LABELS), full)
    assert low.dtype == full.dtype == torch.float32
    assert low.item() == pytest.approx(full.item(), rel=0.05)
    assert case.loss(student, teacher, LABELS).dtype == torch.float64


@every
def test_the_order_of_the_batch_does_not_matter_and_a_mean_counts_every_sample_alike(case):
    student, teacher = both(case)
    value, order = case.loss(student, teacher, LABELS), torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(case.loss(student[order], teacher[order], LABELS[order]), value, rtol=0, atol=1e-12)
    if case.mean:
        rows = [slice(i, i + 1) for i in range(5)]
        samples = torch.stack([case.loss(student[row], teacher[row], LABELS[row]) for row in rows])
        torch.testing.assert_close(samples.mean(), value, rtol=0, atol=1e-12)


@every
def test_zeros_and_enormous_values_give_no_nan(case):
    """Zero maps have no direction, constant logits no spread, and a softmax may underflow."""
    student, teacher = both(case)
    for factors in ((0, 1), (1, 0), (0, 0), (1e4, -1e4)):
        leaf = (factors[0] * student).requires_grad_()
        value = case.loss(leaf, factors[1] * teacher, LABELS)
        value.backward()
        assert value.isfinite()
        assert leaf.grad.isfinite().all()
        assert case.steep or leaf.grad.abs().max() < 1e5, "a length near zero made the gradient explode"


@every
def test_what_does_not_fit_is_refused(case):
    student, teacher = both(case)
    for few in (1, 4):
        with pytest.raises(ValueError, match="differ in"):
            case.loss(student, teacher[:few], LABELS)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda z: kd_loss(z, z, 0.0), "temperature must be above 0"),
        (lambda z: soft_label_kl(z, z, float("nan")), "temperature must be above 0"),
        (lambda z: attention_loss(z[:, :, None, None], z[:, :, None, None], p=0.5), "p must be at least 1"),
        (lambda z: gradient_loss(z[:, :, None, None], z[:, :, None, None], r=1.1), "r must lie"),
        (lambda z: hint_loss(z[:, :, None, None], z[:, :1, None, None]), "differ in batch or channels"),
        (lambda z: gradient_loss(z[:, :, None, None], z[:, :1, None, None]), "batch or channels"),
        (lambda z: wasserstein_loss(z[:, :, None, None], z[:, :1, None, None]), "channels"),
        (lambda z: wasserstein_loss(z, z), r"\[B, C, H, W\]"),
        (lambda z: standardise(z[:, :2]), "2 classes"),
        (lambda z: cmkd_loss(z[:, :2], z[:, :2]), "2 classes"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call(drawn((5,), 0))


@pytest.mark.parametrize(
    "case", [c for c in CASES.values() if c.on_device], ids=[n for n, c in CASES.items() if c.on_device]
)
def test_nothing_waits_for_the_device(case):
    """Meta tensors have no values: `.item()` or a branch on a tensor raises."""
    student, teacher = (tensor.to("meta") for tensor in both(case))
    case.loss(student.requires_grad_(), teacher, LABELS.to("meta")).backward()
