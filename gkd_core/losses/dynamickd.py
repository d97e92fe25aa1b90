"""DynamicKD: an entropy controller, learned from the distillation loss, corrects the student's soft labels."""

import math
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from gkd_core.losses.base import Loss, at_least_float32, full_precision, required
from gkd_core.losses.soft_labels import TEMPERATURE, kd_loss
from gkd_core.models.classifier import Output, StagedNetwork


def entropy_corrected_kd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    scale: Tensor,
    temperature: float = TEMPERATURE,
    *,
    weights: Tensor | None = None,
) -> Tensor:
    """KL(σ(teacher / τ) ‖ σ(k·student / τ)) · τ², in nats, mean over the batch.

    The entropy of σ(k·z / τ) falls strictly in k wherever the logits differ, the loss is convex in k, and for one k
    its derivative is τ·(E_student[z] − E_teacher[z]), z the student's logits, averaged over the batch.

    Args:
        student_logits: [B, C]; any float dtype, computed in at least float32.
        teacher_logits: [B, C]; no gradient flows into it.
        scale: k > 0, [] for one or [B, 1] for one a sample.
        temperature: τ > 0; larger is softer.
        weights: [B], what each sample counts in the mean; None counts all alike.
    Raises:
        ValueError: shapes differ, or temperature is not positive.

    Example:
        >>> z = torch.tensor([[2.0, 0.0]])
        >>> entropy_corrected_kd_loss(z / 2, z, torch.tensor(2.0))
        tensor(0.)
    """
    return kd_loss(scale * at_least_float32(student_logits), teacher_logits, temperature, weights=weights)


LARGEST_SCALE = 4.0
"""k stays within 1/4 and 4, so the student's temperature τ / k within a quarter and four times τ."""


class DynamicKD(Loss):
    """L = w_ce·CE(z_S, y) + w_kd·τ²·KL(σ(z_T/τ) ‖ σ(k·z_S/τ)), with k = exp(a) learned from the second term alone.

    A reconstruction: the abstract says that an entropy controller, updated by the distillation loss, corrects the
    student's output entropy in real time. Assumed: the controller is one factor k on the student's logits, 1 at first;
    cross-entropy and inference see the raw logits (or k would be one more scale of the network); a learns at the
    student's learning rate, without weight decay, which would pull k back to 1; the weights and τ are plain KD's. Also
    ours: k is kept within 1/`LARGEST_SCALE` and `LARGEST_SCALE`. Unbounded it runs away at large learning rates: to 0,
    where its gradient, which is proportional to k, vanishes with it for good, or (per sample) to infinity.

    Args:
        weight_ce: w_ce.
        weight_kd: w_kd.
        temperature: τ of the soft labels.
        per_sample: one k a sample, k = exp(w·ẑ_S / √C + a) with w from 0 and ẑ_S the sample's standardised logits, so
            that w moves as fast as a; the student gets no gradient through w (assumed).
    Raises:
        GkdError: there is no teacher.
    Source: the idea, Zhu et al. 2024, Pattern Recognition (arXiv:2305.05233); the formula is ours.

    Example:
        >>> loss = DynamicKD(student, teacher)
        >>> sorted(loss(student(images), teacher(images), labels))
        ['ce', 'kd']
    """

    unlabelled = True
    weighs_samples = True

    def __init__(
        self,
        student: StagedNetwork,
        teacher: StagedNetwork | None,
        *,
        weight_ce: Annotated[float, Field(ge=0.0)] = 0.1,
        weight_kd: Annotated[float, Field(gt=0.0)] = 0.9,
        temperature: Annotated[float, Field(gt=0.0)] = TEMPERATURE,
        per_sample: bool = False,
    ) -> None:
        super().__init__()
        required(teacher, "dynamickd")
        self.weight_ce = weight_ce
        self.weight_kd = weight_kd
        self.temperature = temperature
        self.log_scale = nn.Parameter(torch.zeros(()))
        self.slope = nn.Parameter(torch.zeros(student.num_classes)) if per_sample else None

    def scale(self, student_logits: Tensor) -> Tensor:
        """k: [], or [B, 1] with `per_sample`."""
        limit = math.log(LARGEST_SCALE)
        if self.training:
            with torch.no_grad():
                self.log_scale.clamp_(-limit, limit)  # projected gradient descent
        if self.slope is None:
            return self.log_scale.exp()
        with full_precision(student_logits):
            logits = at_least_float32(student_logits.detach())
            logits = functional.layer_norm(logits, logits.shape[1:]) / math.sqrt(logits.shape[1])
            exponent = logits @ self.slope.to(logits.dtype) + self.log_scale
            # Bounded in value alone: a sample beyond the bounds still says which way w and a should go.
            return (exponent + (exponent.clamp(-limit, limit) - exponent).detach()).exp()[:, None]

    def forward(self, student: Output, teacher: Output | None, labels: Tensor, **unused: object) -> dict[str, Tensor]:
        """Terms "ce" and "kd"."""
        teacher, scale = required(teacher, "dynamickd"), self.scale(student.logits)
        weights = self.sample_weights(labels)
        corrected = entropy_corrected_kd_loss(student.logits, teacher.logits, scale, self.temperature, weights=weights)
        return {"ce": self.weight_ce * self.cross_entropy(student.logits, labels), "kd": self.weight_kd * corrected}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The controller, without weight decay."""
        return [{"params": list(self.parameters()), "weight_decay": 0.0}]
