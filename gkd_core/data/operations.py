"""Changes of single images by torchvision's kernels: colour jitter, TrivialAugment and RandAugment.

Chance decides on the host, about a whole batch at once, so nothing waits for the device and nothing touches torch's
global generator. Kernels are applied image by image: an image stays in the cache that way (docs/photos.md has the
numbers), and its bits do not depend on which others a process has beside it.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from torch import Tensor

from gkd_core.config.checks import TRIVIAL_SHIFT
from gkd_core.data.views import Numbers

AutoName = Literal["none", "trivial", "rand"]
BINS = 31  # magnitudes to choose from, of both TrivialAugment and RandAugment


class Operation(NamedTuple):
    """One change of one image.

    Attributes:
        name: of torchvision's tables of automatic augmentation, or `Hue`.
        magnitude: as there; of `Hue` a part of the colour circle; 0 where there is none.
    """

    name: str
    magnitude: float = 0.0


def draw_jitter(rng: Numbers, count: int, strength: float, hue: float) -> list[list[Operation]]:
    """Brightness, contrast and saturation by factors in 1 ± strength, and a shift of the hue, in any order.

    Args:
        count: images.
        strength: in [0, 1]. hue: in [0, 0.5].
    Source: torchvision's `ColorJitter`; one strength for three as timm's `--color-jitter`.
    """
    names, limits = ("Brightness", "Contrast", "Color", "Hue"), (strength, strength, strength, hue)
    orders = rng.random((count, 4)).argsort(1).tolist()
    magnitudes = (rng.uniform(-1, 1, (count, 4)) * limits).tolist()
    return [
        [Operation(names[i], row[i]) for i in order if limits[i]] for order, row in zip(orders, magnitudes, strict=True)
    ]


def draw_auto(
    rng: Numbers, count: int, auto: AutoName, size: tuple[int, int], operations: int, magnitude: int
) -> list[list[Operation]]:
    """TrivialAugment: one operation an image, of any magnitude. RandAugment: several, all of one magnitude.

    Args:
        count: images.
        size: their height and width.
        operations, magnitude: RandAugment's, the magnitude as one of 0…30.
    Source: Müller & Hutter 2021 (arXiv:2103.10158); Cubuk et al. 2020 (arXiv:1909.13719); ranges as torchvision's.
    """
    space = _space(auto, *size)
    several = operations if auto == "rand" else 1
    chosen = rng.integers(len(space), size=(count, several)).tolist()
    bins = rng.integers(BINS, size=(count, several)).tolist()
    negative = (rng.random((count, several)) < 0.5).tolist()
    drawn: list[list[Operation]] = []
    for image in range(count):
        changes = []
        for turn in range(several):
            name, magnitudes, signed = space[chosen[image][turn]]
            place = magnitude if auto == "rand" else bins[image][turn]
            value = magnitudes[place] * (-1 if signed and negative[image][turn] else 1)
            if name != "Identity":
                changes.append(Operation(name, value))
        drawn.append(changes)
    return drawn


def apply(image: Tensor, operations: Sequence[Operation]) -> Tensor:
    """One image, changed by one operation after another; pixels from outside of it are black.

    Args:
        image: [C, H, W] with 1 or 3 channels, uint8, or float in [0, 1].
    Returns:
        [C, H, W] of the same dtype.
    """
    kernels = _kernels()
    for name, magnitude in operations:
        image = kernels[name](image, magnitude)
    return image


@functools.cache
def _space(auto: AutoName, height: int, width: int) -> list[tuple[str, list[float], bool]]:
    """(name, magnitude by bin, whether it may be negative) of every operation."""
    trivial = auto == "trivial"
    shear, rotation, blend, bits = (0.99, 135.0, 0.99, 6) if trivial else (0.3, 30.0, 0.9, 4)
    across, down = (TRIVIAL_SHIFT, TRIVIAL_SHIFT) if trivial else (150 / 331 * width, 150 / 331 * height)
    signed = {
        "ShearX": shear, "ShearY": shear, "TranslateX": across, "TranslateY": down, "Rotate": rotation,
        "Brightness": blend, "Color": blend, "Contrast": blend, "Sharpness": blend,
    }  # fmt: skip
    none = np.zeros(BINS)
    unsigned = {
        "Posterize": 8 - np.round(np.arange(BINS) / ((BINS - 1) / bits)),
        "Solarize": np.linspace(1, 0, BINS),
        "Identity": none,
        "AutoContrast": none,
        "Equalize": none,
    }
    return [
        *((name, np.linspace(0, largest, BINS).tolist(), True) for name, largest in signed.items()),
        *((name, magnitudes.tolist(), False) for name, magnitudes in unsigned.items()),
    ]


@functools.cache
def _kernels() -> dict[str, Callable[[Tensor, float], Tensor]]:
    """By name; torchvision is imported where a training asks for them."""
    from torchvision.transforms.v2 import InterpolationMode, functional

    kernel: Any = functional  # without types
    way = InterpolationMode.BILINEAR  # as torchvision's reference training has it

    def shift(image: Tensor, across: float, down: float) -> Tensor:
        moved: Tensor = kernel.affine(image, 0.0, [int(across), int(down)], 1.0, [0.0, 0.0], interpolation=way)
        return moved

    def shear(image: Tensor, across: float, down: float) -> Tensor:
        degrees = [math.degrees(math.atan(across)), math.degrees(math.atan(down))]
        sheared: Tensor = kernel.affine(image, 0.0, [0, 0], 1.0, degrees, interpolation=way, center=[0, 0])
        return sheared

    return {
        "ShearX": lambda image, magnitude: shear(image, magnitude, 0.0),
        "ShearY": lambda image, magnitude: shear(image, 0.0, magnitude),
        "TranslateX": lambda image, magnitude: shift(image, magnitude, 0.0),
        "TranslateY": lambda image, magnitude: shift(image, 0.0, magnitude),
        "Rotate": lambda image, magnitude: kernel.rotate(image, magnitude, interpolation=way),
        "Brightness": lambda image, magnitude: kernel.adjust_brightness(image, 1.0 + magnitude),
        "Color": lambda image, magnitude: kernel.adjust_saturation(image, 1.0 + magnitude),
        "Contrast": lambda image, magnitude: kernel.adjust_contrast(image, 1.0 + magnitude),
        "Sharpness": lambda image, magnitude: kernel.adjust_sharpness(image, 1.0 + magnitude),
        "Posterize": lambda image, magnitude: kernel.posterize(image, int(magnitude)),
        "Solarize": lambda image, magnitude: kernel.solarize(
            image, magnitude if image.is_floating_point() else 255.0 * magnitude
        ),
        "AutoContrast": lambda image, _: kernel.autocontrast(image),
        "Equalize": lambda image, _: kernel.equalize(image),
        "Hue": lambda image, magnitude: kernel.adjust_hue(image, magnitude),
    }
