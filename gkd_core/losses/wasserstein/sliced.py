"""Sliced W1: one-dimensional distances along random directions."""

import math

import torch
from torch import Tensor

from gkd_core.losses.wasserstein.quantile import one_dimensional_distance


def random_directions(dimension: int, projections: int, seed: int, like: Tensor) -> Tensor:
    """[dimension, projections], columns uniform on the unit sphere; the same seed gives the same ones everywhere."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(dimension, projections, generator=generator, dtype=torch.float64)
    directions = directions / directions.square().sum(0).sqrt()
    return directions.to(like.dtype).to(like.device, non_blocking=True)


def sliced_distance(first: Tensor, second: Tensor, directions: Tensor) -> Tensor:
    """Mean W1 along `directions`, times √(π·d/2).

    The factor makes it agree with W1 for a translation: the mean |⟨θ, v⟩| over the sphere is ‖v‖·√(2/(π·d)), up to a
    relative 1/(4d).

    Args:
        first: [B, n, d].
        second: [B, m, d].
        directions: [d, L], unit columns.
    Returns:
        [B].
    Source: Bonneel et al. 2015, "Sliced and Radon Wasserstein barycenters of measures", with p = 1.
    """
    along_first = (first @ directions).transpose(1, 2)
    along_second = (second @ directions).transpose(1, 2)
    distance = one_dimensional_distance(along_first, along_second).mean(1)
    return distance * math.sqrt(math.pi * directions.shape[0] / 2)
