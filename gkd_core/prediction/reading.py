"""Pictures decoded and brought to size by several processes, given back in order.

A process that a picture takes with it (a decoder that crashes, memory that is not there) costs that picture a row: what
was lost with the process is read again, one picture at a time, and who ends it a second time is named.

Every process imports this file, so it imports little.
"""

import functools
import itertools
import multiprocessing
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
from numpy.typing import NDArray

from gkd_core.data.images import Crop, Unreadable, read_image
from gkd_core.serving.workers import live_as_long_as_parent

if TYPE_CHECKING:
    from gkd_core.data.sources.remote import Fetcher

TASK = 8  # pictures that a process is given at a time
AHEAD = 4  # tasks for each process that are under way or wait to be taken
KILLED = "the process that decoded it was killed: it crashes its decoder, or needs more memory than there is"
OPTION = "IMAGES"  # what names the places, as `gkd predict --help` calls it

Decoded = NDArray[np.uint8] | str
"""uint8 [side, side, channels], or why there is none."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One picture to be.

    Attributes:
        name: as the table has it: the path as it is reached from the current folder, what a list says, the address.
        kind: what `place` is: a path, an address, or, of a row of a list that names no picture, the reason.
        place: where it lies.
    """

    name: str
    kind: Literal["file", "address", "fault"]
    place: str


@dataclass(frozen=True)
class PictureFormat:
    """What the model takes: `read_image`'s size, channels and crop."""

    side: int
    channels: int
    crop: Crop


class Readers:
    """The processes. They ignore what is sent to stop them, and end with this one.

    Args:
        form: of the pictures.
        processes: how many.
    """

    def __init__(self, form: PictureFormat, processes: int) -> None:
        self._form, self._processes = form, processes
        self._pool: ProcessPoolExecutor | None = None
        self._alone: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for pool in (self._pool, self._alone):
            if pool is not None:
                pool.shutdown(cancel_futures=True)

    def read(self, entries: Iterable[Entry]) -> Iterator[tuple[Entry, Decoded]]:
        """Each entry with its picture, in order; only some are read ahead.

        Raises:
            GkdError: what an address names cannot be had, and not because it is not there.
        """
        rest = iter(entries)
        waiting: deque[tuple[list[Entry], Future[list[Decoded]]]] = deque()
        while True:
            while len(waiting) < AHEAD * self._processes and (task := list(itertools.islice(rest, TASK))):
                waiting.append((task, self._begin(task)))
            if not waiting:
                return
            task, future = waiting.popleft()
            try:
                found = future.result()
            except BrokenProcessPool:
                yield from ((entry, self._read_alone(entry)) for entry in task)
            else:
                yield from zip(task, found, strict=True)

    def _begin(self, task: list[Entry]) -> Future[list[Decoded]]:
        if self._pool is not None:
            try:
                return self._pool.submit(read_task, task, self._form)
            except BrokenProcessPool:  # its processes have ended meanwhile
                pass
        self._pool = _pool(self._processes)
        return self._pool.submit(read_task, task, self._form)

    def _read_alone(self, entry: Entry) -> Decoded:
        if self._alone is None:
            self._alone = _pool(1)
        try:
            return self._alone.submit(read_task, [entry], self._form).result()[0]
        except BrokenProcessPool:
            self._alone = None
            return KILLED


def _pool(processes: int) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(processes, mp_context=context, initializer=live_as_long_as_parent)


def read_task(task: list[Entry], form: PictureFormat) -> list[Decoded]:
    """In a process: the pictures of some entries, exactly as `gkd predict` of one picture and /classify read them.

    Raises:
        GkdError: as `Readers.read`.
    """
    addresses = [entry.place for entry in task if entry.kind == "address"]
    if not addresses:
        return [_read(entry, Path(entry.place), form) for entry in task]
    with tempfile.TemporaryDirectory(prefix="gkd-predict-") as folder:
        fetched = {address: Path(folder, f"fetched-{number}") for number, address in enumerate(addresses)}
        _fetcher().fetch(fetched)  # what is not there is missed where it is read
        return [_read(entry, fetched.get(entry.place, Path(entry.place)), form) for entry in task]


def _read(entry: Entry, file: Path, form: PictureFormat) -> Decoded:
    if entry.kind == "fault":
        return entry.place
    try:
        if not file.is_file():  # one would wait for ever for what a pipe holds
            return "it is no file" if file.exists() else "it does not exist"
        return read_image(file, form.side, form.channels, crop=form.crop)
    except Unreadable as error:
        return str(error)
    except OSError as error:  # a name that is too long, a folder above it that may not be looked into
        return error.strerror or str(error)


@functools.cache
def _fetcher() -> "Fetcher":
    from gkd_core.data.sources.remote import Fetcher

    return Fetcher(OPTION)
