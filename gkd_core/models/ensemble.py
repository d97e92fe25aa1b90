"""Several networks that answer as one, each perhaps knowing only some of the classes."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gkd_core.errors import GkdError
from gkd_core.models.classifier import Output
from gkd_core.models.network import Network


class Ensemble(nn.Module):
    """The mean of the networks' probabilities, class by class over those that know the class, brought to sum 1.

    Where all know all classes that is the plain mean.

    Args:
        networks: at least one.
        classes: class names of the answer, in order; every network's are among them. None: they all have the same.
    Raises:
        GkdError: no network knows one of the classes, which then has no probability.
    """

    def __init__(self, networks: Sequence[Network], classes: tuple[str, ...] | None = None) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.classes = networks[0].classes if classes is None else classes
        known = {name for network in networks for name in network.classes}
        if strangers := [name for name in self.classes if name not in known]:
            raise GkdError(
                f"no network of the ensemble knows the class {strangers[0]!r}: add one that does, or remove the class"
            )
        for i, network in enumerate(networks):
            columns = None
            if network.classes != self.classes:
                position = {name: column for column, name in enumerate(network.classes)}
                # One past the network's last column stands for "does not know it".
                columns = torch.tensor([position.get(name, len(position)) for name in self.classes])
            self.register_buffer(f"columns{i}", columns, persistent=False)

    def log_probabilities(self, images: Tensor, temperature: float = 1.0, topology: Tensor | None = None) -> Tensor:
        """[M, B, C], log σ(z_m / τ) of each network over the classes it knows, −∞ for the others; at least float32."""
        each = []
        for i, network in enumerate(self.networks):
            logits = network(images, topology).logits
            logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
            known = (logits / temperature).log_softmax(1)
            columns = getattr(self, f"columns{i}")
            if columns is not None:
                nothing = torch.full_like(known[:, :1], -math.inf)
                known = torch.cat([known, nothing], 1)[:, columns]
            each.append(known)
        return torch.stack(each)

    def forward(self, images: Tensor, topology: Tensor | None = None) -> Output:
        """[B, C, H, W] in [0, 1] → `Output` without stages, its logits log-probabilities and its embedding too."""
        logits = mean_log_probabilities(self.log_probabilities(images, topology=topology))
        return Output(logits, (), logits)


def mean_log_probabilities(log_probabilities: Tensor, weights: Tensor | None = None) -> Tensor:
    """log p̄, p̄_c ∝ Σ_m w_m·p_m(c) / Σ_m w_m, both sums over the networks that know class c.

    With weights of sum 1 and networks that know all classes, p̄ = Σ_m w_m·p_m.

    Args:
        log_probabilities: [M, B, C], −∞ where a network does not know a class.
        weights: [M, B], not negative; None weighs all alike.
    Returns:
        [B, C].
    """
    known = log_probabilities > -math.inf
    log_weights = torch.zeros_like(log_probabilities) if weights is None else weights.log()[:, :, None].expand_as(known)
    total = torch.where(known, log_weights, -math.inf).logsumexp(0)
    return ((log_weights + log_probabilities).logsumexp(0) - total).log_softmax(1)
