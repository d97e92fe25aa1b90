"""Bringing feature maps or gradients of one network to the channels of another, by 1×1 maps without bias."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from gkd_core.losses.precision import at_least_float32, full_precision


class ChannelAdapter(nn.Module):
    """A trained 1×1 convolution without bias, Kaiming-initialised: [B, C_in, H, W] → [B, C_out, H, W].

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
            return functional.conv2d(features, self.weight.to(features.dtype))


class ChannelRemap(nn.Module):
    """A fixed, seeded semi-orthogonal 1×1 map without bias: [B, C_in, H, W] → [B, C_out, H, W].

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
            return functional.conv2d(maps, self.weight.to(maps.dtype)[:, :, None, None])
