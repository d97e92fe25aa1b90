"""Pictures that are the same to the eye: perceptual hashes, and which of them are near each other.

A hash is imagehash's `phash` of 16 × 16 frequencies, 256 bits. Of the 281,000 pairs among 750 photos of flowers one is
the same photo twice (6 bits apart); no other is nearer than 88. Saved again as a JPEG of quality 15, scaled to a
quarter, made grey, squashed to a square, brightened by a fifth: at most 24 bits. Cut by 2 % on each side: 32 in the
median, by 5 %: 78. So `NEAR` holds copies, and leaves out what only resembles.

A hash keeps the signs of frequencies and not their sizes, so that smooth pictures with one strong frequency each are
near by their noise. What is near must also look alike: grey copies of 16 × 16 pixels correlate.
"""

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

SIDE = 64  # of what is hashed, in pixels
BITS = 256
NEAR = 32  # bits of `BITS` in which two copies of a picture may differ
ALIKE = 0.8  # correlation of `small_grey` above which two near pictures are copies; flowers' own copies: .89 and more
BLOCK = 512  # hashes compared with all others at a time


def perceptual_hash(pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """The hash, [BITS], of a picture that was squashed to uint8 [SIDE, SIDE, 3]."""
    bits: NDArray[np.bool_] = imagehash.phash(Image.fromarray(pixels), hash_size=16).hash.reshape(-1)
    return bits


def small_grey(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Grey values uint8 [16, 16] of a picture that was squashed to uint8 [SIDE, SIDE, 3]."""
    return np.asarray(Image.fromarray(pixels).convert("L").resize((16, 16), Image.Resampling.BOX))


def near_pairs(hashes: NDArray[np.bool_], most: int = NEAR) -> NDArray[np.int64]:
    """Which hashes are at most `most` bits apart.

    Takes N²/2 products of 256 numbers: 10,000 pictures one second on one core, 100,000 two minutes.

    Args:
        hashes: [N, BITS].
    Returns:
        [P, 2] pairs of rows, the first below the second. Of rows with equal hashes each is paired with the first alone,
        and the first with what is near.
    """
    if not len(hashes):
        return np.empty((0, 2), dtype=np.int64)
    distinct, first, inverse = np.unique(np.packbits(hashes, axis=1), axis=0, return_index=True, return_inverse=True)
    # As ±1 the product of two hashes is BITS − 2 · distance, and products of matrices are what a processor does best.
    signs = np.where(np.unpackbits(distinct, axis=1), 1, -1).astype(np.float32)
    found = [np.stack([first[inverse.reshape(-1)], np.arange(len(hashes))], axis=1)]
    for start in range(0, len(signs), BLOCK):
        rows, columns = np.nonzero(signs[start : start + BLOCK] @ signs[start:].T >= BITS - 2 * most)
        found.append(np.stack([first[rows + start], first[columns + start]], axis=1))
    pairs = np.sort(np.concatenate(found), axis=1)
    return np.unique(pairs[pairs[:, 0] < pairs[:, 1]], axis=0)


def alike(pairs: NDArray[np.int64], small: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Those of the pairs [P, 2] whose pictures correlate, by `small` [N, 16, 16] of all."""
    first, second = (small[pairs[:, side]].reshape(len(pairs), 256).astype(np.float64) for side in (0, 1))
    first, second = first - first.mean(1, keepdims=True), second - second.mean(1, keepdims=True)
    norms = np.sqrt((first**2).sum(1) * (second**2).sum(1))
    chosen: NDArray[np.int64] = pairs[(first * second).sum(1) >= ALIKE * norms]
    return chosen


def groups_of(count: int, pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """A number for each of `count` pictures, the same for those that a chain of pairs [P, 2] joins."""
    joined = coo_array((np.ones(len(pairs), dtype=np.int8), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    groups: NDArray[np.int64] = connected_components(joined, directed=False)[1].astype(np.int64)
    return groups
