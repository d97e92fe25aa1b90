"""Architectures by name. Adding a family = one file in `cifar/` with a `build` function and one entry in `FAMILIES`.

The CIFAR families are those of the CIFAR-100 distillation benchmark (RepDistiller), under the same layer names, so that
checkpoints trained with it, or with mdistiller, load as they are. `timm:NAME` is timm's (extra `hub`), every other name
torchvision's. Where both know a name (vgg11, vgg13, vgg16, vgg19) the plain name means the CIFAR family and
`torchvision:vgg13` torchvision's.
"""

import difflib
import importlib
from typing import TYPE_CHECKING, Any, cast

from gkd_core.errors import GkdError, unknown

if TYPE_CHECKING:
    from gkd_core.models.classifier import Classifier

FAMILIES: dict[str, tuple[str, ...]] = {
    "resnet": (
        *(f"resnet{depth}" for depth in (8, 14, 20, 32, 44, 56, 110)),
        "resnet8x4",
        "resnet32x4",
    ),
    "wide_resnet": ("wrn_16_1", "wrn_16_2", "wrn_40_1", "wrn_40_2"),
    "vgg": ("vgg8", "vgg11", "vgg13", "vgg16", "vgg19"),
    "mobilenet": ("MobileNetV2",),
    "shufflenet": ("ShuffleNetV2",),
}
"""Module in `gkd_core.models.cifar` → the names it builds."""

TORCHVISION = "torchvision:"
TIMM = "timm:"
TOPOLOGICAL = "topological:"
STEMS = ("auto", "cifar", "imagenet")


def model_names() -> tuple[str, ...]:
    """Names that `create_classifier` takes: the CIFAR families, then torchvision's (imports torchvision)."""
    return (*_cifar_names(), *(torchvision_name(name) for name in _torchvision_names()))


def timm_names() -> tuple[str, ...]:
    """The names of timm's networks.

    Raises:
        GkdError: timm is not installed.
    """
    from gkd_core.models import timm

    return tuple(TIMM + name for name in timm.names())


def refuse_unknown_name(name: str, key: str = "network") -> None:
    """See that there is a network of this name.

    Args:
        key: where the name was given, for the sentence.
    Raises:
        GkdError: there is none.
    """
    if name.startswith(TIMM):
        from gkd_core.models import timm

        timm.refuse_unknown(name, key)
        return
    if not is_cifar_name(name) and name.removeprefix(TORCHVISION) not in _torchvision_names():
        near = difflib.get_close_matches(name, _torchvision_names(), n=3)
        known = [*_cifar_names(), *near, "every torchvision classification model by its name, timm:NAME"]
        raise GkdError(unknown(key, name, known))


def is_cifar_name(name: str) -> bool:
    """Whether this is a network of the CIFAR families."""
    return name in _cifar_names()


def torchvision_name(name: str) -> str:
    """The name under which `create_classifier` knows torchvision's network `name`."""
    return TORCHVISION + name if is_cifar_name(name) else name


def create_classifier(
    name: str, num_classes: int, *, in_channels: int = 3, image_size: int = 32, stem: str = "auto"
) -> "Classifier":
    """A freshly initialised network, from torch's global random state.

    Args:
        name: one of `model_names()`; `timm:NAME` means timm's, `torchvision:NAME` always torchvision's,
            `topological:NAME` the network of that name that also looks at persistence features (see
            `gkd_core.models.topological`).
        num_classes: C ≥ 1.
        in_channels: 1 or 3.
        image_size: side of the square input in pixels.
        stem: first layers of a torchvision network: "imagenet", "cifar", or "auto" (cifar up to 64 pixels). The CIFAR
            families have their own stem at every size and refuse "imagenet", timm's networks refuse "cifar".
    Raises:
        GkdError: unknown name or stem, or images too small for the network.
    """
    if stem not in STEMS:
        raise GkdError(unknown("stem", stem, STEMS))
    if name.startswith(TOPOLOGICAL):
        from gkd_core.models.topological import TopologicalClassifier

        plain = name.removeprefix(TOPOLOGICAL)
        base = create_classifier(plain, num_classes, in_channels=in_channels, image_size=image_size, stem=stem)
        return TopologicalClassifier(base, num_classes, plain)
    for module, names in FAMILIES.items():
        if name not in names:
            continue
        if stem == "imagenet":
            raise GkdError(
                f"network {name} is a CIFAR network and has no ImageNet stem: set stem to auto, or take a torchvision "
                f"network{f' ({TORCHVISION}{name})' if name in _torchvision_names() else ''}"
            )
        family: Any = importlib.import_module(f"gkd_core.models.cifar.{module}")
        return cast("Classifier", family.build(name, num_classes, in_channels=in_channels, image_size=image_size))
    if name.startswith(TIMM):
        from gkd_core.models import timm

        return timm.build(name, num_classes, in_channels=in_channels, image_size=image_size, stem=stem)
    refuse_unknown_name(name)
    from gkd_core.models.torchvision import build

    return build(name.removeprefix(TORCHVISION), num_classes, in_channels=in_channels, image_size=image_size, stem=stem)


def _cifar_names() -> tuple[str, ...]:
    return tuple(name for names in FAMILIES.values() for name in names)


def _torchvision_names() -> list[str]:
    from torchvision import models

    names: list[str] = models.list_models(module=models)
    return names
