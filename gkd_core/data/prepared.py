"""The prepared format: one folder of memory-mapped arrays, so that a set larger than memory trains all the same.

dataset.json                                   `DatasetInfo`
train/images.npy, validation/…, test/…         uint8 [N, S, S, C]
train/labels.npy, …                            int64 [N]
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from typing_extensions import TypedDict  # pydantic wants this one below Python 3.12

from gkd_core.data.arrays import open_array
from gkd_core.data.sources.base import SPLITS, SplitName
from gkd_core.data.topology import FEATURES
from gkd_core.errors import GkdError
from gkd_core.files import expect_kind, file_digest, json_digest, read_json, write_json

HEADER_BYTES = 128  # of a .npy file; numpy pads it to a multiple of 64, and ours are never longer


class AugmentDefaults(TypedDict):
    """The source's own augmentation: largest shift in pixels, and whether to mirror."""

    crop_padding: Annotated[int, Field(ge=0, le=1 << 16)]
    flip: bool


class DatasetInfo(BaseModel):
    """All that `dataset.json` holds. Nothing in it depends on where the data came from on this machine.

    Attributes:
        format: version of this layout.
        source: as in `data.source`.
        classes: class names; a label is a position in it.
        image_size: side of the square images in pixels.
        channels: 1 or 3.
        mean, std: per channel over the train split, for pixels in [0, 1]; the std of a constant channel is given as 1.
        counts: images by split.
        sha256: of classes, shapes and the arrays of the three splits.
        augment: default augmentation of the source.
        dropped: files left out because they could not be read, relative to the data's root.
        preparation: how images were brought to size.
        topology: sha256 of the persistence features by split, where there are any; they follow from the images.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    format: Literal[1] = 1
    source: str
    classes: Annotated[tuple[str, ...], Field(min_length=1)]
    image_size: Annotated[int, Field(ge=1, le=1 << 16)]
    channels: Literal[1, 3]
    mean: tuple[float, ...]
    std: tuple[Annotated[float, Field(gt=0)], ...]
    counts: dict[SplitName, Annotated[int, Field(ge=0, le=1 << 40)]]
    sha256: str
    augment: AugmentDefaults
    dropped: tuple[str, ...] = ()
    preparation: str
    topology: dict[SplitName, str] | None = None


@dataclass(frozen=True, eq=False)
class Split:
    """Images and labels of one split.

    Attributes:
        images: uint8 [N, H, W, C], memory-mapped when it comes from a prepared folder.
        labels: int64 [N].
        mean: per channel of the train split, for pixels in [0, 1]; what cutout fills with.
        topology: float32 [N, F], persistence features of each image, memory-mapped; None where they were not prepared.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    mean: tuple[float, ...] = ()
    topology: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.labels)


