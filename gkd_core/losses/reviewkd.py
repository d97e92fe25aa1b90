"""ReviewKD: each stage of the teacher is matched by the student's same stage and all its deeper ones together."""

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from gkd_core.losses.base import (
    Loss,
    at_least_float32,
    expect_same_shape,
    full_precision,
    mean_squared_difference,
    required,
    warmed_up,
    warmup_length,
)
from gkd_core.losses.feature_maps import BatchNorm, student_and_teacher_stages
from gkd_core.models.classifier import Output, StagedNetwork

WARMUP_EPOCHS = 20.0
WIDEST = 512  # channels of the fused maps at most, as published


def hierarchical_context_loss(
    student_features: Tensor, teacher_features: Tensor, *, weights: Tensor | None = None
) -> Tensor:
    """Squared difference on the full grid and on its averages over 4×4, 2×2 and 1×1 areas, weighted 1, ½, ¼, ⅛.

    Levels not below the grid's size are left out; the weights of the others are scaled to sum to 1.

    Args:
        student_features: [B, C, H, W]; any float dtype, computed in at least float32.
        teacher_features: [B, C, H, W]; no gradient flows into it.
        weights: [B], what each sample counts in the mean; None counts all alike.
    Returns:
        The mean over batch, channels and positions of each level, weighted.
    Raises:
        ValueError: shapes differ.
    Source: Chen et al. 2021, §3.4 (arXiv:2104.09044); `hcl` in the authors' CIFAR-100/model/reviewkd.py.

    Example:
        >>> hierarchical_context_loss(torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8))
        tensor(1.)
    """
    expect_same_shape("student features", student_features, "teacher features", teacher_features)
    student = at_least_float32(student_features)
    teacher = at_least_float32(teacher_features.detach()).to(student.dtype)
    weight = total = 1.0
    loss = mean_squared_difference(student, teacher, weights)
    for size in (4, 2, 1):
        if size < min(student.shape[2:]):
            weight /= 2
            total += weight
            averages = functional.adaptive_avg_pool2d(student, size), functional.adaptive_avg_pool2d(teacher, size)
            loss = loss + weight * mean_squared_difference(*averages, weights)
    return loss / total


class Fusion(nn.Module):
    """Attention-based fusion (ABF): one stage of the student joined with what its deeper stages gave.

    Args:
        channels: of the stage.
        middle: of the fused maps handed on to the next shallower stage.
        out: of the teacher's stage it is compared with.
        fuse: there are deeper stages.
    Source: Chen et al. 2021, §3.3 (arXiv:2104.09044); `ABF` in the authors' CIFAR-100/model/reviewkd.py.
    """

    def __init__(self, channels: int, middle: int, out: int, *, fuse: bool) -> None:
        super().__init__()
        into, out_of = nn.Conv2d(channels, middle, 1, bias=False), nn.Conv2d(middle, out, 3, padding=1, bias=False)
        nn.init.kaiming_uniform_(into.weight, a=1)
        nn.init.kaiming_uniform_(out_of.weight, a=1)
        self.enter = nn.Sequential(into, BatchNorm(middle))
        self.leave = nn.Sequential(out_of, BatchNorm(out))
        self.attend = nn.Sequential(nn.Conv2d(2 * middle, 2, 1), nn.Sigmoid()) if fuse else None

    def forward(self, stage: Tensor, deeper: Tensor | None, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """[B, channels, H, W], [B, middle, h, w] → [B, out, *grid] to compare, [B, middle, *grid] to hand on."""
        fused = self.enter(stage)
        if self.attend is not None and deeper is not None:
            deeper = functional.interpolate(deeper, fused.shape[2:], mode="nearest")
            attention = self.attend(torch.cat((fused, deeper), 1))
            fused = fused * attention[:, :1] + deeper * attention[:, 1:]
        if fused.shape[2:] != grid:
            fused = functional.interpolate(fused, grid, mode="nearest")
        return self.leave(fused), fused


class ReviewKD(Loss):
    """L = CE(z_S, y) + weight·min(t / warmup_epochs, 1)·Σ over stages of the hierarchical context loss.

    Compared are the pooled last stage and the stages, paired from the deepest one backwards; where one network has
    more, its shallowest stay out. The stages are those of `Output`, after their activation; the authors take the
    teacher's before it. The fusions learn along and are thrown away with the loss.

    Args:
        seed: of the fusions' initial weights.
        epochs: length of the training.
        weight: of the sum. The default is the authors' for resnet32x4 → resnet8x4 (resnet56 → resnet20: 0.6);
            the last stage of some networks is another here (see docs/methods.md).
        warmup_epochs: epochs of linear rise; 0 has none; null is the published 20, or a quarter of the training where
            that is shorter.
    Raises:
        GkdError: there is no teacher, or a network has no feature maps.
    Source: Chen et al. 2021 (arXiv:2104.09044); the authors' CIFAR-100/train.py, mdistiller's ReviewKD.py.

    Example:
        >>> loss = ReviewKD(student, teacher, epochs=30)
        >>> sorted(loss(student(images), teacher(images), labels, epoch=0.5))
        ['ce', 'review']
    """

    feature_maps = True
    unlabelled = True
    weighs_samples = True

    def __init__(
        self,
        student: StagedNetwork,
        teacher: StagedNetwork | None,
        *,
        seed: int = 0,
        epochs: int,
        weight: Annotated[float, Field(ge=0.0)] = 5.0,
        warmup_epochs: Annotated[float, Field(ge=0.0)] | None = None,
    ) -> None:
        super().__init__()
        student_stages, teacher_stages = student_and_teacher_stages(student, teacher, "reviewkd")
        self.weight = weight
        self.warmup_epochs = warmup_length(warmup_epochs, published=WARMUP_EPOCHS, epochs=epochs)
        self.pairs = min(len(student_stages), len(teacher_stages))
        ins = [channels for channels, _, _ in (*student_stages[-self.pairs :], student_stages[-1])]
        outs = [channels for channels, _, _ in (*teacher_stages[-self.pairs :], teacher_stages[-1])]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.fusions = nn.ModuleList(
                Fusion(channels, min(WIDEST, ins[-1]), out, fuse=i < self.pairs)
                for i, (channels, out) in enumerate(zip(ins, outs, strict=True))
            )

    def forward(
        self, student: Output, teacher: Output | None, labels: Tensor, *, epoch: float = 0.0, **unused: object
    ) -> dict[str, Tensor]:
        """Terms "ce" and "review"."""
        student_maps = self._maps(student.stages)
        teacher_maps = self._maps(required(teacher, "reviewkd").stages)
        weights = self.sample_weights(labels)
        losses, handed_on = [], None
        for stage, target, fusion in zip(student_maps[::-1], teacher_maps[::-1], list(self.fusions)[::-1], strict=True):
            with full_precision(stage):
                compared, handed_on = fusion(stage, handed_on, tuple(target.shape[2:]))
            losses.append(hierarchical_context_loss(compared, target, weights=weights))
        warmth = warmed_up(epoch, self.warmup_epochs)
        return {
            "ce": self.cross_entropy(student.logits, labels),
            "review": self.weight * warmth * torch.stack(losses).sum(),
        }

    def _maps(self, stages: Sequence[Tensor]) -> list[Tensor]:
        """The paired stages and the pooled last one, from shallow to deep, in at least float32."""
        deepest = at_least_float32(stages[-1])
        return [*(at_least_float32(stage) for stage in stages[-self.pairs :]), deepest.mean((2, 3), keepdim=True)]
