"""The prepared format: one folder of memory-mapped arrays, so that a set larger than memory trains all the same.

dataset.json                                   `DatasetInfo`
train/images.npy, validation/…, test/…         uint8 [N, S, S, C]
train/labels.npy, …                            int64 [N]
unlabelled/images.npy                          uint8 [N, S, S, C], pictures without a class, where there are any

Of photos the training split holds whole pictures instead (`gkd_core.data.photos`): training draws its windows from all
of each. What is measured is looked at as squares, the very pixels that a served model sees of a picture.
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

from gkd_core.data.arrays import new_array, open_array
from gkd_core.data.interleave import UNLABELLED
from gkd_core.data.photos import PhotoRecords, Photos, Store
from gkd_core.data.sources.base import SPLITS, SplitName
from gkd_core.data.topology import FEATURES
from gkd_core.errors import GkdError
from gkd_core.files import expect_kind, file_digest, json_digest, read_json, write_json

UNLABELLED_FOLDER = "unlabelled"
HEADER_BYTES = 128  # of a .npy file; numpy pads it to a multiple of 64, and ours are never longer


class AugmentDefaults(TypedDict):
    """The source's own augmentation: largest shift in pixels, and whether to mirror."""

    crop_padding: Annotated[int, Field(ge=0, le=1 << 16)]
    flip: bool


class WholePictures(BaseModel):
    """How the training pictures of photos are kept.

    Attributes:
        store_size: largest shorter side in pixels.
        store: rows of pixels, or a JPEG each.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    store_size: Annotated[int, Field(ge=1, le=1 << 16)]
    store: Store


class UnlabelledInfo(BaseModel):
    """The pictures without a class.

    Attributes:
        count: how many there are.
        dropped: files left out because they could not be read, relative to their folder.
        held_out: files left out because a validation or test image has the same pixels.
        left_out: what else is in their folder, {reason: {ending: how many}}; unlabelled/left_out.csv names all of it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    count: Annotated[int, Field(ge=1, le=1 << 40)]
    dropped: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()
    left_out: dict[str, dict[str, Annotated[int, Field(ge=1)]]] | None = None


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
        left_out: how many files of the source are in no split by reason and ending; left_out.csv names them.
        preparation: how images were brought to size.
        crop: how a square is made of a picture, where that is not its centre.
        photos: how the training pictures are kept whole; None where they are squares.
        topology: sha256 of the persistence features by split, where there are any; they follow from the images.
        unlabelled: of the pictures without a class; None where there are none. They are in `sha256`, not in `counts`.
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
    left_out: dict[str, dict[str, Annotated[int, Field(ge=1)]]] | None = None
    preparation: str
    crop: Literal["squash", "border"] | None = None
    photos: WholePictures | None = None
    topology: dict[SplitName, str] | None = None
    unlabelled: UnlabelledInfo | None = None


@dataclass(frozen=True, eq=False)
class Split:
    """Images and labels of one split.

    Attributes:
        images: uint8 [N, H, W, C], memory-mapped when it comes from a prepared folder; of whole pictures
            `gkd_core.data.photos.Photos`, which makes such squares of those that are asked for.
        labels: int64 [N]; −1 of an image without a class.
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
        self._open_unlabelled()
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

    @cached_property
    def unlabelled(self) -> Split | None:
        """The images without a class, label −1; None where there are none."""
        return self._open_unlabelled()

    def split(self, name: SplitName) -> Split:
        """Open one split.

        Raises:
            GkdError: an array is not of the shape or type dataset.json says, or a label is none of the classes.
        """
        return self._open_split(name)

    def _open_split(self, name: SplitName) -> Split:
        """`split`, which the tests watch: nobody but evaluate may ask for the test images, and `check` looks at all."""
        count = self.info.counts[name]
        images = self._images(name)
        labels = np.array(_open_array(self.folder / name / "labels.npy", np.int64, (count,)))
        if count and not 0 <= labels.min() <= labels.max() < len(self.info.classes):
            raise _damaged(self.folder / name / "labels.npy", "it has labels beyond the classes")
        features = self.folder / name / "topology.npy"
        topology = _open_array(features, np.float32, (count, FEATURES)) if features.is_file() else None
        return Split(images, labels, self.info.mean, topology)

    def _images(self, name: SplitName) -> Any:
        return self._open_images(name, self.info.counts[name], whole=self.info.photos if name == "train" else None)

    def _open_images(self, name: str, count: int, *, whole: WholePictures | None) -> Any:
        info, folder = self.info, self.folder / name
        size, channels = info.image_size, info.channels
        if whole is None:
            return _open_array(folder / "images.npy", np.uint8, (count, size, size, channels))
        crop, store = info.crop or "center", whole.store
        try:
            return Photos(folder, count=count, channels=channels, image_size=size, crop=crop, store=store)
        except ValueError as error:
            raise _damaged(folder, str(error)) from None

    def _open_unlabelled(self) -> Split | None:
        if self.info.unlabelled is None:
            return None
        count = self.info.unlabelled.count
        images = self._open_images(UNLABELLED_FOLDER, count, whole=self.info.photos)
        return Split(images, np.full(count, UNLABELLED, dtype=np.int64), self.info.mean)

    def digest(self) -> str:
        """sha256 of what is on disk now; equal to `info.sha256` unless a byte changed. Reads everything."""
        more = None
        if self.info.unlabelled is not None:
            folder = self.folder / UNLABELLED_FOLDER
            if self.info.photos is None:
                more = {"images": _payload_hash(folder / "images.npy")}
            else:
                more = _photo_hashes(folder, file_digest(folder / "images.bin"), ("offsets", "sizes"))
        return content_digest(self.info, {name: self._hashes(name) for name in SPLITS}, more)

    def _hashes(self, name: SplitName) -> dict[str, str]:
        folder = self.folder / name
        if name == "train" and self.info.photos is not None:
            return _photo_hashes(folder, file_digest(folder / "images.bin"))
        return {what: _payload_hash(folder / f"{what}.npy") for what in ("images", "labels")}


class Moments:
    """Mean and standard deviation per channel of pixels, in whole numbers: however they were grouped, the same."""

    def __init__(self, channels: int) -> None:
        self._pixels = 0
        self._sum = np.zeros(channels, dtype=np.int64)
        self._squares = np.zeros(channels, dtype=np.int64)

    def add(self, images: NDArray[np.uint8]) -> None:
        """Count uint8 [..., C] in."""
        axes = tuple(range(images.ndim - 1))
        self._pixels += images[..., 0].size
        self._sum += images.sum(axes, dtype=np.int64)
        self._squares += np.square(images, dtype=np.int64).sum(axes)

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation per channel, for pixels in [0, 1], float64; of a constant channel 1."""
        pixels = self._pixels
        mean = self._sum / pixels
        # n·Σx² − (Σx)² in Python's integers: no rounding, so a constant channel has exactly zero variance.
        variance = [(pixels * int(q) - int(s) ** 2) / pixels**2 for s, q in zip(self._sum, self._squares, strict=True)]
        std = [float(np.sqrt(v)) / 255 if v > 0 else 1.0 for v in variance]
        return tuple(float(m) / 255 for m in mean), tuple(std)


