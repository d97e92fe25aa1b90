"""timm's classification networks in our output form: `timm:NAME`, CNN or transformer.

The networks stay timm's, under the attribute `network`. One call of timm's `forward_intermediates` gives what the head
sees and the maps before it; `forward_head` is the head, and what enters its classification layer the embedding.

Stages, at most four: of networks that halve their maps the last map of each size, as in `torchvision.py`; of a
transformer whose maps all have one size four depths, evenly spaced. The last stage is what the head sees: a map, or,
where that is a row of tokens, their patches laid out as a grid, after the last norm; all of them, class token included,
are `Output.tokens`. Two families (CrossViT, EfficientViM) hand several things to their head at once: they have no
stages, and methods on logits and embeddings take them.
"""

import contextlib
import difflib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gkd_core.errors import GkdError, unknown
from gkd_core.models.classifier import Classifier, Output

PREFIX = "timm:"
STAGES = 4


def library() -> Any:
    """The package timm.

    Raises:
        GkdError: it is not installed.
    """
    try:
        import timm
    except ImportError:
        raise GkdError(f"networks named {PREFIX}NAME need the package timm: pip install 'gkd[hub]'") from None
    return timm


def names() -> list[str]:
    """timm's own names of its networks."""
    listed: list[str] = library().list_models()
    return listed


def split(name: str) -> tuple[str, str]:
    """`timm:NAME.TAG` → NAME and TAG, which says what weights are meant and may be empty."""
    plain, _, tag = name.removeprefix(PREFIX).partition(".")
    return plain, tag


def refuse_unknown(name: str, key: str = "network") -> None:
    """Raises: GkdError: timm has no network `timm:NAME`, or none with this tag; the nearest are named."""
    timm = library()
    plain, tag = split(name)
    if not timm.is_model(plain):
        near = difflib.get_close_matches(plain, names(), n=5, cutoff=0.5)
        known = [*(PREFIX + each for each in near), "those that gkd.list_models('timm:*') lists"]
        raise GkdError(unknown(key, name, known))
    if tag and tag not in (known := tags(plain)):
        raise GkdError(unknown(f"{key} {PREFIX}{plain}: tag of weights", tag, known))


def tags(plain: str) -> list[str]:
    """Tags under which timm publishes weights of a network, the default first."""
    listed = [name.partition(".")[2] for name in library().list_pretrained([plain, f"{plain}.*"])]
    default = library().get_pretrained_cfg(plain)
    first = default.tag if default is not None else None
    return sorted(listed, key=lambda tag: tag != first)


class TimmClassifier(Classifier):
    """A timm network.

    Args:
        network: as timm built it.
        num_classes: of it.
        name: of it, for errors.
    Raises:
        GkdError: it has no classification layer.
    """

    def __init__(self, network: nn.Module, num_classes: int, name: str) -> None:
        super().__init__()
        for module in network.modules():
            # A layer that works in place would overwrite a stage or the embedding after it was handed out.
            if hasattr(module, "inplace"):
                module.inplace = False  # type: ignore[assignment]
        self.network = network
        self.name = name
        self.layers = _classification_layers(network, num_classes)
        if not self.layers:
            raise GkdError(f"network {name} is an encoder without a classification layer: take another network")
        self.depths: list[int] | None = None  # of timm's maps those that are stages; None: all
        self.channels_last = getattr(network, "output_fmt", "NCHW") == "NHWC"

    def forward(self, images: Tensor) -> Output:
        """Normalised images [B, C, H, W] → `Output`."""
        network: Any = self.network
        maps: list[Tensor] = []
        if self.depths == []:
            final = network.forward_features(images)
        else:
            final, maps = network.forward_intermediates(images, indices=self.depths)
        with _entering([network.get_submodule(layer) for layer in self.layers]) as entered:
            logits = network.forward_head(final)
        embedding = torch.cat([each.mean(1) if each.ndim == 3 else each.flatten(1) for each in entered], 1)
        if not isinstance(final, Tensor):
            return Output(logits, (), embedding)
        if final.ndim == 3:
            tokens = final.transpose(1, 2)
            return Output(logits, (*maps[:-1], _patches(tokens, maps[-1])), embedding, tokens)
        return Output(logits, (*maps[:-1], final.permute(0, 3, 1, 2) if self.channels_last else final), embedding)

    def head(self, last_stage: Tensor) -> Tensor:
        """Logits [B, C] from the last stage alone, [B, C_n, H, W] or tokens [B, C_n, N].

        Raises:
            GkdError: the network has no such stage.
        """
        if self.depths == []:
            raise GkdError(
                f"network {self.name} hands several tensors to its head, so there is no head on a last stage: choose a "
                "method on logits such as kd, or another network"
            )
        network: Any = self.network
        if last_stage.ndim == 3:
            final = last_stage.transpose(1, 2)
        else:
            final = last_stage.permute(0, 2, 3, 1) if self.channels_last else last_stage
        logits: Tensor = network.forward_head(final)
        return logits

    @property
    def head_layers(self) -> tuple[str, ...]:
        """All classification layers: some networks have two, whose logits are averaged."""
        return tuple(f"network.{layer}" for layer in self.layers)

    def undecayed(self) -> frozenset[str]:
        """What timm's own training spares: positions, tokens, tables of relative positions."""
        network: Any = self.network
        spared = network.no_weight_decay() if hasattr(self.network, "no_weight_decay") else ()
        return super().undecayed() | {f"network.{name}" for name in spared}

    def choose_stages(self, in_channels: int, image_size: int) -> None:
        """Find out which of timm's maps are the stages, by a pass with one image.

        Raises:
            Exception: whatever timm raises where the network does not take such images.
        """
        device = next(self.parameters()).device
        training = self.training
        try:
            with torch.no_grad():
                output: Output = self.eval()(torch.zeros(1, in_channels, image_size, image_size, device=device))
        finally:
            self.train(training)
        self.depths = _depths([stage.shape[2] for stage in output.stages])


