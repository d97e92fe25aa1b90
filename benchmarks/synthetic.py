"""Noise as prepared data: what a training costs does not depend on what it sees."""

from types import SimpleNamespace
from typing import cast

import numpy as np

from gkd_core.data.prepared import PreparedData, Split
from gkd_core.models.network import Network, NetworkSpec

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def synthetic_data(images: int, *, classes: int = 100, side: int = 32) -> PreparedData:
    """So many images to train on, the first 64 of them to validate on; crop and flip as for CIFAR."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (images, side, side, 3), dtype=np.uint8)
    train = Split(pixels, rng.integers(0, classes, images), MEAN)
    validation = Split(pixels[:64], train.labels[:64], MEAN)
    info = SimpleNamespace(
        classes=_names(classes),
        image_size=side,
        channels=3,
        photos=None,
        augment={"crop_padding": 4, "flip": True},
        unlabelled=None,
        sha256="synthetic",
    )
    return cast("PreparedData", SimpleNamespace(train=train, validation=validation, unlabelled=None, info=info))


def synthetic_network(name: str, *, classes: int = 100, side: int = 32) -> Network:
    """As it is initialised, for such data."""
    return Network(NetworkSpec(name, "auto", _names(classes), 3, side, MEAN, STD))


def _names(classes: int) -> tuple[str, ...]:
    return tuple(map(str, range(classes)))
