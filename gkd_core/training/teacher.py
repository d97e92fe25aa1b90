"""The teacher as the loop sees it: frozen, in eval mode, never differentiated into. One network, or several.

None of them is an nn.Module, on purpose: nothing that walks over modules can put it in train mode or find its
parameters.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gkd_core.arrangements import Weighting
from gkd_core.models.classifier import Output
from gkd_core.models.ensemble import Ensemble, mean_log_probabilities
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
        self.network = _frozen(network, device)
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


class TeacherEnsemble:
    """Several networks that answer as one, for methods that learn from logits.

    The logits are τ·log p̄ with p̄ = Σ_m w_m·σ(z_m / τ), so that softening them by the same τ gives p̄ itself. There are
    no stages and no embedding.

    Args:
        networks: frozen here.
        classes: class names of the answer; a network that knows only some of them is left out of the mean for the
            others (see `Ensemble`).
        temperature: τ of the method; 1 for one without.
        weighting: `average` counts all alike; `confidence` weighs sample by sample, see `confidence_weights`.
        autocast: run them in bf16.
    Source: Zhang et al. 2022 (arXiv:2201.00007) for `confidence`.
    """

    def __init__(
        self,
        networks: Sequence[Network],
        *,
        classes: tuple[str, ...],
        temperature: float = 1.0,
        weighting: Weighting = "average",
        device: torch.device,
        autocast: bool,
    ) -> None:
        self.networks = tuple(_frozen(network, device) for network in networks)
        self._ensemble = Ensemble(self.networks, classes).to(device).eval()
        self._temperature = temperature
        self._weighting = weighting
        self._device = device
        self._autocast = autocast

    def __call__(self, images: Tensor, indices: Tensor, targets: Tensor | None = None) -> Output:
        """τ·log p̄.

        Raises:
            ValueError: weighting is confidence and there are no targets.
        """
        with torch.no_grad(), torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocast):
            each = self._ensemble.log_probabilities(images)
        weights = None
        if self._weighting == "confidence":
            if targets is None:
                raise ValueError("confidence is measured against the labels, and there are none")
            weights = confidence_weights(each, targets)
        # log σ(z / τ) from log σ(z): the two differ by a constant a sample.
        logits = self._temperature * mean_log_probabilities((each / self._temperature).log_softmax(2), weights)
        return Output(logits, (), logits.new_empty(len(logits), 0))


class TeacherPanel:
    """Several networks side by side: their logits one after the other, each over the classes it knows.

    Args:
        networks: frozen here.
        autocast: run them in bf16.
    """

    def __init__(self, networks: Sequence[Network], *, device: torch.device, autocast: bool) -> None:
        self.networks = tuple(_frozen(network, device) for network in networks)
        self._device = device
        self._autocast = autocast

    def __call__(self, images: Tensor, indices: Tensor, targets: Tensor | None = None) -> Output:
        """Logits [B, Σ_m C_m]; no stages, no embedding."""
        with torch.no_grad(), torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocast):
            logits = torch.cat([network(images).logits for network in self.networks], dim=1)
        return Output(logits, (), logits.new_empty(len(logits), 0))


def confidence_weights(log_probabilities: Tensor, targets: Tensor) -> Tensor:
    """w_m = (1 − e^{CE_m} / Σ_j e^{CE_j}) / (M − 1) for each sample: the smaller a teacher's error, the larger.

    Args:
        log_probabilities: [M, B, C], M ≥ 2, of the teachers at τ = 1.
        targets: [B] int64 labels or [B, C] class probabilities.
    Returns:
        [M, B], of sum 1 over M.
    Source: Zhang et al. 2022, the weights of its soft-label term (arXiv:2201.00007).
    """
    if targets.ndim == 1:
        errors = -log_probabilities.gather(2, targets[None, :, None].expand(len(log_probabilities), -1, 1)).squeeze(2)
    else:
        errors = -(targets * log_probabilities).sum(2)
    return (1 - errors.softmax(0)) / (len(errors) - 1)


def _frozen(network: Network, device: torch.device) -> Network:
    return network.to(device).eval().requires_grad_(False)
