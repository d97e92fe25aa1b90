"""Maps of quantities on grids of different size, brought to one grid without losing any of the quantity."""

import functools

import torch
from torch import Tensor

from gkd_core.losses.precision import full_precision


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
