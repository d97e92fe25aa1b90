"""ReviewKD: each stage of the teacher is matched by the student's same stage and all its deeper ones together."""

from collections.abc import Sequence
from typing import Annotated, Any, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from gkd_core.losses.base import (
    Loss,
    at_least_float32,
    batch_mean,
    expect_same_shape,
    full_precision,
    required,
    warmed_up,
    warmup_length,
)
from gkd_core.losses.feature_maps import BatchNorm, student_and_teacher_stages
from gkd_core.models.classifier import Output, StagedNetwork

WARMUP_EPOCHS = 20.0
WIDEST = 512  # channels of the fused maps at most, as published
LARGEST_CELL = 16  # pixels of a stage over one of a deeper stage: 4 where each stage halves both sides


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
    # An average of differences is the difference of averages: the teacher's maps are gone through once.
    finest = difference = student - at_least_float32(teacher_features.detach()).to(student.dtype)
    weight = total = 1.0
    loss = _mean_square(difference, weights)
    for size in (4, 2, 1):
        if size < min(difference.shape[2:]):
            weight /= 2
            total += weight
            averages = functional.adaptive_avg_pool2d(finest, size)
            loss = loss + weight * _mean_square(averages, weights)
            if finest.shape[2] % size == finest.shape[3] % size == 0:
                finest = averages  # areas of one size that do not overlap: coarser averages are averages of these
    return loss / total


def _mean_square(maps: Tensor, weights: Tensor | None) -> Tensor:
    return maps.square().mean() if weights is None else batch_mean(maps.square().flatten(1).mean(1), weights)


