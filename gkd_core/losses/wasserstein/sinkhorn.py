"""Entropic optimal transport, batched: close to W1, cheap on any device, smooth in the features."""

import math

import torch
from torch import Tensor

# Iterations between two absorptions of the scalings into the potentials. A scaling grows by at most the number of
# atoms an iteration (see `sinkhorn_plan`), so 10 of them stay inside float32 up to 6,000 atoms.
ABSORB_EVERY = 10


def sinkhorn_distance(cost: Tensor, *, epsilon: float = 0.02, iterations: int = 100) -> Tensor:
    """⟨P, cost⟩ of the entropic plan P between two uniform clouds; P is held fixed for the gradient.

    The gradient is therefore that of the *regularised* value ⟨P, C⟩ + ε·KL(P ‖ a⊗b) at fixed ε (envelope theorem),
    once the plan has converged. At ε = .02 and 100 iterations the value lies .3–1.6 % off the exact one.

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
    (4 times faster on a CPU at 64 atoms, the same numbers): the scalings u, v are put back into the potentials φ, ψ
    every few iterations (Schmitzer 2019, arXiv:1610.06519). No overflow: once one marginal is met, the other is
    missed by at most a factor n or m, so a scaling changes by no more than that in an iteration.
    """
    _, n, m = cost.shape
    smallest = torch.finfo(cost.dtype).tiny
    scaled = cost / (epsilon * cost.mean((1, 2), keepdim=True)).clamp_min(smallest)
    # Products with denormal numbers are 300 times slower on a CPU, so the kernel keeps far from them. What it then has
    # too much, √tiny an entry, is nothing beside rounding.
    floor = math.log(smallest) / 2

    def kernel(row: Tensor, column: Tensor) -> Tensor:
        return torch.sub(row + column, scaled).clamp_min_(floor).exp_()

    # P = kernel / (n·m): the kernel's rows should sum to m, its columns to n.
    # The first update stays in the log domain: it may be far from the start.
    column = math.log(n) - torch.logsumexp(-scaled, 1, keepdim=True)
    row = math.log(m) - torch.logsumexp(column - scaled, 2, keepdim=True)
    for done in range(1, iterations, ABSORB_EVERY):
        current = kernel(row, column)
        transposed = current.transpose(1, 2).contiguous()
        u = v = torch.ones_like(row)
        for _ in range(min(ABSORB_EVERY, iterations - done)):
            v = n / torch.bmm(transposed, u)
            u = m / torch.bmm(current, v)
        row = row + u.log()
        column = column + v.log().transpose(1, 2)
    plan = kernel(row, column) / (n * m)
    if n != m:
        return plan
    same = (cost.diagonal(dim1=1, dim2=2) == 0).all(1)
    identity = torch.eye(n, dtype=plan.dtype, device=plan.device) / n
    return torch.where(same[:, None, None], identity, plan)
