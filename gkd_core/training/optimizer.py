"""The optimiser over a network and whatever its loss trains beside it."""

from typing import Any

import torch

from gkd_core.losses.base import Loss
from gkd_core.models.network import Network


def create_optimizer(
    network: Network,
    loss: Loss,
    *,
    name: str,
    learning_rate: float,
    weight_decay: float = 0.0,
    momentum: float = 0.9,
    nesterov: bool = False,
) -> torch.optim.Optimizer:
    """`sgd` or `adamw`; the first group is the network, the others are the loss's, with their own settings.

    Raises:
        ValueError: unknown name.
    """
    groups: list[dict[str, Any]] = [{"params": list(network.parameters())}, *loss.parameter_groups()]
    match name:
        case "sgd":
            return torch.optim.SGD(
                groups, lr=learning_rate, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay
            )
        case "adamw":
            return torch.optim.AdamW(groups, lr=learning_rate, weight_decay=weight_decay)
    raise ValueError(f"optimizer {name!r} is unknown; known: sgd, adamw")
