"""Networks to train: by name, or around a module of one's own."""

import logging
import reprlib
from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from gkd_core.config.schema import FILES
from gkd_core.data.prepared import PreparedData
from gkd_core.errors import GkdError
from gkd_core.models.network import LUMA, Network, NetworkSpec, Preprocessing
from gkd_core.models.registry import TIMM, TOPOLOGICAL, is_cifar_name, model_names, refuse_unknown_name, timm_names
from gkd_core.models.starting import StartingWeights, find_weights, start_from
from gkd_core.models.wrap import WRAPPED, WrappedClassifier

log = logging.getLogger(__name__)

Statistics = tuple[tuple[float, ...], tuple[float, ...]]
IMAGENET: dict[int, Statistics] = {
    3: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    1: ((0.449,), (0.226,)),  # the means over the three channels
}
"""Mean and standard deviation per channel, by the number of channels."""


def list_models(filter: str = "") -> list[str]:
    """Names that `create_model` takes.

    Args:
        filter: a part of the name, or a pattern with `*` and `?`; one that begins with `timm:` lists timm's.
    Raises:
        GkdError: timm's are asked for, and it is not installed.

    Example:
        >>> list_models("resnet8")
        ['resnet8', 'resnet8x4']
        >>> list_models("mobilenet_v3_*")
        ['mobilenet_v3_large', 'mobilenet_v3_small']
    """
    names = timm_names() if filter.startswith(TIMM) else model_names()
    return [name for name in names if filter in name or fnmatchcase(name, filter)]


def create_model(
    name: str | nn.Module,
    *,
    classes: Sequence[str] | None = None,
    data: PreparedData | None = None,
    image_size: int | None = None,
    channels: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    seed: int = 0,
    stem: str = "auto",
    weights: str | Path | None = None,
    head: str | None = None,
    stages: Sequence[str] = (),
) -> Network:
    """A network: images [B, C, H, W] in [0, 1] of any size in, preprocessing inside.

    Args:
        name: one of `list_models()`, `timm:NAME` for any classification network of timm's; or a module of your own,
            which is then wrapped (see `wrap`).
        classes: class names in the order of the logits; None takes the data's, without data those of the weights.
        data: what it will be trained on, for everything that is not given.
        image_size: side in pixels that the network works on; None is what the weights were made with, else the data's,
            else 32 for the CIFAR families and 224 for others.
        channels: 1 or 3 that it works on; None is the weights', else the data's, else 3.
        mean: per channel, of images in [0, 1]; None is the weights', else the data's, else ImageNet's.
        std: likewise.
        seed: of random weights; torch's own random state is left as it is.
        stem: first layers of a torchvision network: "imagenet", "cifar", or "auto" (the weights', else cifar up to 64
            pixels).
        weights: what it starts from. None: random weights. `pretrained`: the network's published default. The name of
            weights that torchvision publishes (`IMAGENET1K_V2`), a tag of timm's (`in22k_ft_in1k`), `hf-hub:OWNER/NAME`
            for a network of timm's, a file (.safetensors, .pth), or a folder that gkd wrote.
        head: with weights, the classification layer: `new`, `keep` (theirs, its rows picked by the names of the
            classes), or `auto` (None): keep it where the weights know every class. Of a module of your own the name of
            its last layer, None is "fc".
        stages: of a module of your own.
    Raises:
        GkdError: an unknown name, no classes, images too small for the network, weights that there are not or that do
            not fit.

    Example:
        >>> network = create_model("resnet8", classes=["cat", "dog"], image_size=32)
        >>> network(torch.rand(5, 3, 48, 48)).logits.shape
        torch.Size([5, 2])
    """
    if isinstance(name, nn.Module):
        if weights is not None:
            raise GkdError("weights are for networks by name: load them into your module before it is wrapped")
        own: dict[str, Any] = {"image_size": image_size, "channels": channels, "mean": mean, "std": std}
        return wrap(name, stages, head or "fc", classes=classes, data=data, **own)
    _expect("name", name, str, "a name of list_models(), or a module of your own")
    _expect("weights", weights, (str, Path, type(None)), "pretrained, another name of weights, a file or a folder")
    spec: dict[str, Any] = {"image_size": image_size, "channels": channels, "mean": mean, "std": std}
    return build_network(name, classes=classes, data=data, seed=seed, stem=stem, weights=weights, head=head, **spec)