class Fusion(nn.Module):
    """Attention-based fusion (ABF): one stage of the student joined with what its deeper stages gave.

    The wide maps are the cost. So, where the stage is narrower, convolution and batch norm are one affine map of it
    (the statistics follow from the mean and covariance of its few channels), the attention's part of them is another,
    and the attention's factor at each position comes before the map instead of after it.

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
        affine = self._entrance(stage)
        if affine is None:
            values = _rows(self.enter(stage))
        else:
            values = torch.cat((_rows(stage), stage.new_ones(()).expand(stage.numel() // stage.shape[1], 1)), 1)
        size = stage.shape[0], stage.shape[2], stage.shape[3]
        if self.attend is None or deeper is None:
            fused = values if affine is None else values @ affine.T
        else:
            fused = _fuse(values, affine, deeper, size, cast(nn.Conv2d, self.attend[0]))
        fused = fused.reshape(*size, -1).permute(0, 3, 1, 2)
        if fused.shape[2:] != grid:
            fused = functional.interpolate(fused, grid, mode="nearest")
        return self.leave(fused), fused

    def _entrance(self, stage: Tensor) -> Tensor | None:
        """`enter` as one affine map [middle, channels + 1], the bias last; the norm counts the batch as it would.

        None where the stage is not narrower, or the norm asks other processes for their statistics.
        """
        weight, norm = cast(nn.Conv2d, self.enter[0]).weight.flatten(1).to(stage.dtype), self.enter[1]
        if not isinstance(norm, BatchNorm) or weight.shape[1] >= weight.shape[0]:
            return None
        mean, variance, seen, momentum = norm.running_mean, norm.running_var, norm.num_batches_tracked, norm.momentum
        assert mean is not None
        assert variance is not None
        pixels = stage.numel() // stage.shape[1]
        if norm.training and pixels > 1:
            assert seen is not None
            assert momentum is not None
            running, values = (mean, variance), _rows(stage)
            of_stage = values.mean(0)
            centred = values - of_stage
            mean = weight @ of_stage
            variance = ((weight @ (centred.T @ centred / pixels)) * weight).sum(1)
            with torch.no_grad():
                seen += 1
                running[0].lerp_(mean.to(running[0].dtype), momentum)
                running[1].lerp_(variance.to(running[1].dtype) * (pixels / (pixels - 1)), momentum)
        factor = norm.weight * (variance + norm.eps).rsqrt()
        return torch.cat((weight * factor[:, None], (norm.bias - mean * factor)[:, None]), 1)


def _fuse(
    values: Tensor, affine: Tensor | None, deeper: Tensor, size: tuple[int, int, int], attention: nn.Conv2d
) -> Tensor:
    """own · a + deeper · a′, both shares by the attention on both maps, the deeper one enlarged.

    Args:
        values: a row for each pixel; `affine` makes own maps [B·H·W, middle] of them, which they are where it is None.
        deeper: [B, middle, h, w].
        size: (B, H, W).
        attention: from 2·middle channels to 2, before the sigmoid.
    Returns:
        [B, h, H/h, w, W/w, middle].
    """
    batch, height, width = size
    if height % deeper.shape[2] or width % deeper.shape[3]:
        deeper = functional.interpolate(deeper, (height, width), mode="nearest")
    rows, columns = deeper.shape[2:]

    def in_cells(pixels: Tensor, high: int, wide: int) -> Tensor:
        return pixels.view(batch, rows, high, columns, wide, -1)

    within = height // rows, width // columns  # own pixels in one of the deeper ones
    to_own, to_deeper = attention.weight.flatten(1).split_with_sizes([deeper.shape[1]] * 2, 1)
    beneath = _rows(deeper)
    from_own = in_cells(values @ (to_own if affine is None else to_own @ affine).T, *within)
    shares = torch.sigmoid(from_own + in_cells(functional.linear(beneath, to_deeper, attention.bias), 1, 1))
    share, rest = shares.split_with_sizes([1, 1], -1)
    own = values * share.reshape(-1, 1)
    blended: Tensor = _Blend.apply(own, affine, in_cells(beneath, 1, 1), rest)
    return blended


class _Blend(torch.autograd.Function):
    """own + beneath · share; [B·H·W, C] + [B, h, 1, w, 1, C] · [B, h, a, w, b, 1] → [B, h, a, w, b, C].

    With an affine map [C, k], own is [B·H·W, k] and goes through that first. By autograd it would be the same, with two
    products as wide as the maps in the backward pass, each written and read again to be summed: half of the fusion's
    time. Here they are taken for one place of a cell at a time, and the sum is made where the map's product lies.
    """

    @staticmethod
    def forward(ctx: Any, own: Tensor, affine: Tensor | None, beneath: Tensor, share: Tensor) -> Tensor:
        ctx.save_for_backward(own, affine, beneath, share)
        maps = (own if affine is None else own @ affine.T).view(*share.shape[:5], -1)
        return torch.addcmul(maps, beneath, share) if affine is None else maps.addcmul_(beneath, share)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        own, affine, beneath, share = ctx.saved_tensors
        gradient = gradient.contiguous()
        of_own, of_affine = gradient.view(len(own), -1), None
        if affine is not None:
            of_own, of_affine = of_own @ affine, of_own.T @ own
        high, wide = share.shape[2], share.shape[4]
        if high * wide > LARGEST_CELL:  # many small steps: the deeper map is small then
            of_share = (gradient * beneath).sum(5, keepdim=True)
            return of_own, of_affine, (gradient * share).sum((2, 4), keepdim=True), of_share
        of_beneath, of_share = torch.zeros_like(beneath), torch.empty_like(share)
        for i in range(high):
            for j in range(wide):
                part = gradient[:, :, i : i + 1, :, j : j + 1]
                of_beneath.addcmul_(part, share[:, :, i : i + 1, :, j : j + 1])
                torch.sum(part * beneath, 5, keepdim=True, out=of_share[:, :, i : i + 1, :, j : j + 1])
        return of_own, of_affine, of_beneath, of_share


def _rows(maps: Tensor) -> Tensor:
    """[B, C, H, W] → [B·H·W, C], a view of channels-last maps."""
    return maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1])


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
