"""Random changes to training images, for a whole batch at once, on the device, from a seeded generator.

Nothing here waits for the device: no value is read back, no shape depends on one. Changes of single images by
torchvision's kernels are in `operations.py`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from gkd_core import plugins
from gkd_core.data.operations import AutoName
from gkd_core.data.own import names
from gkd_core.data.views import Numbers

ERASED, ERASED_ASPECT, ERASING_TRIES = (0.02, 0.33), (0.3, 3.3), 10  # torchvision's defaults


@dataclass(frozen=True)
class Augmentation:
    """What is done to each image, drawn anew for each, in this order; mixup and cutmix to a batch, after all else.

    Attributes:
        crop_padding: pixels of black put round the image before a crop back to size; 0 is off.
        random_resized_crop: smallest and largest part of the picture's area that the image is, a window drawn by
            `gkd_core.data.windows` in place of the square; False is off.
        flip: mirror left-right with probability one half.
        auto: `trivial` is TrivialAugment, `rand` RandAugment with `rand_operations` of magnitude `rand_magnitude`.
        color_jitter: brightness, contrast and saturation change by factors in 1 ± this; 0 is off.
        hue: the hue shifts by up to this part of the colour circle either way; 0 is off.
        cutout: side in pixels of a square set to the data's mean, its centre anywhere in the image (so part of it may
            lie outside); 0 is off. After DeVries & Taylor 2017 (arXiv:1708.04552).
        erasing: probability that a rectangle is set to the data's mean; 0 is off. After Zhong et al. 2020
            (arXiv:1708.04896).
        mixup: α of Beta(α, α), one mixture λ for the batch; 0 is off. After Zhang et al. 2018 (arXiv:1710.09412).
        cutmix: α of Beta(α, α), one rectangle for the batch; 0 is off. With mixup each batch has one of them, as likely
            as the other. After Yun et al. 2019 (arXiv:1905.04899).
        own: options of plugins' augmentations by name, in order; see `gkd_core.data.own`.
    """

    crop_padding: int = 0
    random_resized_crop: Sequence[float] | Literal[False] = False
    flip: bool = False
    auto: AutoName = "none"
    rand_operations: int = 2
    rand_magnitude: int = 9
    color_jitter: float = 0.0
    hue: float = 0.0
    cutout: int = 0
    erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    own: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        strengths = ("crop_padding", "color_jitter", "hue", "cutout", "erasing", "mixup", "cutmix")
        if any(getattr(self, name) < 0 for name in strengths):
            raise ValueError(f"{', '.join(strengths[:-1])} and {strengths[-1]} must not be negative: {self}")
        if self.random_resized_crop:
            smallest, largest = self.random_resized_crop
            if not 0 < smallest <= largest <= 1:
                raise ValueError(f"random_resized_crop must be two rising parts of an area: {self}")

    @property
    def facts(self) -> dict[str, Any]:
        """All of it as plain values, and of plugins' what they are; without these where there are none."""
        found = {each.name: getattr(self, each.name) for each in fields(self)}
        own = found.pop("own")
        return found | ({"own": own, "plugins": plugins.lineage(names(own))} if own else {})

    @property
    def mixes(self) -> bool:
        """Whether images of a batch are mixed with each other, and so are their labels."""
        return self.mixup > 0 or self.cutmix > 0

    @property
    def views(self) -> int | None:
        """How many images an image can become; None where there is no end to them (see `number_of_view`).

        >>> Augmentation(crop_padding=4, flip=True).views
        162
        """
        finite = Augmentation(self.crop_padding, flip=self.flip)
        if self != replace(finite, rand_operations=self.rand_operations, rand_magnitude=self.rand_magnitude):
            return None
        return (2 * self.crop_padding + 1) ** 2 * (2 if self.flip else 1)


class Rectangle(NamedTuple):
    """Rows top to bottom, columns left to right, without the last."""

    top: int
    left: int
    bottom: int
    right: int

    def fill(self, images: Tensor, content: Tensor) -> None:
        """Write there, in place.

        Args:
            images: [..., H, W]. content: the same, or what spreads to the rectangle.
        """
        images[..., self.top : self.bottom, self.left : self.right] = content


def crop_and_flip(images: Tensor, shifts: Tensor, flips: Tensor, padding: int) -> Tensor:
    """Each image's own window of the zero-padded batch, then mirrored where asked; one gather does both.

    Args:
        images: [B, C, H, W], any dtype.
        shifts: [B, 2] int64 in 0…2·padding: top row and left column of the window in the padded image.
        flips: [B] bool.
        padding: black pixels on each side.
    Returns:
        [B, C, H, W] of the same dtype.
    """
    batch, channels, height, width = images.shape
    if padding == 0:
        return torch.where(flips[:, None, None, None], images.flip(3), images)
    padded = functional.pad(images, (padding, padding, padding, padding))
    device = images.device
    column = torch.arange(width, device=device)
    columns = torch.where(flips[:, None], width - 1 - column, column) + shifts[:, 1:]
    rows = torch.arange(height, device=device) + shifts[:, :1]
    sample = torch.arange(batch, device=device)
    channel = torch.arange(channels, device=device)
    return padded[
        sample[:, None, None, None], channel[:, None, None], rows[:, None, :, None], columns[:, None, None, :]
    ]


