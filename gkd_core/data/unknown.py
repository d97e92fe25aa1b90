"""Pictures that are none of the classes: what `decide.unknown` names, read only to measure with."""

import hashlib
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gkd_core.cores import pool_size
from gkd_core.data.images import Crop, Unreadable, read_image
from gkd_core.data.sources.walk import ENDINGS, Walk
from gkd_core.errors import GkdError

BATCH = 64  # pictures in memory at once

log = logging.getLogger(__name__)


class UnknownPictures:
    """The pictures of a folder, at any depth, each a square as validation and test images are.

    Args:
        folder: of pictures.
        side, channels, crop: of the data.
    Attributes:
        unreadable: how many could not be decoded and were passed over, once `batches` is through.
        sha256: of the pixels that were read, in their order, likewise.
    Raises:
        GkdError: there is no such folder, or it has no pictures.
    """

    def __init__(self, folder: Path, side: int, channels: int, crop: Crop = "center") -> None:
        refuse_without_pictures(folder)
        self._folder = folder
        self._read = partial(_read, size=side, channels=channels, crop=crop)
        self._files = Walk(folder, "decide.unknown").pictures(folder)
        self.unreadable = 0
        self.sha256 = ""

    def __len__(self) -> int:
        """Files, readable or not."""
        return len(self._files)

    def batches(self) -> Iterator[NDArray[np.uint8]]:
        """uint8 [B, side, side, channels], sorted by the files' names.

        Raises:
            GkdError: none of them can be decoded.
        """
        seen, found, digest = 0, 0, hashlib.sha256()
        waiting = iter(self._files)
        with ThreadPoolExecutor(pool_size()) as pool:
            while files := list(islice(waiting, BATCH)):
                pictures = [picture for picture in pool.map(self._read, files) if picture is not None]
                seen += len(files)
                found += len(pictures)
                if pictures:
                    batch = np.stack(pictures)
                    digest.update(batch.tobytes())
                    yield batch
        self.unreadable, self.sha256 = seen - found, digest.hexdigest()
        if not found:
            raise GkdError(f"none of the {seen} pictures of decide.unknown {self._folder} can be read: name others")


def refuse_without_pictures(folder: Path) -> None:
    """See that there is something to measure with.

    Raises:
        GkdError: there is no such folder, or it has no pictures.
    """
    if not folder.is_dir():
        raise GkdError(f"decide.unknown {folder} is no folder: name one of pictures, or leave it out")
    if next(Walk(folder, "decide.unknown").each_picture(folder), None) is None:
        endings = ", ".join(sorted(ENDINGS))
        raise GkdError(f"decide.unknown {folder} has no pictures ({endings}): put some there, or leave it out")


def _read(file: Path, size: int, channels: int, crop: Crop) -> NDArray[np.uint8] | None:
    try:
        return read_image(file, size, channels, crop=crop)
    except Unreadable as error:
        log.warning("decide.unknown: cannot read %s: %s", file.name, error)
        return None
