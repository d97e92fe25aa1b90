"""Plain knowledge distillation: what every other method is compared with."""

from typing import Annotated

from pydantic import Field
from torch import Tensor

from gkd_core.losses.base import Loss, required
from gkd_core.losses.soft_labels import TEMPERATURE, kd_loss
from gkd_core.models.classifier import Output, StagedNetwork


class KnowledgeDistillation(Loss):
    """L = (1 − weight)·CE(z_S, y) + weight·τ²·KL(σ(z_T/τ) ‖ σ(z_S/τ)).

    Args:
        weight: of the soft labels (α); cross-entropy has 1 − weight.
        temperature: τ of the soft labels. The defaults are the CIFAR-100 benchmark's.
    Raises:
        GkdError: there is no teacher.
    Source: Hinton et al. 2015, §2 (arXiv:1503.02531).

    Example:
        >>> loss = KnowledgeDistillation(student, teacher, temperature=2.0)
        >>> terms = loss(student(images), teacher(images), labels)
        >>> sorted(terms)
        ['ce', 'kd']
        >>> sum(terms.values()).backward()
    """

    unlabelled = True
    weighs_samples = True

    def __init__(
        self,
        student: StagedNetwork,
        teacher: StagedNetwork | None,
        *,
        weight: Annotated[float, Field(ge=0.0, le=1.0)] = 0.9,
        temperature: Annotated[float, Field(gt=0.0)] = TEMPERATURE,
    ) -> None:
        super().__init__()
        required(teacher, "kd")
        self.weight = weight
        self.temperature = temperature

    def forward(self, student: Output, teacher: Output | None, labels: Tensor, **unused: object) -> dict[str, Tensor]:
        """Terms "ce" and "kd"."""
        teacher_logits, weights = required(teacher, "kd").logits, self.sample_weights(labels)
        soft = kd_loss(student.logits, teacher_logits, self.temperature, weights=weights)
        return {"ce": (1 - self.weight) * self.cross_entropy(student.logits, labels), "kd": self.weight * soft}
