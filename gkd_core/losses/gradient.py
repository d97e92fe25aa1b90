"""Gradient matching: the student's decision should depend on its features as the teacher's does on its own."""

import torch
from torch import Tensor
from torch.nn import functional

from gkd_core.losses.grid import resample_total
from gkd_core.losses.precision import at_least_float32


def gradient_loss(student_gradient: Tensor, teacher_gradient: Tensor, *, r: float = 0.5, eps: float = 1e-8) -> Tensor:
    """r·‖g_T − g_S‖₂ + (1 − r)·(1 − cos(g_T, g_S)), per sample on flattened gradients, mean over the batch.

    Grids of different size are both brought to the smaller one (in each direction) with their totals kept.

    Args:
        student_gradient: [B, C, H, W] = ∂CE/∂f_S of each sample; any float dtype, computed in at least float32.
        teacher_gradient: [B, C, H₂, W₂], already in the student's channels; no gradient flows into it.
        r: share of the Euclidean distance, in [0, 1].
        eps: smallest norm the cosine divides by.
    Raises:
        ValueError: batch or channels differ, or r is out of range.
    Source: Yang & Qin 2025, eqs. 2–4 (arXiv:2510.21649); r is not given there.
    """
    if student_gradient.ndim != 4 or student_gradient.shape[:2] != teacher_gradient.shape[:2]:
        raise ValueError(
            f"student gradient {tuple(student_gradient.shape)} and teacher gradient {tuple(teacher_gradient.shape)} "
            "differ in batch or channels"
        )
    if not 0 <= r <= 1:
        raise ValueError(f"r must lie in [0, 1], not {r}")
    height = min(student_gradient.shape[2], teacher_gradient.shape[2])
    width = min(student_gradient.shape[3], teacher_gradient.shape[3])
    student = resample_total(at_least_float32(student_gradient), height, width).flatten(1)
    teacher = resample_total(at_least_float32(teacher_gradient.detach()), height, width).flatten(1).to(student.dtype)
    distance: Tensor = torch.linalg.vector_norm(teacher - student, dim=1)
    cosine = functional.cosine_similarity(teacher, student, dim=1, eps=eps)
    return (r * distance + (1 - r) * (1 - cosine)).mean()
