"""CMKD: correlation matching, the teacher's logits by value (Pearson) and by rank (Spearman)."""

import math
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor
from torch.nn import functional

from gkd_core.losses.base import Loss, at_least_float32, batch_mean, expect_same_shape, required
from gkd_core.losses.dist import pearson_correlation
from gkd_core.losses.logit_standardisation import refuse_two_classes, standardise
from gkd_core.models.classifier import Output, StagedNetwork

Direction = Literal["hard_by_rank", "hard_by_value"]


def soft_rank(logits: Tensor, smoothness: float = 0.1) -> Tensor:
    """Differentiable ranks, 1 for the smallest: r_i = ½ + Σ_j sigmoid((z_i − z_j) / s), [B, C] → [B, C].

    Compares all pairs, B·C² numbers. The usual alternative, a projection onto the permutahedron with quadratic
    regularisation, is affine in standardised logits at its default strength and would make a Spearman term a copy of
    the Pearson term.

    Args:
        logits: [B, C], standardised; any float dtype, computed in at least float32.
        smoothness: s > 0; ranks are exact for s → 0.

    Example:
        >>> soft_rank(torch.tensor([[0.0, -1.0, 1.0]]), smoothness=0.01)
        tensor([[2., 1., 3.]])
    """
    logits = at_least_float32(logits)
    return 0.5 + ((logits[:, :, None] - logits[:, None, :]) / smoothness).sigmoid().sum(2)


def difficulty(teacher_logits: Tensor) -> Tensor:
    """Entropy of the teacher's probabilities at τ = 1 over its maximum log C: [B, C] → [B] in [0, 1], no gradient."""
    log_probabilities = functional.log_softmax(at_least_float32(teacher_logits.detach()), dim=1)
    return -(log_probabilities.exp() * log_probabilities).sum(1) / math.log(teacher_logits.shape[1])


def cmkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    smoothness: float = 0.1,
    direction: Direction = "hard_by_rank",
    *,
    weights: Tensor | None = None,
) -> Tensor:
    """Mean over the batch of (1 − h)·(1 − Pearson) + h·(1 − Spearman), h each sample's `difficulty`.

    Zero where student = a·teacher + b, a > 0.

    Args:
        student_logits: [B, C]; any float dtype, computed in at least float32.
        teacher_logits: [B, C]; no gradient flows into it.
        smoothness: of the soft ranks.
        direction: hard samples count more by rank, as written above, or by value (h and 1 − h exchanged).
        weights: [B], what each sample counts in the mean; None counts all alike.
    Raises:
        ValueError: shapes differ, or fewer than three classes.

    Example:
        >>> z = torch.tensor([[2.0, 0.0, -1.0]])
        >>> bool(cmkd_loss(3 * z + 1, z).abs() < 1e-6)
        True
    """
    expect_same_shape("student logits", student_logits, "teacher logits", teacher_logits)
    student, teacher = standardise(student_logits), standardise(teacher_logits.detach())
    by_value = 1 - pearson_correlation(student, teacher)
    by_rank = 1 - pearson_correlation(soft_rank(student, smoothness), soft_rank(teacher, smoothness))
    hard = difficulty(teacher_logits)
    rank_share = hard if direction == "hard_by_rank" else 1 - hard
    return batch_mean((1 - rank_share) * by_value + rank_share * by_rank, weights)


class CorrelationMatching(Loss):
    """L = CE(z_S, y) + λ·mean[(1 − h)·L_Pearson + h·L_Spearman], h the entropy of the teacher's answer in [0, 1].

    A reconstruction: the abstract names a Pearson and a Spearman loss whose weights follow each sample's difficulty.
    Assumed: both act on the standardised logits of a sample; ranks are soft, by pairwise sigmoids; difficulty is the
    teacher's entropy at τ = 1 over log C; hard samples count more by rank; λ = 1.

    Args:
        weight: λ.
        smoothness: s of the soft ranks.
        direction: which of the two hard samples favour.
    Raises:
        GkdError: there is no teacher, or there are fewer than three classes.
    Source: the idea, Niu et al. 2024 (arXiv:2410.06561); the formula is ours.

    Example:
        >>> loss = CorrelationMatching(student, teacher)
        >>> sorted(loss(student(images), teacher(images), labels))
        ['ce', 'correlation']
    """

    unlabelled = True
    weighs_samples = True

    def __init__(
        self,
        student: StagedNetwork,
        teacher: StagedNetwork | None,
        *,
        weight: Annotated[float, Field(ge=0.0)] = 1.0,
        smoothness: Annotated[float, Field(gt=0.0)] = 0.1,
        direction: Direction = "hard_by_rank",
    ) -> None:
        super().__init__()
        required(teacher, "cmkd")
        refuse_two_classes(student, "cmkd")
        self.weight = weight
        self.smoothness = smoothness
        self.direction: Direction = direction

    def forward(self, student: Output, teacher: Output | None, labels: Tensor, **unused: object) -> dict[str, Tensor]:
        """Terms "ce" and "correlation"."""
        teacher = required(teacher, "cmkd")
        weights = self.sample_weights(labels)
        correlation = cmkd_loss(student.logits, teacher.logits, self.smoothness, self.direction, weights=weights)
        return {"ce": self.cross_entropy(student.logits, labels), "correlation": self.weight * correlation}
