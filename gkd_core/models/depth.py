"""How deep each parameter of a network stands: what fine-tuning trains more gently, or later, than the head."""

from collections import Counter
from collections.abc import Collection
from typing import Any

from torch import nn

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def parameter_depths(module: nn.Module, head: Collection[str]) -> dict[str, int]:
    """The depth of every parameter by its name, by one rule for all architectures.

    Depths count blocks in the order in which they were registered. Walked through are sequences, what the head lies
    in, and a module that there is once and that holds a sequence (a transformer's encoder). What is left is a block: a
    residual block, a convolution. A norm layer by itself belongs to the block before it, and so do parameters between
    blocks (a class token, position embeddings). Where a network of timm's lies under `network`, timm's own grouping
    counts instead.

    Args:
        module: with all its parameters.
        head: names of the modules that make the logits; they are one deeper than everything else.
    Returns:
        0 for the stem, the largest for the head and for it alone.
    """
    if (known := _by_timm(module, head)) is not None:
        return known
    kinds = Counter(type(part) for part in module.modules())
    depths: dict[str, int] = {}
    blocks = 0

    def walk(part: nn.Module, name: str) -> None:
        nonlocal blocks
        if name in head:
            return
        holds_sequence = any(isinstance(child, CONTAINERS) for child in part.children())
        holds_head = not name or any(layer.startswith(f"{name}.") for layer in head)
        if holds_head or isinstance(part, CONTAINERS) or (holds_sequence and kinds[type(part)] == 1):
            for own, _ in part.named_parameters(name, recurse=False):
                depths[own] = max(blocks - 1, 0)
            for child_name, child in part.named_children():
                walk(child, f"{name}.{child_name}" if name else child_name)
            return
        parameters = dict(part.named_parameters(name))
        if any(parameter.ndim > 1 for parameter in parameters.values()) or not blocks:
            blocks += bool(parameters)
        depths.update(dict.fromkeys(parameters, max(blocks - 1, 0)))

    walk(module, "")
    return {name: depths.get(name, blocks) for name, _ in module.named_parameters()}


def _by_timm(module: nn.Module, head: Collection[str]) -> dict[str, int] | None:
    """Depths by the groups that timm's own layer decay has, without gaps; None: it has no say."""
    network: Any = getattr(module, "network", None)
    if not hasattr(network, "group_matcher"):
        return None
    from timm.models import group_parameters

    found = group_parameters(network, network.group_matcher(coarse=False), reverse=True)
    heads = tuple(f"{layer}." for layer in head)
    groups = {f"network.{name}": group for name, group in found.items() if not f"network.{name}".startswith(heads)}
    ranks = {group: rank for rank, group in enumerate(sorted(set(groups.values())))}
    return {name: ranks[groups[name]] if name in groups else len(ranks) for name, _ in module.named_parameters()}
