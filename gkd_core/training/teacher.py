"""The teacher as the trainer sees it: frozen, in eval mode, never differentiated into.

It is no nn.Module, on purpose: nothing that walks over modules can put it in train mode or find its parameters.
"""

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gkd_core.models.classifier import Output
from gkd_core.models.network import Network


class Teacher(Protocol):
    """Answers for the very images the student sees, augmentation included."""

    networks: tuple[Network, ...]

    def __call__(self, images: Tensor, indices: Tensor, targets: Tensor | None = None) -> Output:
        """The output, without gradient.

        Args:
            images: [B, C, H, W] in [0, 1].
            indices: [B], positions in the training split.
            targets: [B] labels, or [B, C] class probabilities; for teachers that weigh answers by them.
        """


class OnlineTeacher:
    """One network.

    Args:
        network: frozen here.
        autocast: run it in bf16.
        topology: [N, F] persistence features of the training split, for a topological network.
    """

    def __init__(
        self,
        network: Network,
        *,
        device: torch.device,
        autocast: bool,
        topology: NDArray[np.float32] | None = None,
    ) -> None:
        self.network = frozen(network, device)
        self.networks: tuple[Network, ...] = (self.network,)
        self._device = device
        self._autocast = autocast
        self._topology = None
        if topology is not None and network.topology_size:
            self._topology = torch.from_numpy(np.array(topology)).to(device)

    def __call__(self, images: Tensor, indices: Tensor, targets: Tensor | None = None) -> Output:
        """The network's output."""
        with torch.no_grad(), torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocast):
            output: Output = self.network(images, None if self._topology is None else self._topology[indices])
        return output


def frozen(network: Network, device: torch.device) -> Network:
    """The network itself, on the device, in eval mode and without gradients."""
    return network.to(device).eval().requires_grad_(False)
