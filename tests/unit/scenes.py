"""A folder of photos made here: of many shapes, smooth as photos are, no picture like another."""

from pathlib import Path

import numpy as np
from PIL import Image

SIZES = ((300, 200), (180, 240), (90, 500), (50, 40), (110, 110), (240, 97))
"""Width and height of the pictures of one class: wide, tall, a strip, smaller than wanted."""
CLASSES = ("ant", "bee", "cow")


def scene(width: int, height: int, seed: int) -> Image.Image:
    """Something smooth: JPEG and resampling change it little."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def write_scenes(root: Path) -> Path:
    """train/, val/ and test/ of three classes, a picture of each of `SIZES` in every one."""
    seed = 0
    for split in ("train", "val", "test"):
        for name in CLASSES:
            (root / split / name).mkdir(parents=True)
            for number, (width, height) in enumerate(SIZES):
                scene(width, height, seed).save(root / split / name / f"{number}.png")
                seed += 1
    return root
