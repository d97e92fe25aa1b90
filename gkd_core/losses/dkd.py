"""DKD: soft labels decoupled into how sure the teacher is of the target, and how it ranks everything else."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from gkd_core.losses.base import (
    Loss,
    at_least_float32,
    batch_mean,
    expect_same_shape,
    required,
    warmed_up_by_steps,
    warmup_length,
)
from gkd_core.losses.soft_labels import TEMPERATURE
from gkd_core.models.classifier import Output, StagedNetwork

WARMUP_EPOCHS = 20.0


def decoupled_kl(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float = TEMPERATURE
) -> tuple[Tensor, Tensor]:
    """The two parts of KL(teacher ‖ student), per sample: (TCKD [B], NCKD [B]), in nats, without a factor τ².

    TCKD is the divergence of (p, 1 − p), p the target's probability; NCKD that of the probabilities among the other
    classes. With p_T the teacher's: KL = TCKD + (1 − p_T)·NCKD.

    Args:
        student_logits: [B, C]; any float dtype, computed in at least float32.
        teacher_logits: [B, C]; no gradient flows into it.
        labels: [B] int64.
        temperature: τ > 0 of both.
    Raises:
        ValueError: shapes differ, or labels are not integers [B].
    Source: Zhao et al. 2022 (arXiv:2203.08679); mdistiller/distillers/DKD.py of megvii-research/mdistiller,
        here in log space, where nothing needs masking with a large number.

    Example:
        >>> z = torch.tensor([[2.0, 0.0, 1.0]])
        >>> decoupled_kl(z, z, torch.tensor([0]))
        (tensor([0.]), tensor([0.]))
    """
    expect_same_shape("student logits", student_logits, "teacher logits", teacher_logits)
    if labels.ndim != 1:
        raise ValueError(f"labels {tuple(labels.shape)} must be integer labels [B]")
    student_split, student_others = _split(at_least_float32(student_logits) / temperature, labels)
    teacher_split, teacher_others = _split(at_least_float32(teacher_logits.detach()) / temperature, labels)
    return _kl(teacher_split, student_split), _kl(teacher_others, student_others)


def dkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    weight_target: float = 1.0,
    weight_non_target: float = 8.0,
    temperature: float = TEMPERATURE,
    *,
    weights: Tensor | None = None,
) -> Tensor:
    """τ²·(weight_target·TCKD + weight_non_target·NCKD), in nats, mean over the batch; the rest as in `decoupled_kl`.

    Args:
        weights: [B], what each sample counts in the mean; None counts all alike.

    Example:
        >>> dkd_loss(torch.tensor([[0.0, 0.0]]), torch.tensor([[4.0, 0.0]]), torch.tensor([0]))
        tensor(1.7751)
    """
    target, others = decoupled_kl(student_logits, teacher_logits, labels, temperature)
    return temperature**2 * batch_mean(weight_target * target + weight_non_target * others, weights)


def _split(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities (target, all others together) [B, 2], and of the others among themselves [B, C − 1]."""
    columns = torch.arange(logits.shape[1] - 1, device=logits.device)
    others = logits.gather(1, columns + (columns >= labels[:, None]))
    target = logits.gather(1, labels[:, None])
    pair = torch.cat([target, others.logsumexp(1, keepdim=True)], dim=1)
    return functional.log_softmax(pair, dim=1), functional.log_softmax(others, dim=1)


def _kl(teacher: Tensor, student: Tensor) -> Tensor:
    """KL of log-probabilities [B, N], per sample."""
    return functional.kl_div(student, teacher, reduction="none", log_target=True).sum(1)


class DecoupledKD(Loss):
    """L = CE(z_S, y) + w(t)·τ²·(weight_target·TCKD + weight_non_target·NCKD), w rising to 1, a step an epoch.

    Args:
        epochs: length of the training.
        weight_target: of the target's part (α).
        weight_non_target: of the other classes' part (β); the authors choose it by pair, 8 for resnet32x4 → resnet8x4.
        temperature: τ of the soft labels.
        warmup_epochs: length of the warm-up; 0 does without; null is the published 20 (of 240), or a quarter of the
            training where that is shorter. As with the authors the first epoch has 1 / warmup_epochs.
    Raises:
        GkdError: there is no teacher.
    Source: Zhao et al. 2022 (arXiv:2203.08679); megvii-research/mdistiller.

    Example:
        >>> loss = DecoupledKD(student, teacher, epochs=30)
        >>> sorted(loss(student(images), teacher(images), labels, epoch=0.5))
        ['ce', 'dkd']
    """

    hard_labels = True
    weighs_samples = True

    def __init__(
        self,
        student: StagedNetwork,
        teacher: StagedNetwork | None,
        *,
        epochs: int,
        weight_target: Annotated[float, Field(ge=0.0)] = 1.0,
        weight_non_target: Annotated[float, Field(ge=0.0)] = 8.0,
        temperature: Annotated[float, Field(gt=0.0)] = TEMPERATURE,
        warmup_epochs: Annotated[float, Field(ge=0.0)] | None = None,
    ) -> None:
        super().__init__()
        required(teacher, "dkd")
        self.weight_target = weight_target
        self.weight_non_target = weight_non_target
        self.temperature = temperature
        self.warmup_epochs = warmup_length(warmup_epochs, published=WARMUP_EPOCHS, epochs=epochs)

    def forward(
        self, student: Output, teacher: Output | None, labels: Tensor, *, epoch: float = 0.0, **unused: object
    ) -> dict[str, Tensor]:
        """Terms "ce" and "dkd"."""
        teacher = required(teacher, "dkd")
        parts, weights = (self.weight_target, self.weight_non_target), self.sample_weights(labels)
        decoupled = dkd_loss(student.logits, teacher.logits, labels, *parts, self.temperature, weights=weights)
        return {
            "ce": self.cross_entropy(student.logits, labels),
            "dkd": warmed_up_by_steps(epoch, self.warmup_epochs) * decoupled,
        }
