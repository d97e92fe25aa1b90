"""Which device to train on, and in which precision."""

import torch

from gkd_core.errors import GkdError


def choose_device(name: str, parameter: str = "train.device") -> torch.device:
    """`auto` takes CUDA, then Apple's MPS, then the CPU.

    Args:
        parameter: where the name comes from, for the error.
    Raises:
        GkdError: the device asked for is not there.
    """
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return torch.device(accelerator.type if accelerator else "cpu")
    device = torch.device(name)
    match device.type:
        case "cuda":
            present = torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()
        case "mps":
            present = torch.backends.mps.is_available()
        case _:
            present = device.type == "cpu"
    if not present:
        raise GkdError(f"{parameter} is {name!r}, but this machine has no such device: use auto or cpu")
    return device


def use_bf16(precision: str, device: torch.device) -> bool:
    """Whether to run networks under bf16 autocast.

    Args:
        precision: `bf16`, `float32`, or `auto`: bf16 on an accelerator that has it, float32 on the CPU.
    Raises:
        GkdError: bf16 is asked for and the device does not have it.
    """
    match device.type:
        case "cuda":
            able = torch.cuda.is_bf16_supported(including_emulation=False)
        case "cpu":
            able = True
        case _:
            able = False
    if precision == "bf16" and not able:
        raise GkdError(f"train.precision is bf16, but {device} has no bfloat16: use auto or float32")
    return precision == "bf16" or (precision == "auto" and able and device.type != "cpu")
