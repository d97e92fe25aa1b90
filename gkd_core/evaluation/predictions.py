"""Logits of a network over a split: what everything else in an evaluation is computed from."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from gkd_core.data.loader import Loader
from gkd_core.errors import GkdError


@torch.no_grad()
def predict(network: nn.Module, loader: Loader, name: str) -> NDArray[np.float32]:
    """Logits [N, C] over an epoch of an unshuffled loader, in eval mode and full float32 precision.

    Args:
        network: images in [0, 1], and their persistence features or None, → `Output`; moved to the loader's device
            and left there, in eval mode.
        name: of the network, for the error.
    Raises:
        GkdError: a logit is not finite.
    """
    network.to(loader.device).eval()
    # TF32 and the search for the fastest algorithm would make the digits depend on the device's mood.
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        parts = [network(batch.images, batch.topology).logits.float() for batch in loader.epoch(0)]
    logits: NDArray[np.float32] = torch.cat(parts).cpu().numpy()
    if not np.isfinite(logits).all():
        raise GkdError(f"{name} gives logits that are not finite on the test images: train it again")
    return logits
