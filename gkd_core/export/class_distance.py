"""How far the features of an image are from those of the classes: the score `feature_distance` of a decision."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.covariance import ledoit_wolf_shrinkage

DIRECTIONS = 64  # along which features vary most, and vary by themselves; along all others alike
SMALLEST = 1e-6  # of a variance, as a part of the largest: features that never change (a dead ReLU) have none
SHORTEST = 1e-6  # features of a shorter length, all of them zero, are left as they are


@dataclass(frozen=True)
class ClassDistance:
    """The squared Mahalanobis distance to the nearest class mean, by one covariance for all classes.

    Features are brought to length 1 before: else a picture that excites few of them, such as noise, is near everything.
    The covariance is that of the features around the mean of their class, shrunk after Ledoit and Wolf; of its
    eigenvalues the `DIRECTIONS` largest are kept, and all others are their mean, so that a file grows by D · 64 numbers
    and not by D². With D ≤ 64 features nothing is left out.

    Attributes:
        centre: [D] mean of all features.
        directions: [D, K] orthonormal.
        widths: [K] 1/√eigenvalue.
        rest: 1/√ of what the other directions vary, 0 where there are none.
        means: [C, K + D], or [C, K] where K is D: the classes' means in the coordinates of `coordinates`.
    Source: Lee et al. 2018 (arXiv:1807.03888), eq. 2; length: Mueller & Hein 2025 (arXiv:2505.18032); shrinkage: Ledoit
    & Wolf 2004, J. Multivariate Analysis 88:365.
    """

    centre: NDArray[np.float32]
    directions: NDArray[np.float32]
    widths: NDArray[np.float32]
    rest: float
    means: NDArray[np.float32]

    @staticmethod
    def fit(
        features: NDArray[np.floating], labels: NDArray[np.integer], directions: int = DIRECTIONS
    ) -> "ClassDistance":
        """From the features [N, D] of training images and their labels [N]; a class without any has no mean."""
        features = _of_length_one(features.astype(np.float64))
        centre = features.mean(axis=0)
        features = features - centre
        there = np.unique(labels)
        means = np.stack([features[labels == label].mean(axis=0) for label in there])
        around = features - means[np.searchsorted(there, labels)]
        shrinkage = float(ledoit_wolf_shrinkage(around, assume_centered=True))
        size = features.shape[1]
        _, singular, axes = np.linalg.svd(around / np.sqrt(len(around)), full_matrices=False)
        variances = np.zeros(size)
        variances[: len(singular)] = singular**2
        total = variances.sum()
        variances = (1 - shrinkage) * variances + shrinkage * total / size
        variances = np.maximum(variances, max(SMALLEST * variances[0], np.finfo(np.float32).tiny))
        kept = min(directions, len(singular))
        if size <= directions and kept < size:  # fewer images than features: the directions nobody went
            kept = size
            axes = np.linalg.svd(around, full_matrices=True)[2]
        found = ClassDistance(
            centre.astype(np.float32),
            np.ascontiguousarray(axes[:kept].T, np.float32),
            (1 / np.sqrt(variances[:kept])).astype(np.float32),
            0.0 if kept == size else float(1 / np.sqrt(variances[kept:].mean())),
            np.zeros((0, 0), np.float32),
        )
        return ClassDistance(
            found.centre, found.directions, found.widths, found.rest, found._coordinates(means + centre)
        )

    def coordinates(self, features: NDArray[np.floating]) -> NDArray[np.float32]:
        """[N, D] → [N, K + D], whose Euclidean distances are the Mahalanobis distances of the features."""
        return self._coordinates(_of_length_one(features))

    def _coordinates(self, features: NDArray[np.floating]) -> NDArray[np.float32]:
        centred = features - self.centre
        along = centred @ self.directions
        if self.rest == 0.0:
            return (along * self.widths).astype(np.float32)
        beside = centred - along @ self.directions.T
        return np.concatenate([along * self.widths, beside * self.rest], axis=1).astype(np.float32)

    def scores(self, features: NDArray[np.floating]) -> NDArray[np.float32]:
        """Minus the squared distance [N] of features [N, D] to the nearest class; as the graph computes it."""
        own = self.coordinates(features)
        squared = (own**2).sum(1, keepdims=True) - 2 * own @ self.means.T + (self.means**2).sum(1)
        found: NDArray[np.float32] = -squared.min(axis=1)
        return found


def _of_length_one(features: NDArray[np.floating]) -> NDArray[np.floating]:
    lengths = np.maximum(np.linalg.norm(features, axis=1, keepdims=True), SHORTEST)
    found: NDArray[np.floating] = features / lengths
    return found
