"""Images without a label among those with one: how many a batch has of them, where they stand, which come next."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gkd_core.data.photos import pictures

UNLABELLED = -1
"""The label of an image that has none."""
STREAM = 2  # of random numbers, beside the order of the labelled images


def unlabelled_per_batch(batch_size: int, fraction: float) -> int:
    """How many join so many labelled images to be that part of the whole batch, at least one.

    >>> unlabelled_per_batch(64, 0.5), unlabelled_per_batch(64, 0.9)
    (64, 576)
    """
    return max(1, round(batch_size * fraction / (1 - fraction)))


@dataclass(frozen=True)
class Interleaved:
    """One epoch's images: all labelled ones once, the others spread evenly among them.

    So every batch has its share of both kinds, and so has any process's part of it. The labelled images stand in the
    batches that they would be in by themselves.

    Attributes:
        labelled: images with a label.
        pool: images without one.
        batch_size: labelled images a batch.
        extra: images without a label a batch.
    """

    labelled: int
    pool: int
    batch_size: int
    extra: int

    def rows(self, labelled: int | NDArray[np.int64]) -> int | NDArray[np.int64]:
        """How many images of both kinds come with the first so many labelled ones."""
        return labelled + labelled * self.extra // self.batch_size

    def has_label(self) -> NDArray[np.bool_]:
        """[rows], which of an epoch's images are labelled."""
        known = np.zeros(self.rows(self.labelled), dtype=bool)
        known[self.rows(np.arange(self.labelled))] = True
        return known

    def order(self, labelled: NDArray[np.int64], seed: int, epoch: int) -> NDArray[np.int64]:
        """An epoch's images [rows]: positions of labelled ones as they are given, of others from `self.labelled` on.

        The others are gone through again and again, each time in another order, wherever an epoch ends; what an epoch
        has of them follows from its number alone.
        """
        known = self.has_label()
        order = np.empty(len(known), dtype=np.int64)
        order[known] = labelled
        count = len(known) - self.labelled
        first = epoch * count
        rounds = range(first // self.pool, (first + count - 1) // self.pool + 1)
        walk = np.concatenate([np.random.default_rng([seed, n, STREAM]).permutation(self.pool) for n in rounds])
        start = first - rounds.start * self.pool
        order[~known] = self.labelled + walk[start : start + count]
        return order


class Joined:
    """The images of two splits, one after the other, read when they are asked for; also as pictures to cut windows of.

    Args:
        first, second: `Split.images`.
    """

    def __init__(self, first: NDArray[np.uint8], second: NDArray[np.uint8]) -> None:
        self._first, self._second = first, second
        self._pictures = pictures(first), pictures(second)
        self.shape = (len(first) + len(second), *first.shape[1:])
        self.nbytes = first.nbytes + second.nbytes

    def __len__(self) -> int:
        return len(self._first) + len(self._second)

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Images [len(rows), …] by position in both together."""
        of_second = rows >= len(self._first)
        images = np.empty((len(rows), *self.shape[1:]), np.uint8)
        images[~of_second] = self._first[rows[~of_second]]
        images[of_second] = self._second[rows[of_second] - len(self._first)]
        return images

    @property
    def sizes(self) -> NDArray[np.int64]:
        """See `gkd_core.data.photos.Pictures`."""
        return np.concatenate([each.sizes for each in self._pictures])

    def read(self, row: int, top: int = 0, height: int | None = None) -> NDArray[np.uint8]:
        """See `gkd_core.data.photos.Pictures`."""
        beyond = row - len(self._first)
        return self._pictures[0].read(row, top, height) if beyond < 0 else self._pictures[1].read(beyond, top, height)

    def __array__(self, dtype: None = None, copy: bool | None = None) -> NDArray[np.uint8]:
        return np.concatenate([np.asarray(self._first), np.asarray(self._second)])
