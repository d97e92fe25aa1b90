"""What a network costs: parameters, and multiply-accumulates for one image."""

import copy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def parameter_count(network: nn.Module) -> int:
    """Trained numbers in the network; running statistics are none."""
    return sum(parameter.numel() for parameter in network.parameters())


@torch.no_grad()
def multiply_accumulates(network: nn.Module, channels: int, image_size: int) -> int:
    """Multiply-accumulates of convolutions, matrix products and attention for one image.

    torch's own counter counts two operations for each; additions, activations and normalisation are left out, as is
    usual for this figure.
    """
    counted = copy.deepcopy(network).cpu().eval()
    with FlopCounterMode(display=False) as counter:
        counted(torch.zeros(1, channels, image_size, image_size))
    return int(counter.get_total_flops()) // 2
