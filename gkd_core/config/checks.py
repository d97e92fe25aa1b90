"""What the sections of `params.yaml` say against each other, and against the data."""

import importlib
from collections.abc import Iterator
from typing import Any

from gkd_core import schemes
from gkd_core.config.options import can_train
from gkd_core.config.schema import AugmentConfig, Params, Section
from gkd_core.errors import GkdError
from gkd_core.mistakes import Mistake


def contradictions(params: Params) -> Iterator[str]:
    """What the sections say against each other, a sentence each."""
    if params.teacher.topological and not params.data.topology:
        yield "teacher.topological is true but data.topology is false: set both"
    if not can_train():
        return
    distill = params.distill
    scheme = schemes.get(distill.scheme)
    try:
        scheme.check_method(distill.method, distill.hyperparameters())
    except GkdError as error:
        yield str(error)
    yield from scheme.check(params)


def unread(section: Section, at: tuple[str, ...] = ()) -> Iterator[Mistake]:
    """What the user wrote in a section, or in one below it, that nothing reads.

    Asked of what a user wrote, not of a section that was written out with its defaults.

    Args:
        at: the section's place.
    """
    for sentence in section.unread():
        yield Mistake(at, f"{'.'.join(at)}: {sentence}", contradiction=True)
    for name, value in section:
        if isinstance(value, Section):
            yield from unread(value, (*at, name))


def untrainable(params: Params) -> Iterator[Mistake]:
    """What a step would refuse to train for what the recipe adds to the parameters, whatever the data turns out to be.

    See `gkd_core.config.recipes.untrainable`; by its name for the reason that `unknown_networks` has.
    """
    yield from importlib.import_module("gkd_core.config.recipes").untrainable(params)


def unknown_networks(content: dict[str, Any]) -> Iterator[Mistake]:
    """The networks that there are not, wherever the configuration names one.

    A name of the CIFAR families needs no torch to be known; any other has torchvision imported. Where torch is not
    installed nothing is checked: nothing can be trained there.
    """
    if not can_train():
        return
    # By its name: what is only checked must not have a step depend on the sources of all networks (`gkd sources`).
    registry = importlib.import_module("gkd_core.models.registry")
    for place, name in _networks(content):
        if not isinstance(name, str) or name.startswith(registry.TOPOLOGICAL):  # which the schema refuses
            continue
        try:
            registry.refuse_unknown_name(name, ".".join(place))
        except GkdError as error:
            yield Mistake(place, str(error))


def _networks(content: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for section in ("student", "teacher"):
        if isinstance(part := content.get(section), dict):
            if "name" in part:
                yield (section, "name"), part["name"]
            members, assistants = part.get("members"), part.get("assistants")
            for number, member in enumerate(members if isinstance(members, list) else ()):
                if isinstance(member, dict) and "name" in member:
                    yield (section, "members", str(number), "name"), member["name"]
            for number, assistant in enumerate(assistants if isinstance(assistants, list) else ()):
                yield (section, "assistants", str(number)), assistant


def refuse_wide_augmentation(augment: AugmentConfig, image_size: int, *, section: str = "train") -> None:
    """See that random crops and squares leave something of the image.

    Args:
        image_size: side of the images in pixels, which is known only from the prepared data.
        section: whose `augment` it is.
    Raises:
        GkdError: they may not.
    """
    wide = [
        f"{section}.augment.{name} is {pixels}, but the images are {image_size} pixels wide: set it below that"
        for name, pixels in (("crop_padding", augment.crop_padding), ("cutout", augment.cutout))
        if pixels is not None and pixels >= image_size
    ]
    if wide:
        raise GkdError("\n".join(wide))
