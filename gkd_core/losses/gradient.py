"""Gradient matching: the student's decision should depend on its features as the teacher's does on its own.

What is matched is the gradient of the cross-entropy with respect to the last feature map, through the head alone; of a
transformer with respect to its tokens.
"""

import contextlib
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from gkd_core.losses.base import at_least_float32, batch_mean, full_precision, mean_over_labelled
from gkd_core.losses.feature_maps import is_even, resample_total
from gkd_core.models.classifier import Output, StagedNetwork


def gradient_loss(
    student_gradient: Tensor,
    teacher_gradient: Tensor,
    *,
    labels: Tensor | None = None,
    r: float = 0.5,
    eps: float = 1e-8,
    weights: Tensor | None = None,
) -> Tensor:
    """r·‖g_T − g_S‖₂ + (1 − r)·(1 − cos(g_T, g_S)), per sample on flattened gradients, mean over the batch.

    Grids of different size are both brought to the smaller one (in each direction) with their totals kept. Tokens lie
    in no grid: where one side has them, each side's total per channel is compared.

    Args:
        student_gradient: [B, C, H, W] or [B, C, N] = ∂CE/∂f_S of each sample; any float dtype, computed in at least
            float32.
        teacher_gradient: [B, C, H₂, W₂] or [B, C, N₂], already in the student's channels; no gradient flows into it.
        labels: [B] int64 or [B, C] class probabilities; images without a label, whose cross-entropy has no gradient,
            are left out of the mean. None: all have one.
        r: share of the Euclidean distance, in [0, 1].
        eps: smallest norm the cosine divides by.
        weights: [B], what each sample counts in the mean; None counts all alike.
    Raises:
        ValueError: batch or channels differ, or r is out of range.
    Source: Yang & Qin 2025, eqs. 2–4 (arXiv:2510.21649); r is not given there.

    Example:
        >>> gradient_loss(torch.full((1, 1, 1, 1), 3.0), torch.full((1, 1, 1, 1), -1.0))  # ½·4 + ½·2
        tensor(3.)
    """
    if student_gradient.ndim not in (3, 4) or student_gradient.shape[:2] != teacher_gradient.shape[:2]:
        raise ValueError(
            f"student gradient {tuple(student_gradient.shape)} and teacher gradient {tuple(teacher_gradient.shape)} "
            "differ in batch or channels"
        )
    if not 0 <= r <= 1:
        raise ValueError(f"r must lie in [0, 1], not {r}")
    student, teacher = at_least_float32(student_gradient), at_least_float32(teacher_gradient.detach())
    if student.ndim == teacher.ndim == 4:
        grid = min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3])
        if is_even(student) and is_even(teacher):
            # All cells of the grid are alike: one of them, times the root of their number, has the same norms and
            # inner products as all.
            student, teacher = (
                each[:, :, 0, 0] * (each.shape[2] * each.shape[3] / math.sqrt(grid[0] * grid[1]))
                for each in (student, teacher)
            )
        else:
            student, teacher = (resample_total(each, *grid).flatten(1) for each in (student, teacher))
    else:
        student, teacher = (each.flatten(2).sum(2) for each in (student, teacher))
    teacher = teacher.to(student.dtype)
    distance: Tensor = torch.linalg.vector_norm(teacher - student, dim=1)
    cosine = functional.cosine_similarity(teacher, student, dim=1, eps=eps)
    each = r * distance + (1 - r) * (1 - cosine)
    if labels is None:
        return batch_mean(each, weights)
    return mean_over_labelled(each if weights is None else weights.to(each.dtype) * each, labels)


def head_gradient(network: StagedNetwork, output: Output, targets: Tensor, *, differentiable: bool) -> Tensor:
    """∂CE(z, y)/∂f of each sample, by the closed form where the head allows it, else by autograd.

    Args:
        network: whose head it is.
        output: of this network; its last stage is f, [B, D, H, W] or tokens [B, D, N].
        targets: [B] int64 labels or [B, C] class probabilities.
        differentiable: keep the graph, so that gradients of the result flow into f and the head; else the result is
            constant.
    Returns:
        Of f's shape, at least float32.

    Example:
        >>> gradient = head_gradient(student, student(images), labels, differentiable=True)
        >>> gradient.shape == student(images).last_stage.shape
        True
    """
    features = output.last_stage
    layer = network.pooled_linear_weight() if features.ndim == 4 else None
    if layer is None:
        with evaluating(network):
            return autograd_head_gradient(network.head, features, targets, differentiable=differentiable)
    gradient = pooled_head_gradient(output.logits, layer[0], targets, (features.shape[2], features.shape[3]))
    return gradient if differentiable else gradient.detach()


def pooled_head_gradient(logits: Tensor, weight: Tensor, targets: Tensor, grid: tuple[int, int]) -> Tensor:
    """The closed form for global average pooling + linear layer: (p − y)ᵀW / (H·W), constant over the grid.

    Exact, and differentiable to any order like any other expression: no double backward is needed.

    Args:
        logits: [B, C] of this head.
        weight: [C, D] of the linear layer.
        targets: [B] int64 labels or [B, C] class probabilities.
        grid: (H, W).
    Returns:
        [B, D, H, W], an expanded view.
    """
    with full_precision(logits):
        logits = at_least_float32(logits)
        residual = logits.softmax(1) - class_probabilities(targets, logits)
        per_channel = residual @ at_least_float32(weight).to(logits.dtype) / (grid[0] * grid[1])
    return per_channel[:, :, None, None].expand(-1, -1, *grid)


def autograd_head_gradient(
    head: Callable[[Tensor], Tensor], features: Tensor, targets: Tensor, *, differentiable: bool
) -> Tensor:
    """The same for any head, by autograd through the head alone; the rest of the network is not visited.

    Args:
        head: [B, D, H, W], or tokens [B, D, N] → logits [B, C]; deterministic, and each sample by itself (see
            `evaluating`).
        features: what the head takes.
        targets: [B] int64 labels or [B, C] class probabilities.
        differentiable: build the graph for a second backward pass.
    """
    # The fused kernels of attention, which a head may pool by, have no second derivative.
    with torch.enable_grad(), full_precision(features), sdpa_kernel(SDPBackend.MATH):
        features = at_least_float32(features)
        if not (differentiable and features.requires_grad):
            features = features.detach().requires_grad_()
        # A sum over samples, so that each sample's gradient is its own; a mean would shrink it with the batch.
        # The copy is for heads that begin with an in-place activation.
        logits = at_least_float32(head(features.clone()))
        loss = -(class_probabilities(targets, logits) * functional.log_softmax(logits, dim=1)).sum()
        (gradient,) = torch.autograd.grad(loss, features, create_graph=differentiable)
    return gradient


def class_probabilities(targets: Tensor, logits: Tensor) -> Tensor:
    """[B, C] from labels [B] (one-hot) or from probabilities [B, C], in the dtype of `logits`.

    `one_hot` would ask the device for the labels' range. An image without a label has any class's row: whoever asks
    leaves it out.
    """
    if targets.ndim == 2:
        return targets.to(logits.dtype)
    return torch.zeros_like(logits).scatter_(1, targets.clamp_min(0)[:, None], 1.0)


@contextlib.contextmanager
def evaluating(network: object) -> Iterator[None]:
    """Eval mode within the block for all modules of the network, each one's own mode again afterwards.

    In the head, dropout would make the gradient random, and batch statistics would mix the samples' gradients and be
    counted twice.
    """
    modes = [(module, module.training) for module in network.modules()] if isinstance(network, nn.Module) else []
    for module, _ in modes:
        module.training = False
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
