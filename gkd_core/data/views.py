"""A fixed number of views of every image: what is random about view k of image i is a function of (seed, i, k) alone.

So a view has the same pixels in every epoch and every batch, whatever the augmentation is, and a teacher's answer to it
can be kept.
"""

import numpy as np
from numpy.typing import NDArray

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # SplitMix64's
MIX = (
    (np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)),
    (np.uint64(27), np.uint64(0x94D049BB133111EB)),
    (np.uint64(31), np.uint64(1)),
)
Shape = int | tuple[int, ...]


class RowNumbers:
    """Random numbers for a batch, every row's out of a stream of its own: the first axis of each shape is the batch.

    It has the names and arguments of numpy's Generator, as far as augmentation asks. The streams are SplitMix64
    (Steele et al. 2014), each begun at a hash of what it is for.

    Args:
        seed: of the training.
        images: [B], positions of the batch's images in the split.
        view: k.
        purpose: a number; streams of several purposes differ.

    Example:
        >>> whole, part = (RowNumbers(0, np.array(rows), view=3) for rows in ([5, 6, 7], [7]))
        >>> bool((whole.random((3, 2))[2:] == part.random((1, 2))).all())
        True
    """

    def __init__(self, seed: int, images: NDArray[np.int64], view: int, purpose: int = 0) -> None:
        state = np.zeros(len(images), np.uint64)
        for part in (seed, view, purpose, images):
            state = _mixed(state + GOLDEN + np.asarray(part, np.uint64))
        self._state = state

    def random(self, shape: Shape) -> NDArray[np.float64]:
        """Uniform in [0, 1)."""
        rows, *rest = (shape,) if isinstance(shape, int) else shape
        assert rows == len(self._state), "the first axis is the batch"
        count = int(np.prod(rest, dtype=np.int64))
        steps = np.arange(1, count + 1, dtype=np.uint64) * GOLDEN
        drawn = _mixed(self._state[:, None] + steps)
        self._state = self._state + np.uint64(count) * np.full(1, GOLDEN)
        numbers: NDArray[np.float64] = (drawn >> np.uint64(11)).astype(np.float64) * 2.0**-53
        return numbers.reshape(rows, *rest)

    def uniform(self, low: float, high: float, shape: Shape) -> NDArray[np.float64]:
        """Uniform in [low, high)."""
        return low + (high - low) * self.random(shape)

    def integers(self, high: int, *, size: Shape) -> NDArray[np.int64]:
        """Whole numbers from 0 to below `high`, which is small beside 2^53."""
        return np.floor(self.random(size) * high).astype(np.int64)


Numbers = np.random.Generator | RowNumbers
"""What augmentation draws from."""


def _mixed(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's hash of every number."""
    for shift, factor in MIX:
        state = (state ^ (state >> shift)) * factor
    return state
