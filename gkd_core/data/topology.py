"""Persistence features of images: what is connected and what is enclosed in them, for the topological teacher.

Computed once, in the prepare step, of the images as prepared: a training looks up the row of the sample's index, so
the features are those of the unaugmented image whatever crop or mirror the network sees.

The Gompertz paper joins persistent homology with convolution in its teacher and does not say how the diagrams become
numbers: everything here is a reconstruction. Assumed are both filtrations of the intensity, dimensions 0 and 1, and
persistence images of 8 × 8 pixels with linear weights. Source of these: Adams et al. 2017, "Persistence images"
(arXiv:1507.06217); diagrams and vectorisation are GUDHI's.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gkd_core.data.arrays import new_array
from gkd_core.data.progress import progress
from gkd_core.data.sources.base import SplitName
from gkd_core.errors import GkdError
from gkd_core.files import file_digest

FILTRATIONS = ("sublevel", "superlevel")  # dark things on bright ground, bright things on dark ground
DIMENSIONS = (0, 1)  # components, cycles
SIDE = 8
BANDWIDTH = 0.1  # of the Gaussians, in units of intensity; the pixels lie 1/7 apart
FEATURES = len(FILTRATIONS) * len(DIMENSIONS) * SIDE**2
ROWS_AT_ONCE = 256


def require_gudhi() -> SimpleNamespace:
    """GUDHI's `CubicalPersistence` and `PersistenceImage`.

    Raises:
        GkdError: it is not installed.
    """
    try:
        from gudhi.representations import PersistenceImage
        from gudhi.sklearn.cubical_persistence import CubicalPersistence
    except ImportError as error:
        raise GkdError(
            f"data.topology needs GUDHI, which cannot be imported ({error}): install gkd[topology], or set "
            "data.topology to false"
        ) from None
    return SimpleNamespace(CubicalPersistence=CubicalPersistence, PersistenceImage=PersistenceImage)


def intensities(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """uint8 [N, H, W, C] → [N, H, W] in [0, 1]; colours by their luma, as Pillow weighs them."""
    grey = (
        images[..., 0]
        if images.shape[3] == 1
        else np.stack([np.asarray(Image.fromarray(i).convert("L")) for i in images])
    )
    return grey / 255.0


def persistence_diagrams(intensity: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """The diagrams of one image's cubical complex, pixels as its squares, so that diagonal neighbours touch.

    Args:
        intensity: [H, W] in [0, 1].
    Returns:
        One [K, 2] array of births and deaths for each filtration and dimension, in the order of `FILTRATIONS`, then
        `DIMENSIONS`. Births and deaths are intensities for sublevel sets and 1 − intensity for superlevel sets; what
        never dies lives until 1.
    """
    complexes = require_gudhi().CubicalPersistence(homology_dimensions=list(DIMENSIONS))
    found = complexes.fit_transform([intensity, 1.0 - intensity])
    return [np.minimum(diagram, 1.0) for diagrams in found for diagram in diagrams]


def vectorise(diagrams: Sequence[NDArray[np.float64]]) -> NDArray[np.float32]:
    """Persistence images of the diagrams, one after another: float32 [len(diagrams) · SIDE²].

    Pixel (p, b) of an image is the sum over its diagram's points of persistence · Gaussian(birth − b/7,
    persistence − p/7).
    """
    image = require_gudhi().PersistenceImage(
        bandwidth=BANDWIDTH, weight=_persistence, resolution=[SIDE, SIDE], im_range=[0.0, 1.0, 0.0, 1.0]
    )
    vector: NDArray[np.float32] = image.fit_transform(list(diagrams)).astype(np.float32).ravel()
    return vector


def topology_features(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """uint8 [N, H, W, C] → float32 [N, FEATURES], each row a function of its image alone."""
    return np.stack([vectorise(persistence_diagrams(intensity)) for intensity in intensities(images)])


def write_topology(folder: Path, images: Mapping[SplitName, NDArray[np.uint8]]) -> dict[SplitName, str]:
    """Write each split's `topology.npy` into a prepared folder.

    Args:
        images: of every split, uint8 [N, H, W, C].
    Returns:
        Their sha256 by split, for dataset.json.
    Raises:
        GkdError: GUDHI is not installed.
    """
    with progress("persistence diagrams", sum(map(len, images.values())), unit="images") as advance:
        for split, pixels in images.items():
            features = new_array(folder / split / "topology.npy", np.float32, (len(pixels), FEATURES))
            for start in range(0, len(pixels), ROWS_AT_ONCE):
                rows = np.array(pixels[start : start + ROWS_AT_ONCE])
                features[start : start + len(rows)] = topology_features(rows)
                advance(len(rows))
            features.flush()
    return {split: file_digest(folder / split / "topology.npy") for split in images}


def _persistence(point: NDArray[np.float64]) -> float:
    """The weight of a point (birth, persistence): what hardly lives hardly counts, which makes the image stable."""
    return float(point[1])
