"""Augmentations that plugins registered (docs/plugins.md): their options, and how they are called.

One changes one image at a time, on the host, and draws from torch's global generator, which has a seed of its own for
each image: what becomes of an image does not depend on its batch, its process, or what was drawn before. Importing this
module imports no torch.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic.errors import PydanticUserError

from gkd_core import plugins
from gkd_core.errors import GkdError
from gkd_core.methods import model_of, positional
from gkd_core.mistakes import mistakes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

Maker = TypeVar("Maker", bound=Callable[..., Any])

AUGMENTATIONS: dict[str, Any] = {}
"""By name: a function of an image, or a class whose objects are such functions."""


def register_augmentation(name: str) -> Callable[[Maker], Maker]:
    """Add a random change of training images of your own: a decorator of a function image → image.

    Or of a class whose objects are such functions, as torchvision's transforms are. An image is [C, H, W] float32 in
    [0, 1] on the CPU, in and out. What is random must come from torch (`torch.rand(1)`), whose generator is seeded for
    every image; of other sources a training could not be repeated.

    From then on `train.augment.own: {NAME: {option: value}}` uses it, after all other changes and before mixup and
    cutmix. Its keyword-only arguments (of a class, its constructor's) are its options, with types, limits and defaults.

    Args:
        name: for params.yaml.
    Raises:
        GkdError: the name is taken, an option has no type that can be read, or something but the image is taken by
            position.

    Example:
        >>> import gkd_core as gkd
        >>> @gkd.register_augmentation("dim")
        ... def dim(image, *, most: float = 0.5):
        ...     return image * (1 - most * torch.rand(1))
        >>> data = gkd.load_data("digits", train_images=200)
        >>> network = gkd.create_model("resnet8", data=data)
        >>> result = gkd.train(network, data, epochs=1, device="cpu", augment={"own": {"dim": {"most": 0.2}}})
        >>> result.facts["training"]["augment"]["own"]
        {'dim': {'most': 0.2}}
    """
    owner = plugins.caller()

    def register(maker: Maker) -> Maker:
        if not callable(maker):
            raise GkdError(f"augmentation {name!r} of {owner} is {maker!r}: give a function of an image, or a class")
        try:
            model_of(maker, name)
        except (NameError, PydanticUserError, ValueError) as error:  # a builtin has no signature
            reason = str(error).partition("\n")[0]
            raise GkdError(
                f"the options of augmentation {name!r} of {owner} cannot be read ({reason}): correct their types"
            ) from None
        taken, any_number = positional(maker)
        needed = [each.name for each in taken if each.default is each.empty]
        if needed if isinstance(maker, type) else len(needed) > 1 or not (taken or any_number):
            found = " and ".join(needed) or "nothing"
            raise GkdError(
                f"augmentation {name!r} of {owner} takes {found} by position: let a function take an image so, a class "
                "nothing, and options by keyword only, behind a *"
            )
        plugins.claim("augmentation", name, maker, AUGMENTATIONS, owner, builtin=False)
        return maker

    return register


def names(own: Iterable[str]) -> list[plugins.Name]:
    """What is asked for, as `gkd_core.plugins` names it."""
    return [("augmentation", name) for name in own]


def options_model(name: str) -> type[BaseModel]:
    """The options of a registered augmentation: types, limits and defaults."""
    return model_of(AUGMENTATIONS[name], f"{name} options")


def wrong(own: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """What is wrong with `own` of a section `augment`, a sentence each; for unknown names installed plugins are
    imported.
    """
    for name, given in own.items():
        if name not in AUGMENTATIONS:
            plugins.load_installed()
        if name not in AUGMENTATIONS:
            yield plugins.unknown_name("own: the augmentation", name, AUGMENTATIONS)
            continue
        model = options_model(name)
        try:
            model.model_validate(dict(given))
        except ValidationError as error:
            yield from (found.sentence for found in mistakes(error, model, at=("own", name), what="option"))


def create(own: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, Callable[["Tensor"], "Tensor"]]]:
    """(name, function of an image) of each, in order.

    Args:
        own: options by name, as `wrong` has found nothing in.
    Raises:
        GkdError: a class cannot be built with its options.
    """
    made: list[tuple[str, Callable[[Tensor], Tensor]]] = []
    for name, given in own.items():
        maker, checked = AUGMENTATIONS[name], options_model(name).model_validate(dict(given))
        options = {key: getattr(checked, key) for key in given}
        if not isinstance(maker, type):
            made.append((name, functools.partial(maker, **options)))
            continue
        with plugins.in_words("augmentation", name):
            made.append((name, maker(**options)))
    return made


def apply(
    images: "Tensor", made: Sequence[tuple[str, Callable[["Tensor"], "Tensor"]]], seeds: "NDArray[np.int64]"
) -> "Tensor":
    """Every image changed by each in turn.

    Args:
        images: [B, C, H, W] float32 in [0, 1], on any device; those of an accelerator come to the host and go back.
        made: what `create` gave.
        seeds: [B], of torch's generator on the host for each image. Its state is what it was afterwards.
    Returns:
        [B, C, H, W] float32 on the same device.
    Raises:
        GkdError: one fails, or gives no such image; it is named.
    """
    import torch

    changed = []
    with torch.random.fork_rng(devices=[]):
        for image, seed in zip(images.cpu(), seeds.tolist(), strict=True):
            shape = image.shape
            torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which reaches accelerators
            for name, change in made:
                with plugins.in_words("augmentation", name):
                    image = change(image)
                if not isinstance(image, torch.Tensor) or image.shape != shape or image.dtype != torch.float32:
                    what = f"{image.dtype} {list(image.shape)}" if isinstance(image, torch.Tensor) else repr(image)
                    raise GkdError(
                        f"{plugins.named('augmentation', name)} gives {what} for an image float32 {list(shape)}: it "
                        "must give one like it"
                    )
            changed.append(image)
    return torch.stack(changed).to(images.device) if changed else images