def build_network(
    name: str,
    *,
    classes: Sequence[str] | None = None,
    data: PreparedData | None = None,
    seed: int = 0,
    stem: str = "auto",
    weights: str | Path | StartingWeights | None = None,
    head: str | None = None,
    option: str = "",
    **preprocessing: Any,
) -> Network:
    """`create_model` for a step: `option` stands before the names of its arguments in errors ("student."), and weights
    may have been found before.
    """
    if weights is None and head not in (None, "auto", "new"):
        raise GkdError(
            f"{option}head is {head}, but there are no weights whose head could be: give weights, or no head"
        )
    refuse_unknown_name(name.removeprefix(TOPOLOGICAL))
    if weights is None or isinstance(weights, StartingWeights):
        start = weights
    else:
        start = find_weights(weights, name, option=option)
    if name.startswith(TIMM):
        name = name.partition(".")[0]  # the tag behind it says what weights are meant, not what network
    default_size = 32 if is_cifar_name(name.removeprefix(TOPOLOGICAL)) else 224
    if classes is None and data is None and start is not None:
        classes = start.classes
    spec = describe(
        name,
        stem=stem if start is None or stem != "auto" else start.stem,
        classes=classes,
        data=data,
        default_size=default_size,
        option=option,
        known=None if start is None else start.preprocessing,
        **preprocessing,
    )
    if start is not None and data is not None and data.info.source in FILES:
        _say_crop(start, data.info.crop or "center", option)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Network(spec)
        if start is not None:
            start_from(network, start, head or "auto", option=option)
    return network


def _say_crop(start: StartingWeights, crop: str, option: str) -> None:
    """Say where squares are not made of the pictures as the weights that a network starts from want it."""
    if start.crop not in ("center", crop):
        log.warning(
            "%sweights %s are for pictures that data.crop %s brings to a square, and the data has %s: set data.crop to "
            "%s and prepare it again, or let the network get used to it",
            *(option, start.source, start.crop, crop, start.crop),
        )


