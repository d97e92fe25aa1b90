"""Plain knowledge distillation: what every other method is compared with."""

from typing import Annotated

from pydantic import Field
from torch import Tensor

from gkd_core.errors import GkdError
from gkd_core.losses.base import Context, Loss, Step
from gkd_core.losses.soft_labels import kd_loss


class KnowledgeDistillation(Loss):
    """L = (1 − α)·CE(z_S, y) + α·τ²·KL(σ(z_T/τ) ‖ σ(z_S/τ)).

    Args:
        alpha: weight α of the soft labels; cross-entropy has 1 − α.
        temperature: τ of the soft labels. The defaults are the CIFAR-100 benchmark's.
    Raises:
        GkdError: there is no teacher.
    Source: Hinton et al. 2015, §2 (arXiv:1503.02531).
    """

    def __init__(
        self,
        context: Context,
        *,
        alpha: Annotated[float, Field(ge=0.0, le=1.0)] = 0.9,
        temperature: Annotated[float, Field(gt=0.0)] = 4.0,
    ) -> None:
        super().__init__()
        if context.teacher is None:
            raise GkdError("distill.method kd learns from a teacher and was given none: pass --teacher, or take ce")
        self.alpha = alpha
        self.temperature = temperature

    def forward(self, step: Step) -> dict[str, Tensor]:
        """Terms "ce" and "kd".

        Raises:
            ValueError: the step holds no teacher output.
        """
        if step.teacher is None:
            raise ValueError("the step holds no teacher output")
        return {
            "ce": (1 - self.alpha) * step.cross_entropy(step.student.logits),
            "kd": self.alpha * kd_loss(step.student.logits, step.teacher.logits, self.temperature),
        }
