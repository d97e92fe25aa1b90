"""From a source to the prepared format: splits decided on labels, then one picture after another into its row.

Pictures that are files, wanted larger than `SQUARES_UP_TO`, are photos: those to train on are kept whole.
"""

import logging
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import IO, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from gkd_core.cores import pool_size
from gkd_core.data.health import copies_in_train, examine, look_at, refuse_leakage
from gkd_core.data.health_page import write_health
from gkd_core.data.images import PREPARATION, PREPARED_BY, Crop, Unreadable, not_opened, read_image, read_whole
from gkd_core.data.left_out import count_left_out, refusal, unread, warnings_of, write_left_out
from gkd_core.data.photos import Store
from gkd_core.data.prepared import (
    AugmentDefaults,
    DatasetInfo,
    PhotoWriter,
    SplitWriter,
    WholePictures,
    content_digest,
    write_info,
)
from gkd_core.data.progress import progress
from gkd_core.data.sources.base import Examples, Source, SplitName
from gkd_core.data.splits import Chosen, choose_splits
from gkd_core.errors import GkdError

CHUNK_BYTES = 1 << 22
SQUARES_UP_TO = 64  # pixels: what the small-image recipe trains on, by shifts of squares
STORE_SIZE = 1.15  # of the image's side: at 224 pixels 258, of which networks that crop look at 256
RAW_UP_TO = 1 << 33  # bytes of training pixels; more are compressed, which needs a tenth of it and some decoding

StoreOption = Literal["auto", "squares", "raw", "compressed"]
Decode = Callable[[IO[bytes]], NDArray[np.uint8]]

log = logging.getLogger(__name__)
Result = TypeVar("Result")


