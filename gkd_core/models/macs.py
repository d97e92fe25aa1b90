"""Multiply-accumulates: what a network costs on any machine."""

import contextlib
import copy
from collections.abc import Iterator

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


@torch.no_grad()
def multiply_accumulates(network: nn.Module, channels: int, image_size: int) -> int:
    """Multiply-accumulates of convolutions, matrix products and attention for one image.

    torch's own counter counts two operations for each; additions, activations and normalisation are left out, as is
    usual for this figure. The network, its mode and torch's random state are left as they are.
    """
    on_cpu = all(tensor.device.type == "cpu" for tensor in [*network.parameters(), *network.buffers()])
    counted = network if on_cpu else copy.deepcopy(network).cpu()
    with (
        _evaluating(counted),
        torch.random.fork_rng(devices=[]),
        _every_product(),
        FlopCounterMode(display=False) as counter,
    ):
        counted(torch.zeros(1, channels, image_size, image_size))
    return int(counter.get_total_flops()) // 2


@contextlib.contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextlib.contextmanager
def _every_product() -> Iterator[None]:
    """Let torch's own attention layers compute product by product: in eval mode one operator does all of it, which the
    counter does not know.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