def wrap(
    module: nn.Module,
    stages: Sequence[str] = (),
    head: str = "fc",
    *,
    classes: Sequence[str] | None = None,
    data: PreparedData | None = None,
    image_size: int | None = None,
    channels: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Network:
    """Any module that gives logits, as a network with stages and a head, its weights as they are.

    Args:
        module: normalised images [B, C, H, W] in, logits [B, C] out. It is used as it is, not copied; its layers are
            set to work out of place.
        stages: names of the layers whose outputs are the feature maps, from shallow to deep, as `named_modules` has
            them. Methods that compare feature maps need them; without any, methods on logits take the network.
        head: name of the last layer. Methods that ask for logits from the last stage alone need nothing but layers one
            after another, averaging and flattening between that stage and the logits.
        classes: class names in the order of the logits; None takes the data's.
        data: what it will be trained on, for everything that is not given.
        image_size: side in pixels that the module works on; without data 224.
        channels: 1 or 3 that it works on; None is what its first convolution takes.
        mean: per channel, of images in [0, 1]; without data ImageNet's.
        std: likewise.
    Returns:
        Like any other network it trains, evaluates and exports; it is saved as weights alone, and loaded with
        `load_model(folder, module=…)`.
    Raises:
        GkdError: there is no such layer, a stage is no feature map, the module does not take such images or has another
            number of outputs than there are classes.

    Example:
        >>> from torchvision.models import resnet18
        >>> network = wrap(resnet18(num_classes=2), ["layer1", "layer4"], "fc", classes=["cat", "dog"], image_size=64)
        >>> [stage.shape[1:] for stage in network(torch.rand(1, 3, 64, 64)).stages]
        [torch.Size([64, 16, 16]), torch.Size([512, 2, 2])]
    """
    _expect("module", module, nn.Module, "a torch.nn.Module (create_model makes a network by its name)")
    _expect_list("stages", stages, str, "names of layers")
    if channels is None:
        first = next((layer for layer in module.modules() if isinstance(layer, nn.Conv2d)), None)
        channels = first.in_channels if first is not None and first.in_channels in (1, 3) else None
    spec = describe(
        WRAPPED + type(module).__name__,
        stem="auto",
        classes=classes,
        data=data,
        image_size=image_size,
        channels=channels,
        mean=mean,
        std=std,
        stages=tuple(stages),
        head=head,
    )
    classifier = WrappedClassifier(module, spec.stages, head, spec.in_channels, spec.image_size)
    if classifier.num_classes != len(spec.classes):
        raise GkdError(
            f"{type(module).__name__} gives {classifier.num_classes} logits, and there are {len(spec.classes)} classes "
            "given: build it for as many, or give classes= for its own"
        )
    network = Network(spec, classifier=classifier)
    reference = next(module.parameters(), None)
    return network if reference is None else network.to(reference.device)


def describe(
    name: str,
    *,
    stem: str,
    classes: Sequence[str] | None,
    data: PreparedData | None,
    image_size: int | None = None,
    channels: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    default_size: int = 224,
    known: Preprocessing | None = None,
    option: str = "",
    **more: Any,
) -> NetworkSpec:
    """What a network is to be: what is given, else the weights', else the data's, else ImageNet's.

    Args:
        default_size: `image_size` without data.
        known: the preprocessing that belongs to the weights it will have.
        option: stands before the names of arguments in errors.

    Raises:
        GkdError: there are no classes, or this describes no network.
    """
    _expect_list(f"{option}classes", classes, str, "the classes' names")
    for what, numbers in (("mean", mean), ("std", std)):
        _expect_list(f"{option}{what}", numbers, Real, "numbers, one for each channel")
    for what, number in (("image_size", image_size), ("channels", channels)):
        _expect(f"{option}{what}", number, (int, type(None)), "a whole number")
    info = data.info if data is not None else None
    if classes is None and info is None:
        raise GkdError(f"a network needs the names of its classes: give {option}classes, or data")
    if known is not None and channels not in (None, known.channels):
        raise GkdError(
            f"{option}channels is {channels}, but the weights are of a network that sees {known.channels}: leave it "
            "out (images are brought to the network's channels)"
        )
    if known is None:
        depth = channels if channels is not None else info.channels if info else 3
        statistics = IMAGENET[3 if depth == 3 else 1] if data is None else _statistics(data, depth)
        known = Preprocessing(depth, info.image_size if info else default_size, *statistics)
    spec = NetworkSpec(
        name=name,
        stem=stem,
        classes=tuple(classes) if classes is not None else data.info.classes,  # type: ignore[union-attr]
        in_channels=known.channels,
        image_size=known.image_size if image_size is None else image_size,
        mean=tuple(mean) if mean is not None else known.mean,
        std=tuple(std) if std is not None else known.std,
        interpolation=known.interpolation,
        crop_fraction=known.crop_fraction,
        **more,
    )
    if fault := spec.fault():
        raise GkdError(f"there can be no such network ({fault}): change {option}image_size, mean, std or classes")
    return spec


def _expect(what: str, given: object, kind: type | tuple[type, ...], words: str) -> None:
    """Raises: GkdError: it is something else."""
    if not isinstance(given, kind):
        raise GkdError(f"{what} is {reprlib.repr(given)}: give {words}")


def _expect_list(what: str, given: object, kind: type, words: str) -> None:
    """Raises: GkdError: it is given and is something else, a text included, whose letters would be taken for names."""
    if given is None:
        return
    if isinstance(given, Collection) and not isinstance(given, str) and all(isinstance(each, kind) for each in given):
        return
    raise GkdError(f"{what} is {reprlib.repr(given)}: give a list of {words}")


def _statistics(data: PreparedData, channels: int) -> Statistics:
    """Mean and standard deviation of the data as a network with so many channels sees it."""
    info = data.info
    if channels == 1 and info.channels == 3:
        return _grey_statistics(data.train.images)
    repeats = channels // info.channels
    return info.mean * repeats, info.std * repeats


def _grey_statistics(images: NDArray[np.uint8]) -> Statistics:
    """Mean and standard deviation of the greyscale of colour images [N, H, W, 3], for pixels in [0, 1]."""
    total = squares = 0.0
    for start in range(0, len(images), 1024):
        grey = images[start : start + 1024].astype(np.float64) / 255 @ np.array(LUMA)
        total += float(grey.sum())
        squares += float(np.square(grey).sum())
    count = len(images) * images.shape[1] * images.shape[2]
    mean = total / count
    std = max(squares / count - mean**2, 0.0) ** 0.5
    return (mean,), (std or 1.0,)
