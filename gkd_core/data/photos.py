"""Whole pictures of many sizes in one file: what a training on photos draws its windows from.

images.bin     uint8: one picture after another, each its rows [H, W, C] or, compressed, a JPEG
offsets.npy    int64 [N + 1]: where each begins, and where the last one ends
sizes.npy      int64 [N, 2]: height and width

Of a picture only the rows that a window needs are read, by their place in the file: what a process holds does not
grow with the set, and the operating system keeps of the file what there is memory for.
"""

import hashlib
import io
import os
import weakref
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gkd_core.cores import pool_size
from gkd_core.data.arrays import open_array
from gkd_core.data.images import Crop, fit
from gkd_core.errors import GkdError

Store = Literal["raw", "compressed"]
JPEG: dict[str, Any] = {
    "format": "JPEG",
    "quality": 95,
    "subsampling": 0,
}  # colour at full resolution: pictures are small already
WORKERS = pool_size()  # resizing and decoding let go of the interpreter


class Pictures(Protocol):
    """What windows are cut from.

    Attributes:
        sizes: int64 [N, 2], height and width of each picture.
    """

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Height and width of each picture."""

    def read(self, row: int, top: int = 0, height: int | None = None) -> NDArray[np.uint8]:
        """uint8 [height, W, C]: rows of pixels of one picture, all from `top` on where no height is given."""


class ArrayPictures:
    """An array of squares [N, S, S, C] as pictures."""

    def __init__(self, array: NDArray[np.uint8]) -> None:
        self._array = array
        self.sizes = np.full((len(array), 2), array.shape[1:3], dtype=np.int64)

    def read(self, row: int, top: int = 0, height: int | None = None) -> NDArray[np.uint8]:
        """See `Pictures.read`."""
        rows: NDArray[np.uint8] = self._array[row, top : None if height is None else top + height]
        return rows


def pictures(images: Any) -> Pictures:
    """What a `Split` calls its images, as pictures to cut windows from."""
    return images if hasattr(images, "read") else ArrayPictures(images)


class Photos:
    """The pictures of one split, of many sizes; indexed they give squares, made as a picture that is looked at is made.

    `photos[rows]` is uint8 [..., S, S, C] for whatever index an array [N, S, S, C] takes in its first axis, and
    `np.array(photos)` is all of them. A whole picture is `read`.

    Args:
        folder: of `PhotoWriter`.
        count, channels: how many pictures there must be, and of what.
        image_size: S.
        crop: how a square is made of a picture.
        store: what the records are.
    Attributes:
        sizes: int64 [N, 2], height and width.
        shape, nbytes: of the squares.
    Raises:
        ValueError: the files do not fit each other, or this count; the message names the file and says why.
    """

    dtype = np.dtype(np.uint8)

    def __init__(
        self, folder: Path, *, count: int, channels: int, image_size: int, crop: Crop = "center", store: Store = "raw"
    ) -> None:
        self._file, self._crop, self._compressed = folder / "images.bin", crop, store == "compressed"
        self.shape = (count, image_size, image_size, channels)
        self.nbytes = count * image_size * image_size * channels
        self._offsets = _numbers(folder / "offsets.npy", (count + 1,))
        self.sizes = _numbers(folder / "sizes.npy", (count, 2))
        lengths = np.diff(self._offsets)
        if self._offsets[0] != 0 or self._offsets.min() < 0 or lengths.min(initial=1) < 1:
            raise ValueError("offsets.npy: a picture is empty")
        if not 1 <= self.sizes.min(initial=1) <= self.sizes.max(initial=1) <= 1 << 20:
            raise ValueError("sizes.npy: a picture is empty, or too large")
        if not self._compressed and (lengths != self.sizes.prod(1) * channels).any():
            raise ValueError("sizes.npy: a picture is larger or smaller than its record")
        try:
            self._descriptor = os.open(self._file, os.O_RDONLY)
        except OSError as error:
            raise ValueError(f"images.bin: {error.strerror}") from None
        weakref.finalize(self, os.close, self._descriptor)
        if (size := os.fstat(self._descriptor).st_size) != self._offsets[-1]:
            raise ValueError(f"images.bin: it has {size} bytes, and its pictures are {self._offsets[-1]}")

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> NDArray[np.uint8]:
        rows = np.arange(len(self))[index]
        squares = np.empty((*rows.shape, *self.shape[1:]), np.uint8)
        flat = squares.reshape(-1, *self.shape[1:])

        def make(place: int, row: int) -> None:
            flat[place] = fit(self.read(row), self.shape[1], self.shape[3], self._crop)

        if rows.size == 1:
            make(0, int(rows.ravel()[0]))
        else:
            with ThreadPoolExecutor(WORKERS) as pool:
                list(pool.map(make, range(rows.size), rows.ravel().tolist()))
        return squares

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[np.uint8]:
        return self[:].astype(dtype) if dtype is not None else self[:]

    def read(self, row: int, top: int = 0, height: int | None = None) -> NDArray[np.uint8]:
        """See `Pictures.read`.

        Raises:
            GkdError: the file was changed since it was opened, or a record cannot be decoded.
        """
        full, width = (int(side) for side in self.sizes[row])
        height = full - top if height is None else height
        channels, start = self.shape[3], int(self._offsets[row])
        if self._compressed:
            return self._decoded(self._bytes(start, int(self._offsets[row + 1])), row)[top : top + height]
        line = width * channels
        content = self._bytes(start + top * line, start + (top + height) * line)
        return np.frombuffer(content, np.uint8).reshape(height, width, channels)

    def _bytes(self, start: int, stop: int) -> bytearray:
        content = bytearray(stop - start)
        if os.preadv(self._descriptor, [content], start) != len(content):
            raise self._damaged("it ends too early")
        return content

    def _decoded(self, content: bytearray, row: int) -> NDArray[np.uint8]:
        try:
            with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
                pixels = np.asarray(image)
        except Exception as error:  # Pillow's decoders raise what they like
            raise self._damaged(f"picture {row} cannot be decoded: {error}") from None
        wanted = (*self.sizes[row].tolist(), self.shape[3])
        if pixels.size != np.prod(wanted):
            raise self._damaged(f"picture {row} has {pixels.shape} values, not {wanted}")
        return pixels.reshape(wanted)

    def _damaged(self, reason: str) -> GkdError:
        return GkdError(f"{self._file} is damaged ({reason}): run `gkd prepare` again")


def _numbers(path: Path, shape: tuple[int, ...]) -> NDArray[np.int64]:
    try:
        array = np.array(open_array(path))
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from None
    if array.dtype != np.int64 or array.shape != shape:
        raise ValueError(f"{path.name}: it is {array.dtype} {list(array.shape)}, not int64 {list(shape)}")
    return array


class PhotoRecords:
    """Writes the three files, one picture after another.

    Args:
        folder: an existing folder.
        store: rows as they are, or a JPEG each.
    """

    def __init__(self, folder: Path, store: Store) -> None:
        self._folder, self._compressed = folder, store == "compressed"
        self._images = (folder / "images.bin").open("wb")
        weakref.finalize(self, self._images.close)
        self._hash = hashlib.sha256()
        self._offsets, self._sizes = [0], list[tuple[int, int]]()

    def __len__(self) -> int:
        return len(self._sizes)

    def append(self, images: Iterable[NDArray[np.uint8]]) -> None:
        """Write the next pictures, each uint8 [H, W, C]."""
        images = list(images)
        if self._compressed:
            with ThreadPoolExecutor(WORKERS) as pool:
                records = list(pool.map(_as_jpeg, images))
        else:
            records = [image.tobytes() for image in images]
        for image, record in zip(images, records, strict=True):
            self._images.write(record)
            self._hash.update(record)
            self._offsets.append(self._offsets[-1] + len(record))
            self._sizes.append(image.shape[:2])

    def close(self) -> str:
        """Write what says where each picture is; the hash of the pictures."""
        self._images.close()
        np.save(self._folder / "offsets.npy", np.array(self._offsets, dtype="<i8"))
        np.save(self._folder / "sizes.npy", np.array(self._sizes, dtype="<i8").reshape(-1, 2))
        return self._hash.hexdigest()


def _as_jpeg(image: NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(stream, **JPEG)
    return stream.getvalue()
