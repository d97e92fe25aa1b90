"""State dicts: reading a file of tensors by name, and saying in what they do not fit a network."""

import re
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from gkd_core.errors import GkdError

FILES = (".pt", ".pth", ".bin", ".safetensors")
INSIDE = ("state_dict", "model", "model_state_dict")
"""Keys under which training scripts keep the state dict in their checkpoints."""

PREFIXES = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put before every name."""

OWN = "network."
"""What our form of a torchvision network, or timm's, puts before their own names."""


def read_state(path: Path, what: str) -> dict[str, Tensor]:
    """The tensors of a state-dict file by name; nothing but tensors is ever unpickled.

    Args:
        what: the option that names the file, for errors.
    Raises:
        GkdError: it is no such file, or damaged.
    """
    if path.suffix not in FILES:
        raise GkdError(f"{what} {str(path)!r} is no state-dict file: its name must end in {', '.join(FILES)}")
    try:
        content: Any
        if path.suffix == ".safetensors":
            content = safetensors.torch.load_file(path)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about pickle protocols; what matters is raised
                content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # neither library has a common base for what a damaged file makes it raise
        if "weights_only" in str(error) and "GLOBAL" in str(error):
            raise GkdError(
                f"{path} holds Python objects other than tensors, which are never loaded because they can run code: "
                "save it again with torch.save(model.state_dict(), FILE)"
            ) from None
        # What torch says of a file that it cannot read advises to load it unsafely.
        if path.suffix == ".safetensors":
            reason, how = first_line(error), "safetensors.torch.save_file"
        else:
            reason, how = "nothing that torch.save wrote", "torch.save"
        raise GkdError(
            f"{path} is damaged or no state-dict file ({reason}): save it again with {how}(model.state_dict(), FILE)"
        ) from None
    return tensors_in(content, str(path))


def tensors_in(content: Any, where: str) -> dict[str, Tensor]:
    """The state dict among what a training script saved, its names without what wrappers put before them.

    Raises:
        GkdError: there is none.
    """
    if isinstance(content, Mapping):
        content = next((content[key] for key in INSIDE if isinstance(content.get(key), Mapping)), content)
    state = dict(content) if isinstance(content, Mapping) else {}
    if not state or not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()):
        raise GkdError(
            f"{where} holds no state dict (tensors by name, alone or under {', '.join(map(repr, INSIDE))}): save it "
            "again with torch.save(model.state_dict(), FILE)"
        )
    for prefix in PREFIXES:
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def as_ours(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors by our names, where they have torchvision's or timm's, with what old files lack.

    Args:
        expected: state dict of the network they are for.
    """
    state = dict(state)
    if all(key.startswith(OWN) for key in expected) and not all(key.startswith(OWN) for key in state):
        state = {OWN + _modern(key): value for key, value in state.items() if not _auxiliary(key)}
    for key in expected:
        # Files from before PyTorch 0.4.1 have no such counters, and nothing here reads them.
        if key.endswith("num_batches_tracked"):
            state.setdefault(key, torch.zeros((), dtype=torch.long))
    return state


def misfit(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], but: Collection[str] = ()) -> str:
    """The first three tensors that do not fit, and how many more, as a part of a sentence; empty where all fit.

    Args:
        but: names that may be missing or have another shape.
    """
    faults = [f"{key} is missing" for key in expected if key not in state and key not in but]
    faults += [f"{key} is not part of it" for key in state if key not in expected and key not in but]
    faults += [
        f"{key} has shape {list(state[key].shape)} instead of {list(value.shape)}"
        for key, value in expected.items()
        if key in state and key not in but and state[key].shape != value.shape
    ]
    shown = "; ".join(fault.removeprefix(OWN) for fault in faults[:3])
    return shown + (f"; and {len(faults) - 3} more" if len(faults) > 3 else "")


def refuse_not_finite(state: Mapping[str, Tensor], where: str) -> None:
    """Raises: GkdError: there is NaN or infinity in a tensor; it is named."""
    broken = [key for key, value in state.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    if broken:
        raise GkdError(f"{where} holds weights that are no finite numbers ({broken[0]}): take another checkpoint")


def _auxiliary(key: str) -> bool:
    """GoogLeNet's and Inception's second heads, which only their own training uses."""
    return key.startswith(("aux1.", "aux2.", "AuxLogits."))


def _modern(key: str) -> str:
    """DenseNet's names as they are since 2017: torchvision's files still have the older ones (`norm.1` for `norm1`)."""
    return re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\.", r"\1\2.", key)


def first_line(error: Exception) -> str:
    """What an error of another library says, as a part of a sentence."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
