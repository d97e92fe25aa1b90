"""Bringing the feature maps of two networks together: which stages, which channels, which grid."""

import functools

import torch
from torch import Tensor, nn
from torch.nn import functional

from gkd_core.errors import GkdError
from gkd_core.losses.base import at_least_float32, full_precision, required
from gkd_core.models.classifier import StagedNetwork

Shape = tuple[int, int, int]


def student_and_teacher_stages(
    student: StagedNetwork, teacher: StagedNetwork | None, method: str
) -> tuple[tuple[Shape, ...], tuple[Shape, ...]]:
    """(C_i, H_i, W_i) of the student's stages and of the teacher's, from shallow to deep.

    Raises:
        GkdError: there is no teacher, or one of the two has no feature maps.
    """
    teacher = required(teacher, method)
    return stages_of(student, "student", method), stages_of(teacher, "teacher", method)


def stages_of(network: StagedNetwork, role: str, method: str) -> tuple[Shape, ...]:
    """(C_i, H_i, W_i) of every stage.

    Raises:
        GkdError: the network has no feature maps.
    """
    shapes = network.stage_shapes()
    if not shapes:
        way_out = "needs no grid (gompertz or kd, say)" if network.last_stage_shape() else "needs logits only (kd, say)"
        raise GkdError(
            f"method {method} compares feature maps, and the {role} {network.name} has none: choose a method that "
            f"{way_out} or another {role}"
        )
    return shapes


def last_stage_of(network: StagedNetwork, role: str, method: str) -> tuple[int, ...]:
    """(C, H, W), or (C, N) of a transformer's tokens.

    Raises:
        GkdError: the network has neither feature maps nor tokens.
    """
    shape = network.last_stage_shape()
    if not shape:
        raise GkdError(
            f"method {method} compares feature maps or tokens, and the {role} {network.name} has none: choose a method "
            f"that needs logits only (kd, say) or another {role}"
        )
    return shape


class BatchNorm(nn.BatchNorm2d):
    """Of maps [B, C, H, W]; a batch with one value a channel, which has no variance, is normalised by the statistics of
    the batches before it and does not count among them."""

    def forward(self, input: Tensor) -> Tensor:
        """[B, C, H, W], normalised."""
        if input.numel() > input.shape[1]:
            return super().forward(input)
        return functional.batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
        )


def to_smaller_grid(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps [B, C, H, W] at the smaller of their heights and widths, by averaging over areas."""
    grid = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
    return _pool(student, grid), _pool(teacher, grid)


def _pool(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    return maps if maps.shape[2:] == grid else functional.adaptive_avg_pool2d(maps, grid)


class ChannelAdapter(nn.Module):
    """A trained 1×1 convolution without bias, Kaiming-initialised: [B, C_in, H, W] → [B, C_out, H, W].

    Tokens [B, C_in, N] become [B, C_out, N].

    It stands on the student's side, so that the target stays put (FitNet's convention): on the teacher's side it
    learns to shrink the target, and the student collapses with it.

    Args:
        seed: of the initial weights; the global generator is left alone.
    Source: Romero et al. 2015, "FitNets" (arXiv:1412.6550).
    """

    def __init__(self, in_channels: int, out_channels: int, seed: int) -> None:
        super().__init__()
        weight = torch.empty(out_channels, in_channels, 1, 1)
        nn.init.kaiming_normal_(weight, generator=torch.Generator().manual_seed(seed))
        self.weight = nn.Parameter(weight)

    def forward(self, features: Tensor) -> Tensor:
        """In at least float32, also under autocast."""
        with full_precision(features):
            features = at_least_float32(features)
            return _one_by_one(features, self.weight.to(features.dtype))


class ChannelRemap(nn.Module):
    """A fixed, seeded semi-orthogonal 1×1 map without bias: [B, C_in, H, W] → [B, C_out, H, W], tokens [B, C_in, N] →
    [B, C_out, N].

    Frozen, a buffer: trained, it would move the target it is applied to. The identity when channels agree.
    """

    weight: Tensor | None

    def __init__(self, in_channels: int, out_channels: int, seed: int) -> None:
        super().__init__()
        weight = None
        if in_channels != out_channels:
            weight = torch.empty(out_channels, in_channels)
            nn.init.orthogonal_(weight, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("weight", weight)

    def forward(self, maps: Tensor) -> Tensor:
        """In at least float32, also under autocast."""
        maps = at_least_float32(maps)
        if self.weight is None:
            return maps
        with full_precision(maps):
            weight = self.weight.to(maps.dtype)[:, :, None, None]
            if is_even(maps):
                return _one_by_one(maps[:, :, :1, :1], weight).expand(-1, -1, *maps.shape[2:])
            return _one_by_one(maps, weight)


def _one_by_one(features: Tensor, weight: Tensor) -> Tensor:
    """A 1×1 convolution of [B, C_in, H, W], or of tokens [B, C_in, N]; the weight is [C_out, C_in, 1, 1]."""
    if features.ndim == 3:
        return functional.conv1d(features, weight[..., 0])
    return functional.conv2d(features, weight)


def is_even(maps: Tensor) -> bool:
    """Maps [B, C, H, W] are an expanded view: one number a channel, so what is done cell by cell can be done once."""
    return maps.ndim == 4 and maps.stride()[2:] == (0, 0)


def resample_total(maps: Tensor, height: int, width: int) -> Tensor:
    """[B, C, H, W] → [B, C, height, width] with the same total.

    Each cell's content is shared out by area: sums of cells where the sizes divide, and in general an area-weighted
    mean times the ratio of the areas. (`interpolate(mode="area")` counts cells twice when sizes do not divide, so the
    total would not be kept.)
    """
    if maps.shape[2:] == (height, width):
        return maps
    with full_precision(maps):
        # A blocking copy to the device would wait for all work queued on it.
        rows = _shares(maps.shape[2], height).to(maps, non_blocking=True)
        columns = _shares(maps.shape[3], width).to(maps, non_blocking=True)
        return rows @ maps @ columns.T


@functools.lru_cache(maxsize=32)
def _shares(old: int, new: int) -> Tensor:
    """[new, old]: the part of each old cell that lies in each new one; columns sum to 1."""
    # In units of 1/(old·new) all edges are integers.
    old_left = torch.arange(old) * new
    new_left = torch.arange(new)[:, None] * old
    overlap = torch.minimum(old_left + new, new_left + old) - torch.maximum(old_left, new_left)
    return overlap.clamp_min(0).double() / new
