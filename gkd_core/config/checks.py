"""What the sections of `params.yaml` say against each other, and against the data."""

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

from gkd_core import schemes
from gkd_core.config.schema import AugmentConfig, MethodConfig, Params, Section, TrainingConfig, can_train
from gkd_core.errors import GkdError
from gkd_core.methods import METHODS
from gkd_core.mistakes import Mistake

TRIVIAL_SHIFT = 32  # pixels: TrivialAugment's largest shift, whatever the size of the image


def contradictions(params: Params) -> Iterator[str]:
    """What the sections say against each other, a sentence each."""
    if params.teacher.topological and not params.data.topology:
        yield "teacher.topological is true but data.topology is false: set both"
    if params.gate.min_coverage is not None and params.decide is None:
        yield (
            f"gate.min_coverage is {params.gate.min_coverage:g} but decide is null, so every image is given a class: "
            "give decide, such as {precision: 0.95}"
        )
    if not can_train():
        return
    distill = params.distill
    scheme = schemes.get(distill.scheme)
    try:
        scheme.check_method(distill.method, distill.hyperparameters())
    except GkdError as error:
        yield str(error)
    yield from scheme.check(params)
    trainings: list[tuple[str, TrainingConfig, MethodConfig]] = [("train", params.train, distill)]
    if params.teacher.assistants:
        trainings.append(("teacher.train", params.teacher.train, params.teacher.assistant_distill))
    for section, training, how in trainings:
        method, given = how.method, how.hyperparameters()
        if training.balance == "weights" and not METHODS[method].load().traits(given).weighs_samples:
            yield unweighable(method, given, section)
        if params.data.unlabelled is not None and training.unlabelled_fraction != 0:
            yield from unlabelled_refused(method, given, section)
        yield from unmixable(method, given, training.augment, section)


def unweighable(method: str, given: Mapping[str, Any], section: str = "train") -> str:
    """Why `balance: weights` is refused for a method, as a sentence.

    Args:
        given: the method's hyperparameters.
        section: where `balance` was written.
    """
    traits = METHODS[method].load().traits(given)
    return (
        f"{section}.balance is weights, but method {method}{traits.where} has terms that are no mean over samples, so "
        f"they cannot be weighted: set {section}.balance to sampler or logit-adjustment, or take another {traits.other}"
    )


def unmixable(method: str, given: Mapping[str, Any], augment: AugmentConfig, section: str = "train") -> Iterator[str]:
    """Why a method cannot learn from mixed images, a sentence for each way of mixing that is asked for.

    Args:
        given: the method's hyperparameters.
        section: whose `augment` it is.
    """
    for name in ("mixup", "cutmix"):
        if getattr(augment, name) and (traits := METHODS[method].load().traits(given)).hard_labels:
            who = f"method {method}{traits.where}"
            yield f"{who} needs plain labels, and {section}.augment.{name} mixes them: set it to 0"


def unlabelled_refused(method: str, given: Mapping[str, Any], section: str = "train") -> Iterator[str]:
    """Why a method cannot learn from images without labels, a sentence, unless it can, or leaves them alone as ce does.

    Args:
        given: the method's hyperparameters.
        section: of the training.
    """
    if method != "ce" and not (traits := METHODS[method].load().traits(given)).unlabelled:
        yield (
            f"method {method}{traits.where} needs the label of every image, and the data has unlabelled ones: set "
            f"{section}.unlabelled_fraction to 0, or take another {traits.other}"
        )


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

    See `gkd_core.config.recipes.untrainable`; by its name, so that no step depends on its sources for being checked.
    """
    yield from importlib.import_module("gkd_core.config.recipes").untrainable(params)


def refuse_unfit_augmentation(
    augment: AugmentConfig, image_size: int, channels: int, *, section: str = "train"
) -> None:
    """See that random changes leave something of the image, and find what they are to change.

    Args:
        image_size: side of the images in pixels, which is known only from the prepared data.
        channels: of the images.
        section: whose `augment` it is.
    Raises:
        GkdError: they do not, a sentence each.
    """
    wrong = [
        f"{section}.augment.{name} is {pixels}, but the images are {image_size} pixels wide: set it below that"
        for name, pixels in (("crop_padding", augment.crop_padding), ("cutout", augment.cutout))
        if pixels is not None and pixels >= image_size
    ]
    if augment.auto == "trivial" and image_size < TRIVIAL_SHIFT:
        wrong.append(
            f"{section}.augment.auto is trivial, which moves images by up to {TRIVIAL_SHIFT} pixels, but they are "
            f"{image_size} pixels wide: set it to rand or none"
        )
    if augment.hue and channels == 1:
        wrong.append(f"{section}.augment.hue is {augment.hue:g}, but the images are grey: set it to 0")
    if wrong:
        raise GkdError("\n".join(wrong))
