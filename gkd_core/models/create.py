"""Networks to train: by name, or around a module of one's own."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from gkd_core.data.prepared import PreparedData
from gkd_core.errors import GkdError
from gkd_core.models.network import LUMA, Network, NetworkSpec
from gkd_core.models.registry import TOPOLOGICAL, is_cifar_name, model_names
from gkd_core.models.wrap import WRAPPED, WrappedClassifier

Statistics = tuple[tuple[float, ...], tuple[float, ...]]
IMAGENET: dict[int, Statistics] = {
    3: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    1: ((0.449,), (0.226,)),  # the means over the three channels
}
"""Mean and standard deviation per channel, by the number of channels."""


def list_models(filter: str = "") -> list[str]:
    """Names that `create_model` takes.

    Args:
        filter: a part of the name, or a pattern with `*` and `?`.

    Example:
        >>> list_models("resnet8")
        ['resnet8', 'resnet8x4']
        >>> list_models("mobilenet_v3_*")
        ['mobilenet_v3_large', 'mobilenet_v3_small']
    """
    return [name for name in model_names() if filter in name or fnmatchcase(name, filter)]


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
    stages: Sequence[str] = (),
    head: str = "fc",
) -> Network:
    """A network with fresh weights: images [B, C, H, W] in [0, 1] of any size in, preprocessing inside.

    Args:
        name: one of `list_models()`; or a module of your own, which is then wrapped (see `wrap`).
        classes: class names in the order of the logits; None takes the data's.
        data: what it will be trained on, for everything that is not given.
        image_size: side in pixels that the network works on; without data 32 for the CIFAR families, else 224.
        channels: 1 or 3 that it works on; without data 3.
        mean: per channel, of images in [0, 1]; without data ImageNet's.
        std: likewise.
        seed: of the weights; torch's own random state is left as it is.
        stem: first layers of a torchvision network: "imagenet", "cifar", or "auto" (cifar up to 64 pixels).
        stages, head: of a module of your own.
    Raises:
        GkdError: an unknown name, no classes, images too small for the network.

    Example:
        >>> network = create_model("resnet8", classes=["cat", "dog"], image_size=32)
        >>> network(torch.rand(5, 3, 48, 48)).logits.shape
        torch.Size([5, 2])
    """
    if isinstance(name, nn.Module):
        own: dict[str, Any] = {"image_size": image_size, "channels": channels, "mean": mean, "std": std}
        return wrap(name, stages, head, classes=classes, data=data, **own)
    default_size = 32 if is_cifar_name(name.removeprefix(TOPOLOGICAL)) else 224
    spec = describe(
        name,
        stem=stem,
        classes=classes,
        data=data,
        image_size=image_size,
        channels=channels,
        mean=mean,
        std=std,
        default_size=default_size,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Network(spec)


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
    image_size: int | None,
    channels: int | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    default_size: int = 224,
    option: str = "",
    **more: Any,
) -> NetworkSpec:
    """What a network is to be: what is given, else the data's, else ImageNet's.

    Args:
        default_size: `image_size` without data.
        option: stands before the names of arguments in errors.

    Raises:
        GkdError: there are no classes, or this describes no network.
    """
    info = data.info if data is not None else None
    if classes is None and info is None:
        raise GkdError(f"a network needs the names of its classes: give {option}classes, or data")
    depth = channels or (info.channels if info else 3)
    default_mean, default_std = IMAGENET[3 if depth == 3 else 1] if data is None else _statistics(data, depth)
    spec = NetworkSpec(
        name=name,
        stem=stem,
        classes=tuple(classes) if classes is not None else data.info.classes,  # type: ignore[union-attr]
        in_channels=depth,
        image_size=image_size or (info.image_size if info else default_size),
        mean=tuple(mean) if mean is not None else default_mean,
        std=tuple(std) if std is not None else default_std,
        **more,
    )
    if fault := spec.fault():
        raise GkdError(f"there can be no such network ({fault}): change {option}image_size, mean, std or classes")
    return spec


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
