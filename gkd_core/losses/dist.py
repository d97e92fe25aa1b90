"""DIST: match relations among the predictions, between classes and within them, instead of the predictions."""

from typing import Annotated

from pydantic import Field
from torch import Tensor

from gkd_core.losses.base import Context, Loss, Step
from gkd_core.losses.pearson import pearson_correlation
from gkd_core.losses.precision import at_least_float32
from gkd_core.losses.taught import teacher_of, teacher_output


def relation_losses(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 4.0) -> tuple[Tensor, Tensor]:
    """1 − Pearson's correlation of the softened probabilities: (inter, intra), without a factor τ².

    Inter: of each sample over the classes (rows), mean over samples. Intra: of each class over the samples (columns),
    mean over classes; a class whose probability is the same in all samples counts 1, without gradient.

    Args:
        student_logits: [B, C]; any float dtype, computed in at least float32.
        teacher_logits: [B, C]; no gradient flows into it.
        temperature: τ > 0 of both.
    Raises:
        ValueError: shapes differ.
    Source: Huang et al. 2022 (arXiv:2205.10536); losses/dist_kd.py of hunto/DIST_KD.
    """
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"student logits {tuple(student_logits.shape)} and teacher logits {tuple(teacher_logits.shape)} "
            "differ in shape"
        )
    student = (at_least_float32(student_logits) / temperature).softmax(1)
    teacher = (at_least_float32(teacher_logits.detach()) / temperature).softmax(1)
    inter = 1 - pearson_correlation(student, teacher).mean()
    intra = 1 - pearson_correlation(student.T, teacher.T).mean()
    return inter, intra


class Dist(Loss):
    """L = CE(z_S, y) + τ²·(β·inter + γ·intra).

    Args:
        beta: weight β of the relation between classes, sample by sample.
        gamma: weight γ of the relation within a class, over the batch.
        temperature: τ. The defaults are the authors' for CIFAR-100, factor τ² included.
    Raises:
        GkdError: there is no teacher.
    Source: Huang et al. 2022 (arXiv:2205.10536); hunto/DIST_KD.
    """

    across_samples = "gathered"

    def __init__(
        self,
        context: Context,
        *,
        beta: Annotated[float, Field(ge=0.0)] = 2.0,
        gamma: Annotated[float, Field(ge=0.0)] = 2.0,
        temperature: Annotated[float, Field(gt=0.0)] = 4.0,
    ) -> None:
        super().__init__()
        teacher_of(context, "dist")
        self.beta = beta
        self.gamma = gamma
        self.temperature = temperature

    def forward(self, step: Step) -> dict[str, Tensor]:
        """Terms "ce", "inter" and "intra".

        Raises:
            ValueError: the step holds no teacher output.
        """
        student = step.student.logits
        # The relation within a class reaches over the whole batch, whoever has its rows.
        everyone = step.shards.gather(student), step.shards.gather(teacher_output(step).logits)
        inter, intra = relation_losses(*everyone, self.temperature)
        scale = self.temperature**2
        return {
            "ce": step.cross_entropy(student),
            "inter": self.beta * scale * inter,
            "intra": self.gamma * scale * intra,
        }
