"""The precision losses compute in: at least float32, whatever the networks run in."""

import contextlib

import torch
from torch import Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """Half types become float32; float32 and float64 stay (gradcheck needs the latter)."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def full_precision(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    """A block in which autocast does not turn products back into half types, on the tensor's device."""
    device = tensor.device.type
    if not torch.amp.is_autocast_available(device):
        return contextlib.nullcontext()
    return torch.autocast(device, enabled=False)
