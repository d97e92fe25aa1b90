"""A small task for losses and loops: images of 8 × 8 pixels with a noisy stripe, its place is the class."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import torch

from gkd_core.data.prepared import Split
from gkd_core.models.network import Network, NetworkSpec

CLASSES = ("a", "b", "c", "d")


def stripes(count: int, seed: int) -> Split:
    """That many images, the classes mixed."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, count)
    images = rng.integers(0, 80, (count, 8, 8, 1))
    for i, label in enumerate(labels):
        images[i, label * 2 : label * 2 + 2] += 150
    return Split(images.astype(np.uint8), labels, (0.2,))


def network(name: str, seed: int, classes: tuple[str, ...] = CLASSES) -> Network:
    """An untrained network for them."""
    torch.manual_seed(seed)
    return Network(NetworkSpec(name, "auto", classes, 1, 8, (0.2,), (0.3,)))


def stripes_data(count: int, validation: int = 16, unlabelled: int = 0) -> SimpleNamespace:
    """Prepared data of them, as far as the trainer looks."""
    more = None
    if unlabelled:
        more = replace(stripes(unlabelled, 3), labels=np.full(unlabelled, -1))
    info = SimpleNamespace(
        classes=CLASSES,
        image_size=8,
        channels=1,
        photos=None,
        augment={"crop_padding": 1, "flip": False},
        unlabelled=more and len(more),
    )
    return SimpleNamespace(train=stripes(count, 1), validation=stripes(validation, 2), unlabelled=more, info=info)
