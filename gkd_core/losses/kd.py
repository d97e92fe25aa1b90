"""Plain knowledge distillation: what every other method is compared with."""

from typing import Annotated

from pydantic import Field
from torch import Tensor

from gkd_core.losses.base import Context, Loss, Step
from gkd_core.losses.soft_labels import kd_loss
from gkd_core.losses.taught import teacher_of, teacher_output


class KnowledgeDistillation(Loss):
    """L = (1 − α)·CE(z_S, y) + α·τ²·KL(σ(z_T/τ) ‖ σ(z_S/τ)).

    Args:
        alpha: weight α of the soft labels; cross-entropy has 1 − α.
        temperature: τ of the soft labels. The defaults are the CIFAR-100 benchmark's.
    Raises:
        GkdError: there is no teacher.
    Source: Hinton et al. 2015, §2 (arXiv:1503.02531).
    """

    across_samples = "nothing"

    def __init__(
        self,
        context: Context,
        *,
        alpha: Annotated[float, Field(ge=0.0, le=1.0)] = 0.9,
        temperature: Annotated[float, Field(gt=0.0)] = 4.0,
    ) -> None:
        super().__init__()
        teacher_of(context, "kd")
        self.alpha = alpha
        self.temperature = temperature

    def forward(self, step: Step) -> dict[str, Tensor]:
        """Terms "ce" and "kd".

        Raises:
            ValueError: the step holds no teacher output.
        """
        soft = kd_loss(step.student.logits, teacher_output(step).logits, self.temperature)
        return {"ce": (1 - self.alpha) * step.cross_entropy(step.student.logits), "kd": self.alpha * soft}
