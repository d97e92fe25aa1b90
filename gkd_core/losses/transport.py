"""Optimal transport between two clouds of atoms of equal mass, batched: four ways to compute or approach W1."""

import functools
import math

import numpy as np
import torch
from torch import Tensor

# Iterations between two absorptions of the scalings into the potentials. A scaling grows by at most the number of
# atoms an iteration (see `sinkhorn_plan`), so 10 of them stay inside float32 up to 6,000 atoms.
ABSORB_EVERY = 10


def sinkhorn_distance(cost: Tensor, *, epsilon: float = 0.02, iterations: int = 30) -> Tensor:
    """⟨P, cost⟩ of the entropic plan P between two uniform clouds; P is held fixed for the gradient.

    The gradient is therefore that of the *regularised* value ⟨P, C⟩ + ε·KL(P ‖ a⊗b) at fixed ε (envelope theorem),
    once the plan has converged. At ε = .02 and 30 iterations the value was 0 to 3 % above the exact one for random
    clouds of up to 64 atoms in 64 dimensions or more. That is ε's blur: 100 iterations change the value by at most
    .15 % there, the gradient's direction by a cosine of .9999. In one dimension 30 iterations are too few to meet both
    marginals, and the value was up to 80 % below the exact one, which `quantile_distance` gives; 3,000 bring it within
    3 %.

    Args:
        cost: [B, n, m], not negative.
        epsilon: strength of the entropy, relative to each sample's mean cost (detached).
        iterations: Sinkhorn updates of both marginals.
    Returns:
        [B]; exactly 0 with zero gradient for a cloud laid on itself (a zero diagonal), where the optimal plan is
        known and the entropic one would leave a blur.
    Source: Cuturi 2013 (arXiv:1306.0895); Feydy et al. 2019 (arXiv:1810.08278) for the gradient.
    """
    return (sinkhorn_plan(cost.detach(), epsilon, iterations) * cost).sum((1, 2))


@torch.no_grad()
def sinkhorn_plan(cost: Tensor, epsilon: float, iterations: int) -> Tensor:
    """The entropic plan [B, n, m] for uniform masses; rows sum to 1/n exactly, columns to 1/m when converged.

    Log-domain Sinkhorn, in which most updates are products with the kernel exp(φ + ψ − C/ε) instead of log-sum-exps
    (the same numbers, many times faster on a CPU): the scalings u, v are put back into the potentials φ, ψ
    every few iterations (Schmitzer 2019, arXiv:1610.06519). No overflow: once one marginal is met, the other is
    missed by at most a factor n or m, so a scaling changes by no more than that in an iteration.
    """
    _, n, m = cost.shape
    smallest = torch.finfo(cost.dtype).tiny
    scaled = cost / (epsilon * cost.mean((1, 2), keepdim=True)).clamp_min(smallest)
    # Products with denormal numbers are 300 times slower on a CPU, so the kernel keeps far from them. What it then has
    # too much, √tiny an entry, is nothing beside rounding.
    floor = math.log(smallest) / 2
    # P·m and Pᵀ·n, both in memory as they are read: a row vector times a matrix takes less than half the time of a
    # matrix times a column. The kernel's columns then sum to 1, and so do those of the turned one.
    straight, turned = scaled + math.log(n), scaled.transpose(1, 2).contiguous() + math.log(m)

    def kernel(first: Tensor, second: Tensor, divided: Tensor) -> Tensor:
        return (first.transpose(1, 2) + second).sub_(divided).clamp_min_(floor).exp_()

    # The first update stays in the log domain: it may be far from the start.
    column = -torch.logsumexp(-straight, 1, keepdim=True)
    row = -torch.logsumexp(column.transpose(1, 2) - turned, 1, keepdim=True)
    for done in range(1, iterations, ABSORB_EVERY):
        forth, back = kernel(row, column, straight), kernel(column, row, turned)
        u = v = torch.ones_like(row)
        for _ in range(min(ABSORB_EVERY, iterations - done)):
            v = torch.bmm(u, forth).reciprocal_()
            u = torch.bmm(v, back).reciprocal_()
        row, column = row + u.log(), column + v.log()
    plan = kernel(row, column, straight) / m
    if n != m:
        return plan
    same = (cost.diagonal(dim1=1, dim2=2) == 0).all(1)
    identity = torch.eye(n, dtype=plan.dtype, device=plan.device) / n
    return torch.where(same[:, None, None], identity, plan)


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
    first, second = _sorted(first), _sorted(second)
    if n == m:
        return (first - second).abs().mean(-1)
    # A blocking copy to the device would wait for all work queued on it.
    merged = (torch.from_numpy(a).to(first.device, non_blocking=True) for a in _merged_levels(n, m))
    at_first, at_second, lengths = merged
    difference = first.index_select(-1, at_first) - second.index_select(-1, at_second)
    return (difference.abs() * lengths.to(difference.dtype)).sum(-1)


def _sorted(values: Tensor) -> Tensor:
    """Along the last dimension. No gradient needs the order of the teacher's, so numpy may do it, ten times as fast."""
    if values.requires_grad or values.device.type != "cpu" or values.dtype not in (torch.float32, torch.float64):
        return values.sort(-1).values
    return torch.from_numpy(np.sort(np.from_dlpack(values)))  # which takes memory of the host alone, without a copy


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


def exact_distance(cost: Tensor) -> Tensor:
    """W1 between two uniform clouds from their ground cost: [B, n, m] → [B].

    The gradient holds the optimal plan fixed, which is a subgradient of the exact value. Waits for the device.
    """
    import ot  # costs a second to import, and only this solver needs it

    plans = []
    for sample in cost.detach().cpu().double().numpy():
        n, m = sample.shape
        _, log = ot.emd2(np.full(n, 1 / n), np.full(m, 1 / m), sample, return_matrix=True)
        plans.append(torch.from_numpy(log["G"]))
    plan = torch.stack(plans).to(cost)
    return (plan * cost).sum((1, 2))
