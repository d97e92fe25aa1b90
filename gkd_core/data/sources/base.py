"""What a source gives: labelled pictures, to be decoded one by one, in one to three splits."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import IO, Literal

import numpy as np
from numpy.typing import NDArray

SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class Examples:
    """One split as the source has it; nothing is decoded before `read` is called.

    Attributes:
        labels: [N] int64.
        read: position → uint8 [S, S, C] as the source's `image_size` and `channels` say. May raise
            `gkd_core.data.images.Unreadable` where `names` is given.
        names: file names for messages, or () where pictures cannot be unreadable.
        parallel: `read` may be called from several threads.
        groups: what each example belongs to (a patient, a burst of shots), so that all of one group are in one split;
            "" is one on its own. () where nothing is known.
        open: position → the file's own bytes; None where the pictures are not files.
    """

    labels: NDArray[np.int64]
    read: Callable[[int], NDArray[np.uint8]]
    names: tuple[str, ...] = ()
    parallel: bool = False
    groups: tuple[str, ...] = ()
    open: Callable[[int], IO[bytes]] | None = None


@dataclass(frozen=True)
class LeftOut:
    """A file or folder of the source that is in no split.

    Attributes:
        name: relative to the root.
        reason: what it is, or why it is not used; alike for all files of one kind.
    """

    name: str
    reason: str


@dataclass(frozen=True)
class Source:
    """A data set before it is split and written.

    Attributes:
        name: as in `data.source`.
        classes: class names; a label is a position in it.
        image_size: side of the pictures `read` gives.
        channels: 1 or 3.
        splits: "train" always; "validation" and "test" where the source has its own.
        flip: a mirrored picture is still of its class, so flipping is the default augmentation.
        left_out: what else the source holds, each with its reason.
        warnings: sentences on what may be wrong with it.
        keep: what must live as long as pictures are read: a temporary folder of what was unpacked or fetched.
    """

    name: str
    classes: tuple[str, ...]
    image_size: int
    channels: int
    splits: Mapping[SplitName, Examples]
    flip: bool
    left_out: tuple[LeftOut, ...] = ()
    warnings: tuple[str, ...] = ()
    keep: object = field(default=None, compare=False, repr=False)
