"""A feature map as a cloud of atoms in channel space, and the ground cost between two clouds."""

import torch
from torch import Tensor

from gkd_core.data.shards import ALONE, Shards


def atoms(features: Tensor) -> Tensor:
    """[B, C, H, W] → [B, H·W, C], one atom of equal mass per position, row by row."""
    return features.flatten(2).transpose(1, 2)


def positions(height: int, width: int, like: Tensor) -> Tensor:
    """Centres of the grid's cells in [0, 1]², [H·W, 2], in the order of `atoms`.

    Centres, not corners, so that cells of a coarse grid lie amid the cells of a fine one that they cover.
    """
    rows = (torch.arange(height, dtype=like.dtype, device=like.device) + 0.5) / height
    columns = (torch.arange(width, dtype=like.dtype, device=like.device) + 0.5) / width
    return torch.cartesian_prod(rows, columns)


def euclidean(first: Tensor, second: Tensor) -> Tensor:
    """Distances [B, n, m] between [B, n, d] and [B, m, d]; exactly 0 with gradient 0 where two atoms agree.

    Differences, not ‖x‖² + ‖y‖² − 2xy: above 25 atoms cdist would take that by itself, and near equality it gives
    √(rounding error) instead of 0.
    """
    return torch.cdist(first, second, compute_mode="donot_use_mm_for_euclid_dist")


def teacher_rms(teacher_atoms: Tensor, shards: Shards = ALONE) -> Tensor:
    """√(mean over batch and atoms of ‖x‖²) of [B, m, d]: a scalar, detached, kept above 0."""
    mean_square = shards.mean(teacher_atoms.detach().square().sum(2).mean())
    return mean_square.clamp_min(torch.finfo(mean_square.dtype).tiny).sqrt()
