"""scikit-learn's handwritten digits: 1,797 real images of 8×8 pixels that ship with the package."""

import numpy as np
from sklearn.datasets import load_digits

from gkd_core.data.images import fit
from gkd_core.data.sources.base import Examples, Source


def digits(image_size: int | None, channels: int | None) -> Source:
    """The digits as uint8, their 0…16 scaled by 255/16 and rounded; one split, classes "0" to "9".

    Args:
        image_size: side in pixels; null keeps 8.
        channels: 1 or 3; null keeps 1.
    """
    size, depth = image_size or 8, channels or 1
    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    examples = Examples(bunch.target.astype(np.int64), lambda i: fit(images[i], size, depth))
    return Source("digits", tuple("0123456789"), size, depth, {"train": examples}, flip=False)