class PreparedData:
    """A prepared folder, opened for reading. A split is opened when it is first asked for, not before."""

    def __init__(self, folder: Path, info: DatasetInfo) -> None:
        self.folder = folder
        self.info = info

    @classmethod
    def open(cls, folder: Path, *, check: bool = True) -> "PreparedData":
        """Read dataset.json and see that the arrays are, byte by byte, those it speaks of.

        Args:
            check: `check` every byte (CIFAR's 180 MB: under a second); else damage is noticed as a split is opened.
        Raises:
            GkdError: there is no prepared data here, or it is damaged: one changed pixel is enough.
        """
        expect_kind(folder, "data")
        content = read_json(folder / "dataset.json", "the data folder")
        try:
            info = DatasetInfo.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "the whole"
            raise _damaged(folder / "dataset.json", f"{place}: {first['msg']}") from None
        if set(info.counts) != set(SPLITS) or len(info.mean) != info.channels or len(info.std) != info.channels:
            raise _damaged(folder / "dataset.json", "counts or statistics are incomplete")
        data = cls(folder, info)
        if check:
            data.check()
        return data

    def check(self) -> None:
        """Compare every byte on disk with what was written. Reads everything, as a stream that nobody looks at.

        Raises:
            GkdError: an array is missing, of another shape, or an image, a label or a row of features is another.
        """
        for name in SPLITS:
            self._open_split(name)
        if self.digest() != self.info.sha256:
            raise _damaged(self.folder, "an image or a label is not the one dataset.json was written for")
        for name in SPLITS:
            path, written = self.folder / name / "topology.npy", (self.info.topology or {}).get(name)
            if (file_digest(path) if path.is_file() else None) != written:
                raise _damaged(path, "it is not the one dataset.json was written for")

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; a label is a position in it."""
        return self.info.classes

    @cached_property
    def train(self) -> Split:
        """The images trained on."""
        return self.split("train")

    @cached_property
    def validation(self) -> Split:
        """The images decisions are made on."""
        return self.split("validation")

    @cached_property
    def test(self) -> Split:
        """The images looked at once, at the end."""
        return self.split("test")

    def split(self, name: SplitName) -> Split:
        """Open one split.

        Raises:
            GkdError: an array is not of the shape or type dataset.json says, or a label is none of the classes.
        """
        return self._open_split(name)

    def _open_split(self, name: SplitName) -> Split:
        """`split`, which the tests watch: nobody but evaluate may ask for the test images, and `check` looks at all."""
        size, count = self.info.image_size, self.info.counts[name]
        images = _open_array(self.folder / name / "images.npy", np.uint8, (count, size, size, self.info.channels))
        labels = np.array(_open_array(self.folder / name / "labels.npy", np.int64, (count,)))
        if count and not 0 <= labels.min() <= labels.max() < len(self.info.classes):
            raise _damaged(self.folder / name / "labels.npy", "it has labels beyond the classes")
        features = self.folder / name / "topology.npy"
        topology = _open_array(features, np.float32, (count, FEATURES)) if features.is_file() else None
        return Split(images, labels, self.info.mean, topology)

    def digest(self) -> str:
        """sha256 of what is on disk now; equal to `info.sha256` unless a byte changed. Reads everything."""
        hashes: dict[SplitName, dict[str, str]] = {
            name: {what: _payload_hash(self.folder / name / f"{what}.npy") for what in ("images", "labels")}
            for name in SPLITS
        }
        return content_digest(self.info.classes, self.info.image_size, self.info.channels, hashes)


class SplitWriter:
    """Writes a split row by row into a memory map, counting statistics and the digest on the way.

    Args:
        folder: an existing folder; `images.npy` and `labels.npy` are made in it.
        labels: [N] int64.
        image_size, channels: of the images to come.
    """

    def __init__(self, folder: Path, labels: NDArray[np.int64], image_size: int, channels: int) -> None:
        self._labels_file = folder / "labels.npy"
        np.save(self._labels_file, labels.astype("<i8", copy=False))
        self._images = np.lib.format.open_memmap(
            folder / "images.npy", mode="w+", dtype=np.uint8, shape=(len(labels), image_size, image_size, channels)
        )
        self._hash = hashlib.sha256()
        self._row = 0
        # Whole numbers: exact, so the statistics do not depend on how the rows were grouped.
        self._sum = np.zeros(channels, dtype=np.int64)
        self._squares = np.zeros(channels, dtype=np.int64)

    def append(self, images: Iterable[NDArray[np.uint8]]) -> None:
        """Write the next rows, each uint8 [S, S, C]."""
        rows = np.stack(list(images))
        self._images[self._row : self._row + len(rows)] = rows
        self._row += len(rows)
        self._hash.update(rows.data)
        self._sum += rows.sum((0, 1, 2), dtype=np.int64)
        self._squares += np.square(rows, dtype=np.int64).sum((0, 1, 2))

    def close(self) -> dict[str, str]:
        """Flush; the hashes of images and labels.

        Raises:
            ValueError: rows are missing.
        """
        if self._row != len(self._images):
            raise ValueError(f"{self._row} of {len(self._images)} rows were written")
        self._images.flush()
        return {"images": self._hash.hexdigest(), "labels": _payload_hash(self._labels_file)}

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation per channel of what was written, for pixels in [0, 1], float64."""
        pixels = self._row * self._images.shape[1] * self._images.shape[2]
        mean = self._sum / pixels
        # n·Σx² − (Σx)² in Python's integers: no rounding, so a constant channel has exactly zero variance.
        variance = [(pixels * int(q) - int(s) ** 2) / pixels**2 for s, q in zip(self._sum, self._squares, strict=True)]
        std = [float(np.sqrt(v)) / 255 if v > 0 else 1.0 for v in variance]
        return tuple(float(m) / 255 for m in mean), tuple(std)


def content_digest(
    classes: tuple[str, ...], image_size: int, channels: int, hashes: Mapping[SplitName, Mapping[str, str]]
) -> str:
    """The data's digest from its classes, its shape and the hashes of its arrays."""
    return json_digest({"classes": list(classes), "shape": [image_size, image_size, channels], "splits": hashes})


def write_info(folder: Path, info: DatasetInfo) -> None:
    """Write dataset.json."""
    write_json(folder / "dataset.json", json.loads(info.model_dump_json(exclude_none=True)))


def _payload_hash(path: Path) -> str:
    with path.open("rb", buffering=0) as stream:
        stream.seek(HEADER_BYTES)
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _open_array(path: Path, dtype: Any, shape: tuple[int, ...]) -> Any:
    try:
        array = open_array(path)
    except ValueError as error:
        raise _damaged(path, str(error)) from None
    if array.dtype != dtype or array.shape != shape:
        raise _damaged(
            path, f"it is {array.dtype} {list(array.shape)}, dataset.json says {np.dtype(dtype)} {list(shape)}"
        )
    return array


def _damaged(path: Path, reason: str) -> GkdError:
    return GkdError(f"{path} is damaged ({reason}): run `gkd prepare` again")
