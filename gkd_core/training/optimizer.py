"""The optimiser over a network and whatever its loss trains beside it."""

from typing import Any

import torch

from gkd_core.training.learner import Learner


def create_optimizer(
    learner: Learner,
    *,
    name: str,
    learning_rate: float,
    weight_decay: float = 0.0,
    momentum: float = 0.9,
    nesterov: bool = False,
) -> torch.optim.Optimizer:
    """`sgd` or `adamw`; the first group is the student, the others are networks beside it and the loss's own.

    Raises:
        ValueError: unknown name.
    """
    groups: list[dict[str, Any]] = [{"params": list(learner.network.parameters())}]
    if beside := [p for name, network in learner.networks().items() if name for p in network.parameters()]:
        groups.append({"params": beside})
    groups += learner.loss.parameter_groups()
    match name:
        case "sgd":
            return torch.optim.SGD(
                groups, lr=learning_rate, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay
            )
        case "adamw":
            return torch.optim.AdamW(groups, lr=learning_rate, weight_decay=weight_decay)
    raise ValueError(f"optimizer {name!r} is unknown; known: sgd, adamw")
