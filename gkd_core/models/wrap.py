"""Any module as a classifier with stages and a head, by the dotted names of its layers.

The layers are read with forward hooks, as timm's FeatureHookNet does, so a forward pass may hold any Python; but hooks
are put on for one pass at a time: a copy of the network (an averaged one, a peer) then reads its own layers.

The head on the last stage alone is found by watching one pass: the layers that run after that stage, in order, each fed
with what the one before it gave, perhaps through one of `BETWEEN`.
"""

import contextlib
import copy
import difflib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from gkd_core.errors import GkdError, unknown
from gkd_core.models.classifier import Classifier, Output

WRAPPED = "wrapped:"
"""Before the class of a wrapped module, in the name of its network."""

BETWEEN: dict[str, Callable[[Tensor], Tensor]] = {
    "nothing": lambda x: x,
    "relu": functional.relu,
    "flatten": lambda x: x.flatten(1),
    "mean": lambda x: x.mean((2, 3)),
    "pool": lambda x: x.mean((2, 3), keepdim=True),
    "relu and mean": lambda x: functional.relu(x).mean((2, 3)),
    "relu and pool": lambda x: functional.relu(x).mean((2, 3), keepdim=True),
}
"""Functions that a forward pass may call between two layers of a head."""

POOLING = (nn.AdaptiveAvgPool2d, nn.AvgPool2d, nn.Flatten, nn.Identity)


class _Call(NamedTuple):
    """One layer's run in a forward pass."""

    name: str
    entered: Any
    left: Any


class WrappedClassifier(Classifier):
    """A module of any make.

    Its layers are set to work out of place, or they would overwrite a stage after it was handed out.

    Args:
        network: normalised images [B, C, H, W] in, logits [B, C] out.
        stages: layers whose outputs [B, C_i, H_i, W_i] are the feature maps, from shallow to deep; may be empty.
        head: the last layer; what enters it is the embedding.
        channels, image_size: of the images, for one pass in eval mode that tries all this.
    Raises:
        GkdError: there is no such layer, or its output is no feature map, or the pass fails.
    """

    def __init__(self, network: nn.Module, stages: Sequence[str], head: str, channels: int, image_size: int) -> None:
        super().__init__()
        layers = dict(network.named_modules())
        for option, name in (*(("stages", stage) for stage in stages), ("head", head)):
            if not name or name not in layers:
                near = difflib.get_close_matches(name, layers, n=3)
                raise GkdError(
                    unknown(f"{option}: layer", name, [*near, *(child for child, _ in network.named_children())])
                )
        for layer in layers.values():
            if hasattr(layer, "inplace"):
                layer.inplace = False
        self.network = network
        self.stages, self.last = tuple(stages), head
        reference = next(network.parameters(), torch.empty(0))
        images = torch.rand(2, channels, image_size, image_size, generator=torch.Generator().manual_seed(0))
        with _evaluating(network):
            output, after = self._watched(images.to(reference.device))
        self.num_classes = output.logits.shape[1]
        self.steps, self.no_head = _chain(output, after)
        self.pools_only = (
            self.no_head is None
            and isinstance(layers[head], nn.Linear)
            and _same(BETWEEN["mean"](output.stages[-1]), output.embedding)
            and all(isinstance(leaf, POOLING) for leaf in self._leaves_before_the_last())
        )

    def forward(self, images: Tensor) -> Output:
        """Normalised images [B, C, H, W] → `Output`."""
        maps: dict[str, Tensor] = {}
        embedding: list[Tensor] = []

        def keep(name: str) -> Callable[..., None]:
            def hook(layer: nn.Module, entered: Any, left: Any) -> None:
                if name in maps:
                    raise GkdError(f"layer {name!r} runs more than once in a forward pass: take one that runs once")
                maps[name] = left

            return hook

        with contextlib.ExitStack() as hooks:
            for name in self.stages:
                hooks.callback(self.network.get_submodule(name).register_forward_hook(keep(name)).remove)
            last = self.network.get_submodule(self.last)
            hooks.callback(last.register_forward_pre_hook(lambda _, entered: embedding.append(entered[0])).remove)
            logits = self.network(images)
        for name in self.stages:
            if not isinstance(maps.get(name), Tensor) or maps[name].ndim != 4:
                raise GkdError(
                    f"layer {name!r} of {type(self.network).__name__} gives {_described(maps.get(name))}, not feature "
                    "maps [B, C, H, W]: name another layer in stages"
                )
        if list(maps) != list(self.stages):
            raise GkdError(f"the stages run in the order {', '.join(maps)}: name them in this order")
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(embedding) != 1:
            raise GkdError(
                f"{type(self.network).__name__} gives {_described(logits)} and runs its head {self.last!r} "
                f"{len(embedding)} times: a network gives logits [B, C], and its head is a layer that runs once"
            )
        return Output(logits, tuple(maps.values()), embedding[0].flatten(1))

    def head(self, last_stage: Tensor) -> Tensor:
        """Logits [B, C] from the last stage [B, C_n, H_n, W_n] alone.

        Raises:
            GkdError: more leads from there to the logits than layers one after another; it names the layer.
        """
        if self.no_head is not None:
            raise GkdError(self.no_head)
        x = last_stage
        for between, name in self.steps:
            x = BETWEEN[between](x)
            if name:
                x = self.network.get_submodule(name)(x)
        return x

    def untrained(self) -> "WrappedClassifier":
        """A copy whose layers have drawn new weights, from torch's global random state.

        Raises:
            GkdError: a layer with weights has no `reset_parameters`; it is named.
        """
        copied = copy.deepcopy(self)
        for name, layer in copied.network.named_modules():
            if hasattr(layer, "reset_parameters"):
                layer.reset_parameters()
            elif next(layer.parameters(recurse=False), None) is not None:
                raise GkdError(
                    f"layer {name!r} of {type(self.network).__name__} has weights and no reset_parameters(), so no "
                    "second network with other weights can be made of it: give it one, or choose another scheme"
                )
        return copied

    @property
    def pooled_linear(self) -> nn.Linear | None:
        """The head where it is a linear layer and only global average pooling stands before it, else None."""
        layer = self.network.get_submodule(self.last)
        return layer if self.pools_only and isinstance(layer, nn.Linear) else None

    @property
    def head_layers(self) -> tuple[str, ...]:
        """The layer that was named as the head."""
        return (f"network.{self.last}",)

    def _leaves_before_the_last(self) -> list[nn.Module]:
        last = self.network.get_submodule(self.last)
        layers = [self.network.get_submodule(name) for _, name in self.steps if name]
        inside = [part for layer in layers for part in layer.modules()]
        return [part for part in inside if part is not last and not list(part.children())]

    def _watched(self, images: Tensor) -> tuple[Output, list[_Call]]:
        """One pass, and the outermost layers that ran after the last stage."""
        calls: list[_Call] = []
        running: list[tuple[str, Any]] = []  # layers, and what entered them
        outside: set[str] = set()  # layers that contain the last stage
        maps: dict[str, Tensor] = {}

        def before(name: str) -> Callable[..., None]:
            def hook(layer: nn.Module, entered: tuple[Any, ...]) -> None:
                running.append((name, _copy(entered[0] if entered else None)))

            return hook

        def after(name: str) -> Callable[..., None]:
            def hook(layer: nn.Module, entered: tuple[Any, ...], left: Any) -> None:
                _, given = running.pop()
                if name in self.stages:
                    maps[name] = _copy(left)
                if name == self.stages[-1]:
                    outside.update(container for container, _ in running)
                elif self.stages[-1] in maps and name not in outside and outside.issuperset(r for r, _ in running):
                    calls.append(_Call(name, given, _copy(left)))

            return hook

        with contextlib.ExitStack() as hooks:
            for name, layer in self.network.named_modules():
                if self.stages:
                    hooks.callback(layer.register_forward_pre_hook(before(name)).remove)
                    hooks.callback(layer.register_forward_hook(after(name)).remove)
            try:
                output = self(images)
            except GkdError:
                raise
            except Exception as error:  # whatever a module of one's own raises
                raise GkdError(
                    f"{type(self.network).__name__} does not take images {list(images.shape)} "
                    f"({type(error).__name__}: {error}): give the image_size and channels that it was built for"
                ) from error
        for name, stage in zip(self.stages, output.stages, strict=True):
            if not torch.equal(stage, maps[name]):
                raise GkdError(
                    f"what layer {name!r} gives is overwritten later in the forward pass: name another stage"
                )
        return output, calls