def number_of_view(shifts: Tensor, flips: Tensor, augmentation: Augmentation) -> Tensor:
    """[B] int64 below `augmentation.views`; shifts and flips as in `crop_and_flip`."""
    number = shifts[:, 0] * (2 * augmentation.crop_padding + 1) + shifts[:, 1]
    return 2 * number + flips if augmentation.flip else number


def cut_out(images: Tensor, centres: Tensor, side: int, fill: Tensor) -> Tensor:
    """Each image with a square round its own centre filled.

    Args:
        images: [B, C, H, W].
        centres: [B, 2] int64, row and column. The square reaches from centre − side//2 on, `side` pixels.
        fill: [C].
    Returns:
        [B, C, H, W].
    """
    _, channels, height, width = images.shape
    start = centres - side // 2
    row = torch.arange(height, device=images.device) - start[:, :1]
    column = torch.arange(width, device=images.device) - start[:, 1:]
    inside = ((row >= 0) & (row < side))[:, None, :, None] & ((column >= 0) & (column < side))[:, None, None, :]
    return torch.where(inside, fill.view(1, channels, 1, 1), images)


def draw_erased(rng: Numbers, count: int, chance: float, size: tuple[int, int]) -> list[Rectangle | None]:
    """A rectangle for each image that is to lose one: 2 to 33 % of its area, 0.3 to 3.3 times as high as wide.

    As in torchvision's `RandomErasing`, an image for which ten draws give none that fits stays whole.
    """
    height, width = size
    chosen = (rng.random(count) < chance).tolist()
    areas = height * width * rng.uniform(*ERASED, (count, ERASING_TRIES))
    low, high = map(math.log, ERASED_ASPECT)
    aspects = np.exp(rng.uniform(low, high, (count, ERASING_TRIES)))
    highs, wides = np.rint(np.sqrt(areas * aspects)).astype(int), np.rint(np.sqrt(areas / aspects)).astype(int)
    places = rng.random((count, 2))
    drawn: list[Rectangle | None] = []
    for fits, tall, broad, place in zip((highs < height) & (wides < width), highs, wides, places, strict=True):
        if not chosen[len(drawn)] or not fits.any():
            drawn.append(None)
            continue
        first = int(fits.argmax())
        rows, columns = int(tall[first]), int(broad[first])
        top, left = int(place[0] * (height - rows + 1)), int(place[1] * (width - columns + 1))
        drawn.append(Rectangle(top, left, top + rows, left + columns))
    return drawn


def draw_cut(rng: np.random.Generator, alpha: float, size: tuple[int, int]) -> Rectangle:
    """CutMix's rectangle: (1 − λ) of the image's area round a centre anywhere in it, what lies outside cut off."""
    height, width = size
    half = 0.5 * math.sqrt(1 - rng.beta(alpha, alpha))
    row, column = int(rng.integers(height)), int(rng.integers(width))
    high, wide = int(half * height), int(half * width)
    return Rectangle(max(row - high, 0), max(column - wide, 0), min(row + high, height), min(column + wide, width))


def mix(images: Tensor, labels: Tensor, partners: Tensor, share: float, num_classes: int) -> tuple[Tensor, Tensor]:
    """Each image mixed with its partner, and the mixture of their labels.

    Args:
        images: [B, C, H, W]. labels: [B] int64.
        partners: [B] int64, a permutation of the batch.
        share: λ in [0, 1], what remains of the image itself.
    Returns:
        images [B, C, H, W]; targets [B, num_classes], rows sum to 1.
    """
    return share * images + (1 - share) * images[partners], _mix_labels(labels, partners, share, num_classes)


def cut_mix(
    images: Tensor, labels: Tensor, partners: Tensor, rectangle: Rectangle, num_classes: int
) -> tuple[Tensor, Tensor]:
    """Each image with a rectangle of its partner's, and their labels mixed by area.

    Args:
        images: [B, C, H, W] float. labels: [B] int64.
        partners: [B] int64, a permutation of the batch.
    Returns:
        images [B, C, H, W]; targets [B, num_classes], rows sum to 1.
    """
    top, left, bottom, right = rectangle
    share = 1 - (bottom - top) * (right - left) / (images.shape[-2] * images.shape[-1])
    mixed = images.clone()
    rectangle.fill(mixed, images[..., top:bottom, left:right][partners])
    return mixed, _mix_labels(labels, partners, share, num_classes)


def _mix_labels(labels: Tensor, partners: Tensor, share: float, num_classes: int) -> Tensor:
    """[B, num_classes] float32: `share` of the image's own class, the rest of its partner's."""
    # Not functional.one_hot, which reads the labels back to check their range.
    one_hot = (labels[:, None] == torch.arange(num_classes, device=labels.device)).to(torch.float32)
    return share * one_hot + (1 - share) * one_hot[partners]
