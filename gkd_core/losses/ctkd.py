"""CTKD: the temperature learns against the student, and the contest grows over the first epochs."""

import math
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from gkd_core.losses.base import Loss, required, warmed_up_by_steps, warmup_length
from gkd_core.losses.soft_labels import kd_loss
from gkd_core.models.classifier import Output, StagedNetwork

CURRICULUM_EPOCHS = 10.0


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * gradients[0], None


def reverse_gradient(x: Tensor, strength: float) -> Tensor:
    """`x` itself, whose gradient is multiplied by −strength on its way back.

    Source: Ganin & Lempitsky 2015 (arXiv:1409.7495).

    Example:
        >>> x = torch.ones((), requires_grad=True)
        >>> (2 * reverse_gradient(x, 0.5)).backward()
        >>> x.grad
        tensor(-1.)
    """
    reversed_: Tensor = _Reverse.apply(x, strength)
    return reversed_


class CurriculumTemperature(Loss):
    """L = w_ce·CE(z_S, y) + w_kd·τ²·KL(σ(z_T/τ) ‖ σ(z_S/τ)), with τ = start + range·sigmoid(a) learned to *raise* L.

    The gradient of a is multiplied by −λ; λ rises from 0 to 1 along half a cosine, so the student is challenged little
    by little. It flows through both networks' softened probabilities and through τ². As with the authors λ steps once
    an epoch, and the first one has its first step; a starts at 1 (τ = 15.6 with the defaults) and shares the student's
    learning rate and weight decay.

    Args:
        epochs: length of the training.
        weight_ce: w_ce.
        weight_kd: w_kd.
        temperature_start: smallest τ.
        temperature_range: how far τ can rise above it.
        curriculum_epochs: until λ = 1; 0 begins with 1; null is the published 10 (of 240), or a quarter of the training
            where that is shorter.
    Raises:
        GkdError: there is no teacher.
    Source: Li et al. 2023 (arXiv:2211.16231), the global version; train_student.py, helper/loops.py and
        scripts/run_cifar_distill.sh of zhengli97/CTKD.

    Example:
        >>> loss = CurriculumTemperature(student, teacher, epochs=30)
        >>> sorted(loss(student(images), teacher(images), labels, epoch=0.5))
        ['ce', 'kd']
    """

    unlabelled = True
    weighs_samples = True

    def __init__(
        self,
        student: StagedNetwork,
        teacher: StagedNetwork | None,
        *,
        epochs: int,
        weight_ce: Annotated[float, Field(ge=0.0)] = 0.1,
        weight_kd: Annotated[float, Field(ge=0.0)] = 0.9,
        temperature_start: Annotated[float, Field(gt=0.0)] = 1.0,
        temperature_range: Annotated[float, Field(gt=0.0)] = 20.0,
        curriculum_epochs: Annotated[float, Field(ge=0.0)] | None = None,
    ) -> None:
        super().__init__()
        required(teacher, "ctkd")
        self.weight_ce = weight_ce
        self.weight_kd = weight_kd
        self.temperature_start = temperature_start
        self.temperature_range = temperature_range
        self.curriculum_epochs = warmup_length(curriculum_epochs, published=CURRICULUM_EPOCHS, epochs=epochs)
        self.raw_temperature = nn.Parameter(torch.ones(()))

    def strength(self, epoch: float) -> float:
        """λ at time t in epochs."""
        return (1 - math.cos(math.pi * warmed_up_by_steps(epoch, self.curriculum_epochs))) / 2

    def temperature(self, epoch: float) -> Tensor:
        """τ, [], whose gradient is reversed as strongly as it is at time t in epochs."""
        raw = reverse_gradient(self.raw_temperature, self.strength(epoch))
        return self.temperature_start + self.temperature_range * raw.sigmoid()

    def forward(
        self, student: Output, teacher: Output | None, labels: Tensor, *, epoch: float = 0.0, **unused: object
    ) -> dict[str, Tensor]:
        """Terms "ce" and "kd"."""
        teacher_logits, weights = required(teacher, "ctkd").logits, self.sample_weights(labels)
        soft = kd_loss(student.logits, teacher_logits, self.temperature(epoch), weights=weights)
        return {"ce": self.weight_ce * self.cross_entropy(student.logits, labels), "kd": self.weight_kd * soft}
