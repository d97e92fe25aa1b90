"""Architectures by name. Adding a family = one file in `cifar/` with a `build` function and one entry in `FAMILIES`.

The CIFAR families are those of the CIFAR-100 distillation benchmark (RepDistiller), under the same layer names, so that
checkpoints trained with it, or with mdistiller, load as they are. `timm:NAME` is timm's (extra `hub`), every other name
torchvision's. Where both know a name (vgg11, vgg13, vgg16, vgg19) the plain name means the CIFAR family and
`torchvision:vgg13` torchvision's. Other packages add theirs with `register_model` (docs/plugins.md).
"""

import difflib
import importlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

from gkd_core import plugins
from gkd_core.errors import GkdError, unknown

if TYPE_CHECKING:
    from torch import nn

    from gkd_core.models.classifier import Classifier

    Builder = TypeVar("Builder", bound=Callable[..., nn.Module])

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


@dataclass(frozen=True)
class OwnNetwork:
    """A network that a plugin registered; see `register_model`."""

    build: "Callable[..., nn.Module]"
    stages: tuple[str, ...]
    head: str


OWN: dict[str, OwnNetwork] = {}
"""Networks of plugins by name."""


def register_model(name: str, *, stages: Sequence[str] = (), head: str = "fc") -> "Callable[[Builder], Builder]":
    """Add a network of your own: a decorator of an `nn.Module`, or of a function that builds one.

    It is called with `num_classes`, and with `in_channels` and `image_size` if it takes them, and gives a module:
    normalised images [B, C, H, W] in, logits [B, num_classes] out. From then on its name is one for
    `gkd.create_model`, `student.name` and `teacher.name`, and its saved folder is loaded by that name, wherever the
    plugin is imported.

    Args:
        name: for params.yaml.
        stages: names of the layers whose outputs are the feature maps, from shallow to deep; see `gkd.wrap`.
        head: name of the last layer.
    Raises:
        GkdError: the name is taken, or what is decorated takes no `num_classes`.

    Example:
        >>> import gkd_core as gkd
        >>> from torch import nn
        >>> @gkd.register_model("linear", head="2")
        ... def linear(num_classes, in_channels, image_size):
        ...     size = in_channels * image_size**2
        ...     return nn.Sequential(nn.Flatten(), nn.Identity(), nn.Linear(size, num_classes))
        >>> gkd.create_model("linear", classes=["cat", "dog"], image_size=8)(torch.rand(5, 3, 8, 8)).logits.shape
        torch.Size([5, 2])
    """
    owner = plugins.caller()

    def register(builder: "Builder") -> "Builder":
        if not callable(builder) or not {"num_classes", None} & _taken(builder):
            raise GkdError(
                f"network {name!r} of {owner} is {builder!r}: give what makes an nn.Module when it is called with "
                "num_classes"
            )
        if isinstance(stages, str):
            raise GkdError(f"network {name!r} of {owner}: stages is {stages!r}: give a list of names of layers")
        builtin = isinstance(name, str) and (is_cifar_name(name) or name in _torchvision_names())
        plugins.claim("network", name, OwnNetwork(builder, tuple(stages), head), OWN, owner, builtin=builtin)
        return builder

    return register


def _taken(build: Callable[..., Any]) -> set[str | None]:
    """Names of the arguments that it takes; None among them: any."""
    parameters = inspect.signature(build).parameters.values()
    return {None if p.kind is p.VAR_KEYWORD else p.name for p in parameters}


def model_names() -> tuple[str, ...]:
    """Names that `create_classifier` takes: the CIFAR families, plugins', then torchvision's (imports torchvision)."""
    plugins.load_installed()
    return (*_cifar_names(), *OWN, *(torchvision_name(name) for name in _torchvision_names()))


def timm_names() -> tuple[str, ...]:
    """The names of timm's networks.

    Raises:
        GkdError: timm is not installed.
    """
    from gkd_core.models import timm

    return tuple(TIMM + name for name in timm.names())


def refuse_unknown_name(name: str, key: str = "network") -> None:
    """See that there is a network of this name; one that is not gkd's own has the installed plugins imported.

    Args:
        key: where the name was given, for the sentence.
    Raises:
        GkdError: there is none.
    """
    if name.startswith(TIMM):
        from gkd_core.models import timm

        timm.refuse_unknown(name, key)
        return
    if name in OWN or is_cifar_name(name) or name.removeprefix(TORCHVISION) in _torchvision_names():
        return
    plugins.load_installed()
    if name not in OWN:
        raise GkdError(_unknown(name, key))


def _unknown(name: str, key: str = "network") -> str:
    near = difflib.get_close_matches(name, _torchvision_names(), n=3)
    known = [*_cifar_names(), *OWN, *near, "every torchvision classification model by its name, timm:NAME"]
    return plugins.unknown_name(key, name, known)


def is_cifar_name(name: str) -> bool:
    """Whether this is a network of the CIFAR families."""
    return name in _cifar_names()


def is_built_here(name: str) -> bool:
    """Whether this is a network of the CIFAR families or of a plugin: one whose weights nobody publishes."""
    return name in OWN or is_cifar_name(name)


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
    if name in OWN:
        return _build_own(name, num_classes, in_channels=in_channels, image_size=image_size, stem=stem)
    if name.removeprefix(TORCHVISION) not in _torchvision_names():
        # The name may be from somebody's file, which must not have code imported.
        raise GkdError(_unknown(name))
    from gkd_core.models.torchvision import build

    return build(name.removeprefix(TORCHVISION), num_classes, in_channels=in_channels, image_size=image_size, stem=stem)


def _build_own(name: str, num_classes: int, *, in_channels: int, image_size: int, stem: str) -> "Classifier":
    from gkd_core.models.classifier import Classifier
    from gkd_core.models.wrap import WrappedClassifier

    own, where = OWN[name], f"network {name} of {plugins.owner('network', name)}"
    if stem != "auto":
        raise GkdError(f"{where} has first layers of its own: set stem to auto, not {stem}")
    facts = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
    taken = _taken(own.build)
    try:
        module = own.build(**{key: value for key, value in facts.items() if {key, None} & taken})
    except GkdError:
        raise
    except Exception as error:  # whatever somebody's code raises
        how = ", ".join(f"{key}={value}" for key, value in facts.items())
        raise GkdError(f"{where} cannot be built with {how} ({type(error).__name__}: {error})") from error
    if isinstance(module, Classifier):
        return module
    try:
        classifier = WrappedClassifier(module, own.stages, own.head, in_channels, image_size)
    except GkdError as error:
        raise GkdError(f"{where}: {error}") from None
    if classifier.num_classes != num_classes:
        raise GkdError(f"{where} gives {classifier.num_classes} logits where num_classes is {num_classes}: correct it")
    return classifier


def _cifar_names() -> tuple[str, ...]:
    return tuple(name for names in FAMILIES.values() for name in names)


def _torchvision_names() -> list[str]:
    from torchvision import models

    names: list[str] = models.list_models(module=models)
    return names
