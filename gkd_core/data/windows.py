"""Random windows of whole pictures, each brought to one square: what training on photos sees.

The draw is that of torchvision's `RandomResizedCrop`, for a whole batch at once; the resize is bilinear with
antialiasing, torch's own on uint8, which works on several rows of pixels at once.
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from gkd_core.data.photos import WORKERS, Pictures
from gkd_core.data.views import Numbers

RATIO = (3 / 4, 4 / 3)
"""Width to height of a window, as everywhere since Szegedy et al. 2014 (arXiv:1409.4842)."""
TRIES = 10
STREAM = 3  # of random numbers, beside the order of the images and their other changes
AHEAD = 2  # batches in the making while the device works on another
AT_ONCE = 8  # pictures a thread takes together


def draw_windows(
    sizes: NDArray[np.int64],
    scale: tuple[float, float],
    rng: Numbers,
    ratio: tuple[float, float] = RATIO,
) -> NDArray[np.int64]:
    """A window of each picture, inside it.

    Its part of the picture's area is uniform in `scale`, the logarithm of its width to height uniform in `ratio`; of
    ten tries the first that fits is taken, and if none does, the largest window in the middle within `ratio`.

    Args:
        sizes: [N, 2], height and width.
    Returns:
        int64 [N, 4]: top, left, height, width.
    Source: torchvision's `RandomResizedCrop.get_params`.
    """
    count = len(sizes)
    height, width = sizes[:, :1], sizes[:, 1:]
    areas = height * width * rng.uniform(*scale, (count, TRIES))
    aspects = np.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1]), (count, TRIES)))
    places = rng.random((count, 2))
    heights = np.rint(np.sqrt(areas / aspects)).astype(np.int64)
    widths = np.rint(np.sqrt(areas * aspects)).astype(np.int64)
    fits = (heights > 0) & (heights <= height) & (widths > 0) & (widths <= width)
    first = fits.argmax(1)
    rows = np.arange(count)
    found = np.stack([heights[rows, first], widths[rows, first]], 1)
    corner = np.floor(places * (sizes - found + 1)).astype(np.int64)
    largest = np.concatenate([np.rint(width / ratio[0]), np.rint(height * ratio[1])], 1).astype(np.int64)
    largest = np.maximum(np.minimum(largest, sizes), 1)
    missed = ~fits.any(1)
    found[missed], corner[missed] = largest[missed], (sizes - largest)[missed] // 2
    return np.concatenate([corner, found], 1)


def cut(source: Pictures, row: int, window: Iterable[int], square: Tensor) -> None:
    """Write one window of a picture into `square`, uint8 [C, S, S]."""
    top, left, height, width = window
    pixels = source.read(row, top, height)[:, left : left + width]
    whole = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None]
    side = tuple(square.shape[1:])
    square.copy_(whole[0] if (height, width) == side else _resized(whole, side))


def _resized(image: Tensor, side: tuple[int, ...]) -> Tensor:
    return functional.interpolate(image, side, mode="bilinear", antialias=True)[0]


class Cutter:
    """Cuts batches of windows in threads, some batches ahead of who takes them.

    Args:
        source: the pictures.
        shape: (C, H, W) of what is made of each window.
        pin: the squares go to a device that reads pinned memory.
    """

    def __init__(self, source: Pictures, shape: tuple[int, int, int], *, pin: bool = False) -> None:
        self._source, self._shape, self._pin = source, shape, pin

    def batches(self, jobs: Iterable[tuple[NDArray[np.int64], NDArray[np.int64]]]) -> Iterator[Tensor]:
        """uint8 [B, C, S, S] for each (rows [B], windows [B, 4])."""
        waiting: deque[tuple[Tensor, list[Future[None]]]] = deque()
        pool = ThreadPoolExecutor(WORKERS)
        try:
            for rows, windows in jobs:
                squares = torch.empty((len(rows), *self._shape), dtype=torch.uint8, pin_memory=self._pin)
                starts = range(0, len(rows), AT_ONCE)
                waiting.append((squares, [pool.submit(self._cut, rows, windows, squares, s) for s in starts]))
                if len(waiting) > AHEAD:
                    yield _finished(*waiting.popleft())
            while waiting:
                yield _finished(*waiting.popleft())
        finally:  # whoever stops in the middle of an epoch waits for no picture more than those begun
            pool.shutdown(cancel_futures=True)

    def _cut(self, rows: NDArray[np.int64], windows: NDArray[np.int64], squares: Tensor, start: int) -> None:
        for place in range(start, min(start + AT_ONCE, len(rows))):
            cut(self._source, int(rows[place]), windows[place].tolist(), squares[place])


def _finished(squares: Tensor, parts: list[Future[None]]) -> Tensor:
    for part in parts:
        part.result()
    return squares
