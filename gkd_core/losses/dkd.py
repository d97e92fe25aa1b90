"""DKD: soft labels decoupled into how sure the teacher is of the target, and how it ranks everything else."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from gkd_core.losses.base import Context, Loss, Step
from gkd_core.losses.precision import at_least_float32
from gkd_core.losses.taught import teacher_of, teacher_output
from gkd_core.losses.warmup import warmup_length

WARMUP_EPOCHS = 20.0


def decoupled_kl(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float = 4.0
) -> tuple[Tensor, Tensor]:
    """The two parts of KL(teacher ‖ student), per sample: (TCKD [B], NCKD [B]), in nats, without a factor τ².

    TCKD is the divergence of (p, 1 − p), p the target's probability; NCKD that of the probabilities among the other
    classes. With p_T the teacher's: KL = TCKD + (1 − p_T)·NCKD.

    Args:
        student_logits: [B, C]; any float dtype, computed in at least float32.
        teacher_logits: [B, C]; no gradient flows into it.
        labels: [B] int64.
        temperature: τ > 0 of both.
    Source: Zhao et al. 2022 (arXiv:2203.08679); mdistiller/distillers/DKD.py of megvii-research/mdistiller,
        here in log space, where nothing needs masking with a large number.
    """
    student_split, student_others = _split(at_least_float32(student_logits) / temperature, labels)
    teacher_split, teacher_others = _split(at_least_float32(teacher_logits.detach()) / temperature, labels)
    return _kl(teacher_split, student_split), _kl(teacher_others, student_others)


def dkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
) -> Tensor:
    """τ²·(α·TCKD + β·NCKD), mean over the batch; arguments as in `decoupled_kl`."""
    target, others = decoupled_kl(student_logits, teacher_logits, labels, temperature)
    return temperature**2 * (alpha * target + beta * others).mean()


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
    """L = CE(z_S, y) + w(t)·τ²·(α·TCKD + β·NCKD), w rising linearly from 0 to 1 over the warm-up.

    Args:
        alpha: weight α of the target's part.
        beta: weight β of the other classes' part; the authors choose it by pair, 8 for resnet32x4 → resnet8x4.
        temperature: τ of the soft labels.
        warmup_epochs: length of the warm-up; 0 does without; null is the published 20 (of 240, in steps of one), or a
            quarter of the training where that is shorter.
    Raises:
        GkdError: there is no teacher.
    Source: Zhao et al. 2022 (arXiv:2203.08679); megvii-research/mdistiller.
    """

    hard_labels = True
    across_samples = "nothing"

    def __init__(
        self,
        context: Context,
        *,
        alpha: Annotated[float, Field(ge=0.0)] = 1.0,
        beta: Annotated[float, Field(ge=0.0)] = 8.0,
        temperature: Annotated[float, Field(gt=0.0)] = 4.0,
        warmup_epochs: Annotated[float, Field(ge=0.0)] | None = None,
    ) -> None:
        super().__init__()
        teacher_of(context, "dkd")
        self.alpha = alpha
        self.beta = beta
        self.temperature = temperature
        self.warmup_epochs = warmup_length(warmup_epochs, published=WARMUP_EPOCHS, epochs=context.epochs)

    def warmup(self, epoch: float) -> float:
        """w at time t in epochs."""
        return min(epoch / self.warmup_epochs, 1.0) if self.warmup_epochs else 1.0

    def forward(self, step: Step) -> dict[str, Tensor]:
        """Terms "ce" and "dkd".

        Raises:
            ValueError: the step holds no teacher output.
        """
        student, teacher = step.student.logits, teacher_output(step).logits
        decoupled = dkd_loss(student, teacher, step.labels, self.alpha, self.beta, self.temperature)
        return {"ce": step.cross_entropy(student), "dkd": self.warmup(step.epoch) * decoupled}
