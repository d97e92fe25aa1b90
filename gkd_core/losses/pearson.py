"""Pearson's correlation, with a defined value and gradient where it has none."""

import torch
from torch import Tensor

from gkd_core.losses.precision import at_least_float32


def pearson_correlation(x: Tensor, y: Tensor) -> Tensor:
    """Correlation along the last dimension: two [..., N] → [...] in [−1, 1].

    A vector without variation, up to rounding, correlates with nothing: 0, and no gradient (dividing by its norm would
    give an enormous one).

    Args:
        x, y: same shape; any float dtype, computed in at least float32.
    """
    return (_standardised(x) * _standardised(y)).sum(-1)


def _standardised(x: Tensor) -> Tensor:
    """Centred, to unit length."""
    x = at_least_float32(x)
    centred = x - x.mean(-1, keepdim=True)
    length = torch.linalg.vector_norm(centred, dim=-1, keepdim=True)
    rounding = 4 * torch.finfo(x.dtype).eps * torch.linalg.vector_norm(x.detach(), dim=-1, keepdim=True)
    varies = length > rounding
    return torch.where(varies, centred, 0.0) / torch.where(varies, length, 1.0)
