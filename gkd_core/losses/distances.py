"""Euclidean distances between all atoms of two clouds, exact where atoms come near one another."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

SAME = 1e-12
"""Atoms nearer than √SAME of their norms, a few roundings of float32, are one. Rounding in float64 stays far below."""

AT_ONCE = 2**17
"""Numbers taken at a time: 1 MiB in float64, which stays in a core's cache."""


def distances(first: Tensor, second: Tensor) -> Tensor:
    """Distances [B, n, m] between [B, n, d] and [B, m, d]; exactly 0 with gradient 0 where two atoms agree.

    ‖x‖² + ‖y‖² − 2xy near equality gives √(rounding error) instead of 0, so of float32 on a CPU it is computed in
    float64: products of matrices, several times quicker than differences, forward and backward, and as exact. Anywhere
    else they are differences (above 25 atoms cdist would take the products by itself).
    """
    if first.dtype == torch.float32 and first.device.type == "cpu":
        distance: Tensor = _Distances.apply(first, second)
        return distance
    return torch.cdist(first, second, compute_mode="donot_use_mm_for_euclid_dist")


class _Distances(torch.autograd.Function):
    """Of float32 by way of float64. The gradient by x_i is Σ_j g_ij·(x_i − y_j) / ‖x_i − y_j‖, in products as well."""

    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor) -> Tensor:
        found = first.new_empty(len(first), first.shape[1], second.shape[1])
        for part in _parts(first, second):
            x, y = first[part].double(), second[part].double()
            squares = x.square().sum(2, keepdim=True) + y.square().sum(2)[:, None]
            apart = torch.baddbmm(squares, x, y.transpose(1, 2), alpha=-2)
            # What is NaN stays NaN.
            found[part] = apart.masked_fill_(apart <= SAME * squares, 0.0).sqrt_()
        ctx.save_for_backward(first, second, found)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        first, second, found = ctx.saved_tensors
        pull = (gradient / found).masked_fill_(found == 0, 0.0)
        of_first, of_second = (
            torch.empty_like(cloud) if needed else None
            for cloud, needed in zip((first, second), ctx.needs_input_grad, strict=True)
        )
        for part in _parts(first, second):
            x, y, weight = first[part].double(), second[part].double(), pull[part].double()
            if of_first is not None:
                of_first[part] = torch.baddbmm(weight.sum(2)[..., None] * x, weight, y, alpha=-1)
            if of_second is not None:
                of_second[part] = torch.baddbmm(weight.sum(1)[..., None] * y, weight.transpose(1, 2), x, alpha=-1)
        return of_first, of_second


def _parts(first: Tensor, second: Tensor) -> Iterator[slice]:
    """The batch, a few samples at a time."""
    a_sample = max(first.shape[1], second.shape[1]) * max(first.shape[2], first.shape[1], second.shape[1])
    several = max(1, AT_ONCE // a_sample)
    for start in range(0, len(first), several):
        yield slice(start, start + several)
