"""The optimiser over a network and whatever its loss trains beside it, in groups of one rate each."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from gkd_core.models.network import Network
from gkd_core.training.learner import Learner


def create_optimizer(
    learner: Learner,
    *,
    name: str,
    learning_rate: float,
    weight_decay: float = 0.0,
    momentum: float = 0.9,
    nesterov: bool = False,
    backbone_lr_factor: float = 1.0,
    layer_decay: float = 1.0,
    decay_norms: bool = True,
    head_first: bool = False,
) -> torch.optim.Optimizer:
    """`sgd` or `adamw`; the student's groups come first, then those of networks beside it, then the loss's own.

    A network's head has the full rate. Below it a parameter has learning_rate · backbone_lr_factor · layer_decay^k, k
    blocks below the head (`Classifier.parameter_depths`). What the loss trains has the full rate.

    Args:
        decay_norms: weight decay holds for all parameters of a network; else biases, norms and other vectors are
            spared, and what its classifier names (`Classifier.undecayed`).
        head_first: the backbone's groups stand apart and are marked `backbone`, though their rate be the head's.
    Raises:
        ValueError: unknown name.
    Source: the rule by depth is BEiT's (Bao et al. 2021, arXiv:2106.08254), as in timm's param_groups_layer_decay.
    """
    networks = learner.networks()
    beside = [network for key, network in networks.items() if key]
    how = (learning_rate, backbone_lr_factor, layer_decay, decay_norms, head_first)
    groups = _groups([networks[""]], *how) + _groups(beside, *how) + learner.loss.parameter_groups()
    match name:
        case "sgd":
            return torch.optim.SGD(
                groups, lr=learning_rate, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay
            )
        case "adamw":
            return torch.optim.AdamW(groups, lr=learning_rate, weight_decay=weight_decay)
    raise ValueError(f"optimizer {name!r} is unknown; known: sgd, adamw")


def backbone_parameters(network: Network) -> list[nn.Parameter]:
    """All of a network but its head."""
    depths = network.classifier.parameter_depths()
    head = max(depths.values())
    return [parameter for name, parameter in network.classifier.named_parameters() if depths[name] < head]


def _groups(
    networks: Sequence[Network],
    learning_rate: float,
    backbone_lr_factor: float,
    layer_decay: float,
    decay_norms: bool,
    head_first: bool,
) -> list[dict[str, Any]]:
    """Parameters of one rate and one weight decay together; the head's before the backbone's."""
    groups: dict[tuple[bool, float, bool], list[nn.Parameter]] = {}
    for classifier in (network.classifier for network in networks):
        depths, spared = classifier.parameter_depths(), classifier.undecayed()
        head = max(depths.values())
        for name, parameter in classifier.named_parameters():
            below = head - depths[name]
            rate = learning_rate * (backbone_lr_factor * layer_decay**below if below else 1.0)
            decayed = decay_norms or not (parameter.ndim <= 1 or name in spared)
            groups.setdefault((head_first and below > 0, rate, decayed), []).append(parameter)
    ordered = sorted(groups.items(), key=lambda item: (item[0][0], -item[0][1], not item[0][2]))
    return [
        {"params": parameters, "lr": rate}
        | ({} if decayed else {"weight_decay": 0.0})
        | ({"backbone": True} if backbone else {})
        for (backbone, rate, decayed), parameters in ordered
    ]
