"""What the sections of `params.yaml` say against each other, and against the data."""

from collections.abc import Iterator

from gkd_core import schemes
from gkd_core.config.options import can_train
from gkd_core.config.schema import AugmentConfig, Params
from gkd_core.errors import GkdError


def contradictions(params: Params) -> Iterator[str]:
    """What the sections say against each other, a sentence each."""
    if params.teacher.topological and not params.data.topology:
        yield "teacher.topological is true but data.topology is false: set both"
    if not can_train():
        return
    distill = params.distill
    try:
        schemes.get(distill.scheme).check_method(distill.method, distill.hyperparameters())
    except GkdError as error:
        yield str(error)
    yield from schemes.check(params)


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
