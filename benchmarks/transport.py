"""What the Wasserstein solvers cost, beside the exact one of POT."""

import torch

from benchmarks.timing import side_by_side
from gkd_core.losses.wasserstein import wasserstein_loss


def transport(rounds: int) -> dict[str, float]:
    """W1 of 64 pairs of 8×8 maps with 64 channels, forward and backward"""
    teacher = torch.randn(64, 64, 8, 8)

    def solve(solver: str):
        def run() -> None:
            student = torch.randn(64, 64, 8, 8, requires_grad=True)
            wasserstein_loss(
                student, teacher, solver=solver, epsilon=0.02, iterations=100, projections=64, seed=0,
                position_weight=0.0, normalise="none",
            ).backward()  # fmt: skip

        return run

    return side_by_side({name: solve(name) for name in ("sinkhorn", "sliced", "quantile", "exact")}, rounds=rounds)
