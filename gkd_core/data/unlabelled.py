"""Pictures without a class, beside the splits of a prepared folder: brought to size as all others, and kept out of what
is measured.
"""

import hashlib
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gkd_core.cores import pool_size
from gkd_core.data.arrays import new_array
from gkd_core.data.images import Unreadable, not_opened, read_image, read_whole
from gkd_core.data.left_out import count_left_out, refusal, unread, warnings_of, write_left_out
from gkd_core.data.photos import PhotoRecords
from gkd_core.data.prepared import (
    UNLABELLED_FOLDER,
    DatasetInfo,
    PreparedData,
    UnlabelledInfo,
    WholePictures,
    write_info,
)
from gkd_core.data.progress import progress
from gkd_core.data.sources.base import Examples, LeftOut, Source
from gkd_core.errors import GkdError

ROWS = 256  # that are read together
HELD_OUT = "also in the validation or test split"

log = logging.getLogger(__name__)


def refuse_inside(place: Path, root: Path | None, option: str = "data.unlabelled", among: str = "data.root") -> None:
    """See that a folder without classes lies in none of classes, where it would be one of them.

    Raises:
        GkdError: it does.
    """
    if root is not None and root.is_dir() and place.resolve().is_relative_to(root.resolve()):
        raise GkdError(
            f"{option} {place} lies in {among} {root}, where a folder of pictures is a class: move it out of there"
        )


def add_unlabelled(
    folder: Path, info: DatasetInfo, source: Source, *, unreadable: Literal["refuse", "drop"] = "refuse"
) -> DatasetInfo:
    """Write pictures without a class into a prepared folder, and what there is of them into its dataset.json.

    One whose pixels a validation or a test image has is left out: what is measured must not have been learnt.

    Args:
        folder: with its three splits.
        info: of these.
        source: the pictures, of the same size, in its split "train".
        unreadable: what happens where some cannot be decoded.
    Returns:
        `info` with them.
    Raises:
        GkdError: pictures cannot be read and `unreadable` is "refuse", or none is left.
    """
    examples = source.splits["train"]
    total = len(examples.labels)
    measured = _digests(PreparedData(folder, info))
    failed: dict[str, str] = {}
    held_out: list[str] = []
    (folder / UNLABELLED_FOLDER).mkdir()
    kept = _Squares(folder / UNLABELLED_FOLDER, info, total) if info.photos is None else _Whole(folder, info.photos)
    with progress("prepare unlabelled", total, unit="images") as advance:
        for name, picture in _read(examples, info, measured):
            advance(1)
            if isinstance(picture, Unreadable):
                failed[name] = str(picture)
                log.warning("cannot read %s: %s", name, picture)
            elif picture is None:
                held_out.append(name)
            else:
                kept.append(picture)
    if failed and unreadable == "refuse":
        raise refusal(failed, total, "data.unlabelled")
    if not len(kept):
        raise GkdError(
            f"no picture of data.unlabelled is left: {len(held_out)} are in the validation or test split too, "
            f"{len(failed)} cannot be read; add others, or leave data.unlabelled out"
        )
    kept.close()
    left_out = [*source.left_out, *(LeftOut(name, HELD_OUT) for name in held_out)]
    left_out += unread(failed)
    if left_out:
        write_left_out(folder / UNLABELLED_FOLDER, left_out)
    for sentence in warnings_of(source, "data.unlabelled"):
        log.warning("%s", sentence)
    found = UnlabelledInfo(
        count=len(kept),
        dropped=tuple(sorted(failed)),
        held_out=tuple(sorted(held_out)),
        left_out=count_left_out(source.left_out) or None,
    )
    info = info.model_copy(update={"unlabelled": found})
    info = info.model_copy(update={"sha256": PreparedData(folder, info).digest()})
    write_info(folder, info)
    return info


def _read(
    examples: Examples, info: DatasetInfo, measured: set[bytes]
) -> Iterator[tuple[str, NDArray[np.uint8] | Unreadable | None]]:
    """Each picture with its name, in their order, as a training wants it; None of one that is measured on."""
    open_file = examples.open
    assert open_file is not None
    square = partial(read_image, size=info.image_size, channels=info.channels, crop=info.crop or "center")
    whole = None
    if info.photos is not None:
        whole = partial(read_whole, shorter=info.photos.store_size, channels=info.channels)

    def attempt(position: int) -> NDArray[np.uint8] | Unreadable | None:
        try:
            with open_file(position) as stream:
                picture = square(stream)
                if _digest(picture) in measured:
                    return None
                stream.seek(0)
                return picture if whole is None else whole(stream)
        except OSError as error:
            return Unreadable(not_opened(error))
        except Unreadable as error:
            return error

    # Pillow decodes outside the interpreter lock. Some at a time, or all would be in memory at once.
    with ThreadPoolExecutor(pool_size()) as pool:
        for start in range(0, len(examples.labels), ROWS):
            names = examples.names[start : start + ROWS]
            yield from zip(names, pool.map(attempt, range(start, start + len(names))), strict=True)


class _Squares:
    """Writes images.npy, of which no more is kept than there are pictures."""

    def __init__(self, folder: Path, info: DatasetInfo, most: int) -> None:
        self._file, self._count = folder / "images.npy", 0
        self._images = new_array(self._file, np.uint8, (most, info.image_size, info.image_size, info.channels))

    def __len__(self) -> int:
        return self._count

    def append(self, picture: NDArray[np.uint8]) -> None:
        self._images[self._count] = picture
        self._count += 1

    def close(self) -> None:
        if self._count < len(self._images):
            file = self._file.with_name("shorter.npy")
            shorter = new_array(file, np.uint8, (self._count, *self._images.shape[1:]))
            for start in range(0, self._count, ROWS):
                shorter[start : start + ROWS] = self._images[start : min(start + ROWS, self._count)]
            self._images = shorter
            file.replace(self._file)
        self._images.flush()


class _Whole:
    """Writes whole pictures, as those of the training split are."""

    def __init__(self, folder: Path, photos: WholePictures) -> None:
        self._records = PhotoRecords(folder / UNLABELLED_FOLDER, photos.store)

    def __len__(self) -> int:
        return len(self._records)

    def append(self, picture: NDArray[np.uint8]) -> None:
        self._records.append([picture])

    def close(self) -> None:
        self._records.close()


def _digests(data: PreparedData) -> set[bytes]:
    """Of every image that something is measured on."""
    return {_digest(image) for split in (data.validation, data.test) for image in split.images}


def _digest(image: NDArray[np.uint8]) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(image).data).digest()
