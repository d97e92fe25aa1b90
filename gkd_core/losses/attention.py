"""Attention transfer: the student should look where the teacher looks."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from gkd_core.losses.base import Loss, at_least_float32, mean_squared_difference, required
from gkd_core.losses.feature_maps import student_and_teacher_stages, to_smaller_grid
from gkd_core.models.classifier import Output, StagedNetwork


def attention_map(features: Tensor, p: float = 2.0) -> Tensor:
    """Where a feature map is large: the channels' mean of |f|ᵖ, flattened and scaled to unit Euclidean norm.

    Args:
        features: [B, C, H, W].
        p: power ≥ 1.
    Returns:
        [B, H·W], at least float32; zeros, with a zero gradient, where the features are all zero.
    """
    return functional.normalize(at_least_float32(features).abs().pow(p).mean(1).flatten(1), dim=1)


def attention_loss(
    student_features: Tensor, teacher_features: Tensor, p: float = 2.0, *, weights: Tensor | None = None
) -> Tensor:
    """Mean squared difference of two attention maps, over batch and positions, on the smaller of their grids.

    Args:
        student_features: [B, C, H, W]; any float dtype, computed in at least float32.
        teacher_features: [B, C₂, H₂, W₂], channels and grid may differ; no gradient flows into it.
        p: power ≥ 1.
        weights: [B], what each sample counts in the mean; None counts all alike.
    Raises:
        ValueError: the batches differ, or p is below 1.
    Source: Zagoruyko & Komodakis 2017, eq. 2 (arXiv:1612.03928), as the authors' code and RepDistiller's
        distiller_zoo/AT.py compute it: squared, a mean instead of a norm.

    Example:
        >>> attention_loss(torch.tensor([[[[3.0, 0.0]]]]), torch.tensor([[[[0.0, 1.0]]]]))
        tensor(1.)
    """
    if student_features.ndim != 4 or len(student_features) != len(teacher_features):
        raise ValueError(
            f"student features {tuple(student_features.shape)} and teacher features {tuple(teacher_features.shape)} "
            "differ in batch"
        )
    if not p >= 1:
        raise ValueError(f"p must be at least 1, not {p}")
    student, teacher = to_smaller_grid(at_least_float32(student_features), at_least_float32(teacher_features.detach()))
    attended = attention_map(student, p)
    return mean_squared_difference(attended, attention_map(teacher, p).to(attended.dtype), weights)


class AttentionTransfer(Loss):
    """L = CE(z_S, y) + weight·Σ over stages of the attention loss.

    Stages are paired from the deepest one backwards; where one network has more, its shallowest stay out.

    Args:
        weight: of the sum. The default is the CIFAR-100 benchmark's; each map's mean grows as its positions become
            fewer, so images much smaller than 32 pixels want less. The last stage of wrn_*, MobileNetV2 and
            ShuffleNetV2 is not the one it was published for (see docs/methods.md).
        p: power of the attention maps.
    Raises:
        GkdError: there is no teacher, or a network has no feature maps.
    Source: Zagoruyko & Komodakis 2017 (arXiv:1612.03928); RepDistiller's train_student.py, mdistiller's AT.py.

    Example:
        >>> loss = AttentionTransfer(student, teacher)
        >>> sorted(loss(student(images), teacher(images), labels))
        ['attention', 'ce']
    """

    feature_maps = True
    unlabelled = True
    weighs_samples = True

    def __init__(
        self,
        student: StagedNetwork,
        teacher: StagedNetwork | None,
        *,
        weight: Annotated[float, Field(ge=0.0)] = 1000.0,
        p: Annotated[float, Field(ge=1.0)] = 2.0,
    ) -> None:
        super().__init__()
        self.pairs = min(len(shapes) for shapes in student_and_teacher_stages(student, teacher, "at"))
        self.weight = weight
        self.p = p

    def forward(self, student: Output, teacher: Output | None, labels: Tensor, **unused: object) -> dict[str, Tensor]:
        """Terms "ce" and "attention"."""
        teacher = required(teacher, "at")
        pairs = zip(student.stages[-self.pairs :], teacher.stages[-self.pairs :], strict=True)
        weights = self.sample_weights(labels)
        losses = [attention_loss(ours, theirs, self.p, weights=weights) for ours, theirs in pairs]
        return {"ce": self.cross_entropy(student.logits, labels), "attention": self.weight * torch.stack(losses).sum()}