def write_prepared(
    source: Source,
    folder: Path,
    *,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.2,
    train_images: int | None = None,
    seed: int = 0,
    unreadable: Literal["refuse", "drop"] = "refuse",
    leakage: Literal["refuse", "allow"] = "refuse",
    store: StoreOption = "auto",
    store_size: int | None = None,
    crop: Crop = "center",
) -> DatasetInfo:
    """Write a source's three splits and dataset.json into an existing, empty folder.

    Pictures that cannot be read are all logged, then refused or dropped. With files dropped everything is what it would
    be had they never been there: the splits are decided again without them.

    Where the pictures are files, they are looked at first (`gkd_core.data.health`), and health.json and health.html
    tell what was found. Copies of one picture stay together in the splits that are taken from train, and are refused
    where the source has them in two splits of its own; with `leakage` "allow" the splits are decided without regard to
    them. A published benchmark (digits, CIFAR, torchvision's) is taken as it is.

    Args:
        store: how the training pictures are kept: whole (`raw` or `compressed`), as `squares`, or as fits (`auto`).
        store_size: shorter side in pixels of whole pictures, larger ones are brought down to it; None is 1.15 times
            `source.image_size`.
        crop: how a square is made of a picture.
    Raises:
        GkdError: a class is empty or too small for the splits, files cannot be read and `unreadable` is "refuse", the
            same picture is in two splits and `leakage` is "refuse", or pictures that are no files are to be kept whole.
    """
    photos = _photos(source, store, store_size, crop)
    health = None
    if all(examples.open is not None for examples in source.splits.values()):
        health = examine(source, look_at(source), unreadable=unreadable, leakage=leakage)
        refuse_leakage(health)
    together = copies_in_train(health) if health is not None and leakage == "refuse" else []
    for sentence in warnings_of(source):
        log.warning("%s", sentence)
    failed: dict[SplitName, dict[int, str]] = {}
    while True:
        excluded = {name: set(positions) for name, positions in failed.items()}
        chosen = choose_splits(source, validation_fraction, test_fraction, seed, excluded, train_images, together)
        if photos is not None and store not in ("raw", "compressed"):
            photos = photos.model_copy(update={"store": _store(source, photos, len(chosen["train"].positions))})
        writers, found = _write(source, chosen, folder, photos, crop)
        if not found:
            break
        if unreadable == "refuse":
            raise refusal(_by_name(source, found), sum(len(each.labels) for each in source.splits.values()))
        for name, reasons in found.items():
            failed.setdefault(name, {}).update(reasons)
    hashes = {name: writer.close() for name, writer in writers.items()}
    mean, std = writers["train"].statistics()
    dropped = unread(_by_name(source, failed))
    if source.left_out or dropped:
        write_left_out(folder, [*source.left_out, *dropped])
    info = DatasetInfo(
        source=source.name,
        classes=source.classes,
        image_size=source.image_size,
        channels=3 if source.channels == 3 else 1,
        mean=mean,
        std=std,
        counts={name: len(c.positions) for name, c in chosen.items()},
        sha256="",
        # An eighth of the side: CIFAR's 4 of 32, the digits' 1 of 8.
        augment=AugmentDefaults(crop_padding=source.image_size // 8, flip=source.flip),
        preparation=PREPARATION.replace(PREPARED_BY["center"], PREPARED_BY[crop]),
        crop=None if crop == "center" else crop,
        photos=photos,
        dropped=tuple(sorted(each.name for each in dropped)),
        left_out=count_left_out(source.left_out) or None,
    )
    info = info.model_copy(update={"sha256": content_digest(info, hashes)})
    write_info(folder, info)
    if health is not None:
        write_health(folder, health)
    return info


def _by_name(source: Source, failed: dict[SplitName, dict[int, str]]) -> dict[str, str]:
    """Why pictures cannot be decoded."""
    return {source.splits[name].names[i]: why for name, found in failed.items() for i, why in found.items()}


def _photos(source: Source, store: StoreOption, store_size: int | None, crop: Crop) -> WholePictures | None:
    """How whole pictures are kept, None for squares.

    Raises:
        GkdError: something is asked that only files can give.
    """
    if store == "squares" and store_size is not None:
        raise GkdError("data.store_size is of whole pictures, but data.store is squares: leave one of them out")
    if store_size is not None and store_size < source.image_size:
        raise GkdError(
            f"data.store_size is {store_size}, below the {source.image_size} pixels of data.image_size: raise it"
        )
    files = all(examples.open is not None for examples in source.splits.values())
    asked: dict[str, object] = {"store": None if store in ("auto", "squares") else store, "store_size": store_size}
    asked["crop"] = None if crop == "center" else crop
    if not files and (given := {name: value for name, value in asked.items() if value is not None}):
        name, value = next(iter(given.items()))
        raise GkdError(
            f"data.{name} is {value}, but {source.name} gives squares, not files of pictures: leave data.{name} out"
        )
    small = source.image_size <= SQUARES_UP_TO and store_size is None
    if not files or store == "squares" or (store == "auto" and small):
        return None
    return WholePictures(
        store_size=store_size or round(STORE_SIZE * source.image_size), store="raw" if store == "auto" else store
    )


def _store(source: Source, photos: WholePictures, count: int) -> Store:
    """By numbers that are the same on every machine: pictures are taken to be 4 to 3."""
    return "raw" if count * photos.store_size**2 * 4 / 3 * source.channels <= RAW_UP_TO else "compressed"


def _write(
    source: Source, chosen: dict[SplitName, Chosen], folder: Path, photos: WholePictures | None, crop: Crop
) -> tuple[dict[SplitName, SplitWriter | PhotoWriter], dict[SplitName, dict[int, str]]]:
    """Write all rows; also what could not be read, as {the source's split: {position: reason}}."""
    writers: dict[SplitName, SplitWriter | PhotoWriter] = {}
    failed: dict[SplitName, dict[int, str]] = {}
    total = sum(len(c.positions) for c in chosen.values())
    side = source.image_size if photos is None else photos.store_size
    rows_at_once = max(16, CHUNK_BYTES // (side**2 * source.channels))
    with progress(f"prepare {source.name}", total, unit="images") as advance:
        for name, (origin, positions) in chosen.items():
            shutil.rmtree(folder / name, ignore_errors=True)
            (folder / name).mkdir()
            examples = source.splits[origin]
            labels = examples.labels[positions]
            size, channels = source.image_size, source.channels
            if photos is not None and name == "train":
                writers[name] = PhotoWriter(folder / name, labels, channels, photos.store)
                read = _reader(examples, partial(read_whole, shorter=photos.store_size, channels=channels))
            else:
                writers[name] = SplitWriter(folder / name, labels, size, channels)
                read = examples.read
                if crop != "center":
                    read = _reader(examples, partial(read_image, size=size, channels=channels, crop=crop))
            for start in range(0, len(positions), rows_at_once):
                rows = positions[start : start + rows_at_once]
                images = _read(examples, read, rows, failed.setdefault(origin, {}))
                # After a failure the arrays will not be kept: the rest is only looked through for more failures.
                if not any(failed.values()):
                    writers[name].append(images)
                advance(len(rows))
    return writers, {name: reasons for name, reasons in failed.items() if reasons}


def _reader(examples: Examples, decode: Decode) -> Callable[[int], NDArray[np.uint8]]:
    """position → the file's picture as `decode` makes it."""
    open_file = examples.open
    assert open_file is not None

    def read(position: int) -> NDArray[np.uint8]:
        try:
            stream = open_file(position)
        except OSError as error:
            raise Unreadable(not_opened(error)) from None
        with stream:
            return decode(stream)

    return read


def _read(
    examples: Examples,
    read: Callable[[int], NDArray[np.uint8]],
    positions: NDArray[np.int64],
    failed: dict[int, str],
) -> list[NDArray[np.uint8]]:
    def attempt(position: int) -> NDArray[np.uint8] | Unreadable:
        try:
            return read(position)
        except Unreadable as error:
            return error

    # Pillow decodes outside the interpreter lock; map keeps the order.
    results = _map(attempt, positions.tolist(), examples.parallel)
    for position, result in zip(positions.tolist(), results, strict=True):
        if isinstance(result, Unreadable):
            failed[position] = str(result)
            log.warning("cannot read %s: %s", examples.names[position], result)
    return [result for result in results if not isinstance(result, Unreadable)]


def _map(function: Callable[[int], Result], positions: list[int], parallel: bool) -> list[Result]:
    if not parallel:
        return [function(position) for position in positions]
    with ThreadPoolExecutor(pool_size()) as pool:
        return list(pool.map(function, positions))
