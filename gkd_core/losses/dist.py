"""DIST: match relations among the predictions, between classes and within them, instead of the predictions."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from gkd_core.data import shards
from gkd_core.losses.base import Loss, at_least_float32, expect_same_shape, required
from gkd_core.losses.soft_labels import TEMPERATURE
from gkd_core.models.classifier import Output, StagedNetwork

EPSILON = 1e-8
"""What the authors add to the product of two lengths. It counts where probabilities hardly vary: at τ = 1 with
confident logits it takes most of the gradient away."""


def pearson_correlation(x: Tensor, y: Tensor, epsilon: float = 0.0) -> Tensor:
    """Correlation along the last dimension: two [..., N] → [...] in [−1, 1].

    A vector without variation, up to rounding, correlates with nothing: 0, and no gradient (dividing by its norm, or by
    a small epsilon, would give an enormous one).

    Args:
        x, y: same shape; any float dtype, computed in at least float32.
        epsilon: added to the product of the lengths of the centred vectors, which stands below the fraction line.
    """
    (x, x_length), (y, y_length) = _standardised(x), _standardised(y)
    correlation = (x * y).sum(-1)
    if not epsilon:
        return correlation
    lengths = (x_length * y_length).squeeze(-1)
    return correlation * (lengths / (lengths + epsilon))


def _standardised(x: Tensor) -> tuple[Tensor, Tensor]:
    """Centred, to unit length; and the length [..., 1] that it had, 1 for a vector without variation."""
    x = at_least_float32(x)
    centred = x - x.mean(-1, keepdim=True)
    length = torch.linalg.vector_norm(centred, dim=-1, keepdim=True)
    rounding = 4 * torch.finfo(x.dtype).eps * torch.linalg.vector_norm(x.detach(), dim=-1, keepdim=True)
    varies = length > rounding
    length = torch.where(varies, length, 1.0)
    return torch.where(varies, centred, 0.0) / length, length


def relation_losses(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float = TEMPERATURE
) -> tuple[Tensor, Tensor]:
    """1 − Pearson's correlation of the softened probabilities: (inter, intra), without a factor τ².

    Inter: of each sample over the classes (rows), mean over samples. Intra: of each class over the samples (columns),
    mean over classes; a class whose probability is the same in all samples counts 1, without gradient.

    Args:
        student_logits: [B, C]; any float dtype, computed in at least float32.
        teacher_logits: [B, C]; no gradient flows into it.
        temperature: τ > 0 of both.
    Raises:
        ValueError: shapes differ.
    Source: Huang et al. 2022 (arXiv:2205.10536); lib/models/losses/dist_kd.py of hunto/image_classification_sota,
        with its ε.

    Example:
        >>> z = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> [round(value.item(), 3) for value in relation_losses(z, -z)]
        [2.0, 2.0]
    """
    expect_same_shape("student logits", student_logits, "teacher logits", teacher_logits)
    student = (at_least_float32(student_logits) / temperature).softmax(1)
    teacher = (at_least_float32(teacher_logits.detach()) / temperature).softmax(1)
    inter = 1 - pearson_correlation(student, teacher, EPSILON).mean()
    intra = 1 - pearson_correlation(student.T, teacher.T, EPSILON).mean()
    return inter, intra


class Dist(Loss):
    """L = CE(z_S, y) + τ²·(weight_inter·inter + weight_intra·intra).

    Args:
        weight_inter: of the relation between classes, sample by sample (β).
        weight_intra: of the relation within a class, over the batch (γ).
        temperature: τ. The defaults are the authors' for CIFAR-100, factor τ² included.
    Raises:
        GkdError: there is no teacher.
    Source: Huang et al. 2022 (arXiv:2205.10536); hunto/image_classification_sota.

    Example:
        >>> loss = Dist(student, teacher, weight_intra=1.0)
        >>> sorted(loss(student(images), teacher(images), labels))
        ['ce', 'inter', 'intra']
    """

    unlabelled = True

    def __init__(
        self,
        student: StagedNetwork,
        teacher: StagedNetwork | None,
        *,
        weight_inter: Annotated[float, Field(ge=0.0)] = 2.0,
        weight_intra: Annotated[float, Field(ge=0.0)] = 2.0,
        temperature: Annotated[float, Field(gt=0.0)] = TEMPERATURE,
    ) -> None:
        super().__init__()
        required(teacher, "dist")
        self.weight_inter = weight_inter
        self.weight_intra = weight_intra
        self.temperature = temperature

    def forward(self, student: Output, teacher: Output | None, labels: Tensor, **unused: object) -> dict[str, Tensor]:
        """Terms "ce", "inter" and "intra"."""
        # The relation within a class reaches over the whole batch, whichever process has its rows.
        gather = shards.current().gather
        student_logits, teacher_logits = gather(student.logits), gather(required(teacher, "dist").logits)
        inter, intra = relation_losses(student_logits, teacher_logits, self.temperature)
        scale = self.temperature**2
        return {
            "ce": self.cross_entropy(student.logits, labels),
            "inter": self.weight_inter * scale * inter,
            "intra": self.weight_intra * scale * intra,
        }