def build(name: str, num_classes: int, *, in_channels: int, image_size: int, stem: str) -> TimmClassifier:
    """A timm network, freshly initialised.

    Args:
        name: `timm:NAME`; a tag of weights behind it is passed over.
        stem: "auto" or "imagenet": the network's own.
    Raises:
        GkdError: an unknown name, a network without classification layer, or one that does not take such images.
    """
    refuse_unknown(name)
    if stem == "cifar":
        raise GkdError(
            f"network {name} has its own stem at every size: set stem to auto, or take a torchvision network"
        )
    try:
        network = create(name, num_classes, in_channels=in_channels, image_size=image_size)
        classifier = TimmClassifier(network, num_classes, name)
        classifier.choose_stages(in_channels, image_size)
    except GkdError:
        raise
    except Exception as error:  # timm asserts, and torch raises what comes
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise GkdError(
            f"network {name} does not take images of {image_size}×{image_size} pixels and {in_channels} channels "
            f"({reason}): set image_size to {published(name).input_size[-1]}, for which it is made, or choose another "
            "network"
        ) from None
    return classifier


def create(name: str, num_classes: int, *, in_channels: int, image_size: int, **more: Any) -> nn.Module:
    """What `timm.create_model` makes, for images of this size."""
    plain, _ = split(name)
    if published(plain).fixed_input_size:
        more["img_size"] = image_size
    network: nn.Module = library().create_model(plain, num_classes=num_classes, in_chans=in_channels, **more)
    return network


def published(name: str) -> Any:
    """timm's `PretrainedCfg` of a network, `timm:` and a tag before and behind its name or not.

    Where timm has none, one of its defaults.
    """
    found = library().get_pretrained_cfg(name.removeprefix(PREFIX))
    return library().models.PretrainedCfg() if found is None else found


def tensors(
    state: Mapping[str, Tensor], weights: Any, name: str, in_channels: int, image_size: int
) -> dict[str, Tensor]:
    """A state dict as timm's own loading brings it to this network: old names, and positions for another image size.

    Args:
        state: as it was in the file.
        weights: timm's `PretrainedCfg` of them.
    Returns:
        By our names; the classification layer as the file has it, if it has one.
    Raises:
        Exception: whatever timm and torch raise where it does not fit.
    """
    settings = weights.to_dict()
    layers = settings.get("classifier")
    first = (layers if isinstance(layers, str) else layers[0]) if layers else ""
    rows = len(state[f"{first}.weight"]) if f"{first}.weight" in state else 0
    background = int(settings.get("label_offset") or 0)  # an output before the first class, which timm leaves out
    if rows != weights.num_classes + background:
        background = 0
    outputs = rows - background
    settings |= {"state_dict": dict(state), "num_classes": outputs, "label_offset": background}
    settings |= {"source": "", "custom_load": False}
    network = create(
        name, outputs, in_channels=in_channels, image_size=image_size, pretrained=True, pretrained_cfg=settings
    )
    return {f"network.{key}": value for key, value in network.state_dict().items()}


def _classification_layers(network: Any, num_classes: int) -> list[str]:
    """Names of the linear layers, or 1×1 convolutions, that give the logits."""
    has_head = hasattr(network, "forward_head") and hasattr(network, "get_classifier")
    found = network.get_classifier() if has_head else None
    parts = list(found) if isinstance(found, list | tuple | nn.ModuleList) else [found]
    if parts != [None]:
        parts.append(getattr(network, "aux_head", None))  # VOLO's, which classifies every patch
    names = {module: name for name, module in network.named_modules()}
    layers: list[str] = []
    for part in parts:
        inside = part.modules() if isinstance(part, nn.Module) else ()
        ends: list[Any] = [m for m in inside if isinstance(m, nn.Linear | nn.Conv2d) and len(m.weight) == num_classes]
        # A hidden layer before the last one may happen to be as wide.
        layers += [names[end] for end in ends if end.weight.shape[1] == ends[-1].weight.shape[1]]
    return layers


def _depths(sides: list[int]) -> list[int]:
    """Of maps with these sides, from shallow to deep, which are the stages."""
    ends = [i for i, side in enumerate(sides) if i + 1 == len(sides) or sides[i + 1] != side]
    if len(ends) == 1:
        count = min(STAGES, len(sides))
        ends = [len(sides) * (place + 1) // count - 1 for place in range(count)]
    return ends[-STAGES:]


def _patches(tokens: Tensor, grid: Tensor) -> Tensor:
    """The tokens of a grid's cells, [B, C, H, W], of tokens [B, C, N], in which others come first; else `grid` itself.

    Args:
        grid: the map [B, C, H, W] before the last norm.
    """
    height, width = grid.shape[2:]
    others = tokens.shape[2] - height * width
    return tokens[:, :, others:].reshape(*tokens.shape[:2], height, width) if others >= 0 else grid


@contextlib.contextmanager
def _entering(layers: list[nn.Module]) -> Iterator[list[Tensor]]:
    """What enters the layers within the block. Hooks for one pass: a copy of the network then reads its own layers."""
    entered: list[Tensor] = []
    with contextlib.ExitStack() as hooks:
        for layer in layers:
            hooks.callback(layer.register_forward_pre_hook(lambda _, given: entered.append(given[0])).remove)
        yield entered
