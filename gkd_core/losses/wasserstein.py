"""The feature loss: W1 between the student's and the teacher's last stage, each a cloud of atoms in channel space."""

from typing import Literal, get_args

import torch
from torch import Tensor

from gkd_core.data import shards
from gkd_core.losses.base import at_least_float32, batch_mean, full_precision
from gkd_core.losses.distances import distances
from gkd_core.losses.transport import (
    exact_distance,
    quantile_distance,
    random_directions,
    sinkhorn_distance,
    sliced_distance,
)

Solver = Literal["sinkhorn", "sliced", "quantile", "exact"]
Normalisation = Literal["none", "teacher_rms"]
SOLVERS: tuple[str, ...] = get_args(Solver)
NORMALISATIONS: tuple[str, ...] = get_args(Normalisation)


def wasserstein_loss(
    student_features: Tensor,
    teacher_features: Tensor,
    *,
    solver: Solver = "sinkhorn",
    epsilon: float = 0.02,
    iterations: int = 30,
    projections: int = 64,
    seed: int = 0,
    position_weight: float = 0.0,
    normalise: Normalisation = "none",
    weights: Tensor | None = None,
) -> Tensor:
    """W1 with Euclidean ground cost between two feature maps, mean over the batch.

    Per sample, a map is a cloud of H·W atoms of equal mass in channel space, and so are the N tokens of a transformer.
    Loss and gradient are 0 where the maps
    agree, and never NaN. Where both have one atom, W1 is the Euclidean distance, whatever the solver (`quantile`
    stays what it is: per channel).

    Args:
        student_features: [B, C, H, W] or tokens [B, C, N]; any float dtype, computed in at least float32.
        teacher_features: [B, C, H₂, W₂] or tokens [B, C, N₂], grid and number may differ; no gradient flows into it.
        solver: `sinkhorn` (entropic, batched), `sliced` (random directions), `quantile` (per channel) or `exact` (POT
            on the CPU, which waits for the device).
        epsilon, iterations: of `sinkhorn`; ε is relative to the mean cost.
        projections, seed: of `sliced`.
        position_weight: λ_pos; adds λ_pos·‖pos_x − pos_y‖, positions in [0, 1]², to the ground cost of `sinkhorn`
            and `exact`.
        normalise: `teacher_rms` divides both clouds by √(mean over batch and atoms of ‖x‖²) of the teacher, detached;
            the whole batch, also where several processes share it.
        weights: [B], what each sample counts in the mean; None counts all alike.
    Raises:
        ValueError: shapes do not fit, an argument is out of range, or the solver knows no positions.
    Source: Yang & Qin 2025, eq. 1 (arXiv:2510.21649). The solver and the adapter of channels are not given there.

    Example:
        >>> wasserstein_loss(torch.zeros(1, 2, 4, 4), torch.full((1, 2, 2, 2), 3.0))  # √(3² + 3²)
        tensor(4.2426)
    """
    _check(student_features, teacher_features, solver, epsilon, iterations, projections, position_weight, normalise)
    with full_precision(student_features):
        student = at_least_float32(student_features)
        teacher = at_least_float32(teacher_features.detach()).to(student.dtype)
        x, y = atoms(student), atoms(teacher)
        # The distance of scaled clouds is the scaled distance, which has far fewer numbers.
        scale: Tensor | float = 1 / teacher_rms(y) if normalise == "teacher_rms" else 1.0
        if solver == "quantile":
            return batch_mean(scale * quantile_distance(student, teacher), weights)
        one_atom = x.shape[1] == 1 and y.shape[1] == 1
        if solver == "sliced" and not one_atom:
            directions = random_directions(x.shape[2], projections, seed, x)
            return batch_mean(scale * sliced_distance(x, y, directions), weights)
        cost = scale * distances(x, y)
        if one_atom:
            return batch_mean(cost.flatten(), weights)
        if position_weight:
            student_positions = positions(student.shape[2], student.shape[3], student)
            teacher_positions = positions(teacher.shape[2], teacher.shape[3], teacher)
            cost = cost + position_weight * distances(student_positions[None], teacher_positions[None])
        if solver == "exact":
            return batch_mean(exact_distance(cost), weights)
        return batch_mean(sinkhorn_distance(cost, epsilon=epsilon, iterations=iterations), weights)


def _check(
    student_features: Tensor,
    teacher_features: Tensor,
    solver: str,
    epsilon: float,
    iterations: int,
    projections: int,
    position_weight: float,
    normalise: str,
) -> None:
    if student_features.ndim not in (3, 4) or teacher_features.ndim not in (3, 4):
        raise ValueError("features must be maps [B, C, H, W] or tokens [B, C, N]")
    if student_features.shape[:2] != teacher_features.shape[:2]:
        raise ValueError(
            f"student features {tuple(student_features.shape)} and teacher features {tuple(teacher_features.shape)} "
            "differ in batch or channels"
        )
    if solver not in SOLVERS:
        raise ValueError(f"solver {solver!r} is unknown; known: {', '.join(SOLVERS)}")
    if normalise not in NORMALISATIONS:
        raise ValueError(f"normalise {normalise!r} is unknown; known: {', '.join(NORMALISATIONS)}")
    if not epsilon > 0 or iterations < 1 or projections < 1 or not position_weight >= 0:
        raise ValueError("epsilon must be above 0, iterations and projections at least 1, position_weight at least 0")
    if position_weight and solver not in ("sinkhorn", "exact"):
        raise ValueError(f"position_weight needs a solver with a ground cost (sinkhorn, exact), not {solver}")
    if position_weight and not student_features.ndim == teacher_features.ndim == 4:
        raise ValueError("position_weight needs feature maps on both sides: tokens lie in no grid")


def atoms(features: Tensor) -> Tensor:
    """[B, C, H, W] → [B, H·W, C], one atom of equal mass per position, row by row; tokens [B, C, N] → [B, N, C]."""
    return features.flatten(2).transpose(1, 2)


def positions(height: int, width: int, like: Tensor) -> Tensor:
    """Centres of the grid's cells in [0, 1]², [H·W, 2], in the order of `atoms`.

    Centres, not corners, so that cells of a coarse grid lie amid the cells of a fine one that they cover.
    """
    rows = (torch.arange(height, dtype=like.dtype, device=like.device) + 0.5) / height
    columns = (torch.arange(width, dtype=like.dtype, device=like.device) + 0.5) / width
    return torch.cartesian_prod(rows, columns)


def teacher_rms(teacher_atoms: Tensor) -> Tensor:
    """√(mean over batch and atoms of ‖x‖²) of [B, m, d]: a scalar, detached, kept above 0."""
    mean_square = shards.current().mean(teacher_atoms.detach().square().sum(2).mean())
    return mean_square.clamp_min(torch.finfo(mean_square.dtype).tiny).sqrt()
