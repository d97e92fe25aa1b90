"""W1 in one dimension, exactly, by sorting; and the per-channel distance made of it."""

import functools

import numpy as np
import torch
from torch import Tensor


def one_dimensional_distance(first: Tensor, second: Tensor) -> Tensor:
    """W1 between the empirical distributions along the last dimension, exactly; leading dimensions are batched.

    ∫|F⁻¹ − G⁻¹| over the levels where either quantile function steps; with as many values on both sides that is the
    mean absolute difference of the sorted values.

    Args:
        first: [..., n].
        second: [..., m].
    Returns:
        [...]; 0 with zero gradient where the values agree.
    """
    n, m = first.shape[-1], second.shape[-1]
    first, second = first.sort(-1).values, second.sort(-1).values
    if n == m:
        return (first - second).abs().mean(-1)
    # A blocking copy to the device would wait for all work queued on it.
    merged = (torch.from_numpy(a).to(first.device, non_blocking=True) for a in _merged_levels(n, m))
    at_first, at_second, lengths = merged
    difference = first.index_select(-1, at_first) - second.index_select(-1, at_second)
    return (difference.abs() * lengths.to(difference.dtype)).sum(-1)


def quantile_distance(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """W1 of each channel's values, mean over channels: [B, C, H, W] and [B, C, H₂, W₂] → [B].

    Ignores which values of different channels belong to one atom, so it is smaller than W1 in channel space.
    """
    return one_dimensional_distance(student_features.flatten(2), teacher_features.flatten(2)).mean(1)


@functools.lru_cache(maxsize=32)
def _merged_levels(n: int, m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which of n and of m sorted values hold between neighbouring levels, and the distance of those levels.

    In units of 1/(n·m), so that the levels i/n and j/m are integers and none is split by rounding.
    """
    levels = np.union1d(np.arange(n + 1) * m, np.arange(m + 1) * n)
    starts = levels[:-1]
    return starts // m, starts // n, np.diff(levels) / (n * m)