def _chain(output: Output, calls: list[_Call]) -> tuple[list[tuple[str, str]], str | None]:
    """(What stands between, layer) from the last stage to the logits; or why there is no such chain."""
    if not output.stages:
        return [], "this network has no stages, so no head on the last of them: name its stages, or take another method"
    steps: list[tuple[str, str]] = []
    x = output.stages[-1]
    for name, entered, left in calls:
        if (between := _between(x, entered)) is None:
            return [], (
                f"what enters layer {name!r} is not what the last stage and the layers after it gave, perhaps averaged "
                "or flattened, so the logits cannot be had from the last stage alone: name a later layer as the last "
                "stage, or take a method that needs no head"
            )
        steps.append((between, name))
        x = left
    if (between := _between(x, output.logits)) is None:
        where = steps[-1][1] if steps else "the last stage"
        return [], (
            f"the logits are not what layer {where!r} gave, so they cannot be had from the last stage alone: name a "
            "later layer as the last stage, or take a method that needs no head"
        )
    return [*steps, (between, "")], None


def _between(x: Any, wanted: Any) -> str | None:
    """Which of `BETWEEN` makes `wanted` of `x`."""
    for name, function in BETWEEN.items():
        if isinstance(x, Tensor) and isinstance(wanted, Tensor) and (x.ndim == 4 or name in ("nothing", "relu")):
            made = function(x)
            if _same(made, wanted):
                return name
    return None


def _copy(value: Any) -> Any:
    """As it is now: a forward pass may add to it in place."""
    return value.clone() if isinstance(value, Tensor) else value


def _same(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and torch.allclose(first, second, rtol=1e-4, atol=1e-6)


def _described(value: Any) -> str:
    return f"a tensor {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


@contextlib.contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """In eval mode and without gradients; every layer's mode is put back."""
    modes = {layer: layer.training for layer in network.modules()}
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for layer, mode in modes.items():
            layer.training = mode
