"""The gradient of the cross-entropy with respect to the last feature map, through the head alone."""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from gkd_core.losses.precision import at_least_float32, full_precision
from gkd_core.models.classifier import Output
from gkd_core.models.network import Network


def head_gradient(network: Network, output: Output, targets: Tensor, *, differentiable: bool) -> Tensor:
    """∂CE(z, y)/∂f of each sample, by the closed form where the head allows it, else by autograd.

    Args:
        network: whose head it is.
        output: of this network; its last stage is f [B, D, H, W].
        targets: [B] int64 labels or [B, C] class probabilities.
        differentiable: keep the graph, so that gradients of the result flow into f and the head; else the result is
            constant.
    Returns:
        [B, D, H, W], at least float32.
    """
    features = output.stages[-1]
    layer = network.pooled_linear_weight()
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
        head: [B, D, H, W] → logits [B, C]; deterministic, and each sample by itself (see `evaluating`).
        features: [B, D, H, W].
        targets: [B] int64 labels or [B, C] class probabilities.
        differentiable: build the graph for a second backward pass.
    """
    with torch.enable_grad(), full_precision(features):
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

    `one_hot` would ask the device for the labels' range.
    """
    if targets.ndim == 2:
        return targets.to(logits.dtype)
    return torch.zeros_like(logits).scatter_(1, targets[:, None], 1.0)


@contextlib.contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Eval mode within the block, every module's own mode again afterwards.

    In the head, dropout would make the gradient random, and batch statistics would mix the samples' gradients and be
    counted twice.
    """
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
