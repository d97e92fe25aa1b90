"""The teacher as the trainer sees it: frozen, in eval mode, never differentiated into.

It is no nn.Module, on purpose: nothing that walks over modules can put it in train mode or find its parameters.
"""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gkd_core.models.classifier import Output
from gkd_core.models.network import Network


class Teacher(ABC):
    """Answers for the very images the student sees, augmentation included.

    Args:
        networks: frozen here: put on the device, in eval mode, without gradients.
        autocast: run them in bf16.
    """

    def __init__(self, networks: Sequence[Network], *, device: torch.device, autocast: bool) -> None:
        # Channels last as the student: quicker on a CPU, and both networks' maps then lie in memory alike.
        self.networks = tuple(
            network.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)  # type: ignore[call-overload]
            for network in networks
        )
        self.device = device
        self.autocast = autocast

    @abstractmethod
    def __call__(self, images: Tensor, indices: Tensor, targets: Tensor | None = None) -> Output:
        """The output, without gradient.

        Args:
            images: [B, C, H, W] in [0, 1].
            indices: [B], positions in the training split.
            targets: [B] labels, or [B, C] class probabilities; for teachers that weigh answers by them.
        """

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """The block in which the networks are asked."""
        with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            yield


class OnlineTeacher(Teacher):
    """One network.

    Args:
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
        super().__init__([network], device=device, autocast=autocast)
        self._topology = None
        if topology is not None and network.topology_size:
            self._topology = torch.from_numpy(np.array(topology)).to(device)

    def __call__(self, images: Tensor, indices: Tensor, targets: Tensor | None = None) -> Output:
        """The network's output."""
        with self.running():
            output: Output = self.networks[0](images, None if self._topology is None else self._topology[indices])
        return output


def logits_only(logits: Tensor) -> Output:
    """What several networks answer together: they have no stages and no embedding in common."""
    return Output(logits, (), logits.new_empty(len(logits), 0))