class PhotoWriter:
    """Writes a split of whole pictures, counting statistics and the digest on the way.

    Args:
        folder: an existing folder.
        labels: [N] int64.
        channels: of the pictures to come.
        store: how they are kept.
    """

    def __init__(self, folder: Path, labels: NDArray[np.int64], channels: int, store: Store) -> None:
        self._folder, self._count = folder, len(labels)
        np.save(folder / "labels.npy", labels.astype("<i8", copy=False))
        self._records, self._moments = PhotoRecords(folder, store), Moments(channels)

    def append(self, images: Iterable[NDArray[np.uint8]]) -> None:
        """Write the next pictures, each uint8 [H, W, C]."""
        images = list(images)
        for image in images:
            self._moments.add(image)
        self._records.append(images)

    def close(self) -> dict[str, str]:
        """Flush; the hashes of all files.

        Raises:
            ValueError: pictures are missing.
        """
        if len(self._records) != self._count:
            raise ValueError(f"{len(self._records)} of {self._count} pictures were written")
        return _photo_hashes(self._folder, self._records.close())

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation per channel of all pixels that were written, for pixels in [0, 1], float64."""
        return self._moments.statistics()


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
        shape = (len(labels), image_size, image_size, channels)
        self._images = new_array(folder / "images.npy", np.uint8, shape)
        self._hash = hashlib.sha256()
        self._row = 0
        self._moments = Moments(channels)

    def append(self, images: Iterable[NDArray[np.uint8]]) -> None:
        """Write the next rows, each uint8 [S, S, C]."""
        rows = np.stack(list(images))
        self._images[self._row : self._row + len(rows)] = rows
        self._row += len(rows)
        self._hash.update(rows.data)
        self._moments.add(rows)

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
        return self._moments.statistics()


def content_digest(
    info: DatasetInfo,
    hashes: Mapping[SplitName, Mapping[str, str]],
    unlabelled: Mapping[str, str] | None = None,
) -> str:
    """The data's digest from its classes, its shape and the hashes of its arrays; `info.sha256` is not looked at.

    Args:
        unlabelled: hashes of the pictures without a class; None where there are none.
    """
    size = info.image_size
    content: dict[str, Any] = {"classes": list(info.classes), "shape": [size, size, info.channels], "splits": hashes}
    if unlabelled is not None:
        content["unlabelled"] = unlabelled
    more = info.model_dump(include={"crop", "photos"}, exclude_none=True)  # where there are none, as it was before
    return json_digest(content | more)


def write_info(folder: Path, info: DatasetInfo) -> None:
    """Write dataset.json."""
    write_json(folder / "dataset.json", json.loads(info.model_dump_json(exclude_none=True)))


def _payload_hash(path: Path) -> str:
    with path.open("rb", buffering=0) as stream:
        stream.seek(HEADER_BYTES)
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _photo_hashes(
    folder: Path, images: str, beside: tuple[str, ...] = ("labels", "offsets", "sizes")
) -> dict[str, str]:
    arrays = {what: _payload_hash(folder / f"{what}.npy") for what in beside}
    return {"images": images, **arrays}


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
