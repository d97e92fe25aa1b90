"""A teacher's answers on disk: a row for every image and view, in a sparse file that processes read and write at once.

    header    4,096 bytes of JSON: what the answers are of, and how wide they are
    records   of each row `width` float32 and their checksum, uint64

A row counts if its checksum is right. One that nobody wrote is zeros, with a wrong checksum; so is one of which only
a part is there, for its writer was killed or is still at work. That makes locks and order of writing unnecessary: two
processes that write the same row write the same bytes, and a row is whole or it is none.

Rows are read by `pread` and written by `pwrite`. Through a memory map a full disk would be a signal that ends the
process: for who writes, and in a tmpfs (a volume in memory, /dev/shm) for who reads a row that nobody wrote, too.
"""

import contextlib
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gkd_core.errors import GkdError
from gkd_core.files import json_digest, write_bytes

HEADER_BYTES = 4096
SUFFIX = ".answers"
WIDEST = 1 << 16  # up to here no row of which a part is still zeros has the whole row's checksum
LOCK = "lock"


class Answers:
    """The open file. It is known to be in use, so not removed, for as long as this object lives.

    Args:
        path: of a file that `open_answers` made.
        width: numbers a row.
    """

    def __init__(self, path: Path, width: int) -> None:
        self._stream = path.open("r+b", buffering=0)
        fcntl.flock(self._stream, fcntl.LOCK_SH)
        self._record = np.dtype([("answer", np.float32, (width,)), ("checksum", np.uint64)])

    def read(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
        """Which of the rows are there, [B], and their answers, [B, width]; of those that are not, anything."""
        records = np.frombuffer(b"".join(map(self._bytes_of, rows.tolist())), self._record)
        answers = records["answer"].copy()
        return _checksums(answers) == records["checksum"], answers

    def _bytes_of(self, row: int) -> bytes:
        """Zeros where the disk does not give them, or somebody cut the file."""
        size = self._record.itemsize
        try:
            return os.pread(self._stream.fileno(), size, HEADER_BYTES + row * size).ljust(size, b"\0")
        except OSError:
            return bytes(size)

    def write(self, rows: NDArray[np.int64], answers: NDArray[np.float32]) -> None:
        """Keep answers [B, width] of these rows.

        Raises:
            OSError: the disk is full, or gone.
        """
        records = np.empty(len(rows), self._record)
        records["answer"], records["checksum"] = answers, _checksums(answers)
        size = self._record.itemsize
        for row, record in zip(rows.tolist(), records, strict=True):
            if os.pwrite(self._stream.fileno(), record.tobytes(), HEADER_BYTES + row * size) < size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def size_bytes(rows: int, width: int) -> int:
    """Of a file with all its rows."""
    return HEADER_BYTES + rows * (4 * width + 8)


def open_answers(folder: Path, facts: dict[str, Any], *, rows: int, width: int, limit_bytes: int) -> Answers:
    """The file in `folder` for answers with these facts; it is made where there is none, or none that is whole.

    Files of other facts (another teacher, other data) are never read. They stay while there is room for all, and make
    way, the one longest unused first, unless a process has them open.

    Args:
        folder: made if need be; nothing else is in it.
        facts: all that the answers depend on.
        limit_bytes: most that all files in the folder may come to with all their rows.
    Raises:
        GkdError: they would come to more, or there is no room on the disk.
        OSError: the folder cannot be written.
    """
    size = size_bytes(rows, width)
    facts = facts | {"rows": rows, "width": width}  # images without a label, say, are more rows beside the same data
    header = json.dumps(facts, sort_keys=True).encode().ljust(HEADER_BYTES)
    path = folder / f"{json_digest(facts)[:16]}{SUFFIX}"
    if width > WIDEST or len(header) > HEADER_BYTES:
        raise GkdError(f"answers of {width:,} numbers each are too long")
    folder.mkdir(parents=True, exist_ok=True)
    with _alone_in(folder):
        for leftover in folder.glob(".*.tmp"):  # of a process that was killed here
            leftover.unlink()
        if not _is_whole(path, header, size):
            path.unlink(missing_ok=True)
            _make_room(folder, size, limit_bytes)
            write_bytes(path, header)
            os.truncate(path, size)
        os.utime(path)
        return Answers(path, width)


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """A block that one process at a time is in; the kernel opens the lock of one that is killed."""
    with (folder / LOCK).open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _is_whole(path: Path, header: bytes, size: int) -> bool:
    try:
        with path.open("rb") as stream:
            return os.fstat(stream.fileno()).st_size == size and stream.read(HEADER_BYTES) == header
    except OSError:
        return False


def _make_room(folder: Path, size: int, limit: int) -> None:
    """Remove what is longest unused until one of this size fits.

    Raises:
        GkdError: it never does.
    """
    others = sorted(folder.glob(f"*{SUFFIX}"), key=lambda path: path.stat().st_mtime)
    total = size + sum(path.stat().st_size for path in others)
    for path in others if size <= limit else []:
        if total > limit and _unused(path):
            total -= path.stat().st_size
            path.unlink()
    if total > limit:
        beside = "" if size > limit else f", beside the {readable(total - size)} that others have in use"
        raise GkdError(f"its answers may come to {readable(size)}{beside}, and teacher_cache_gb is {limit / 1e9:g}")
    if size > (free := shutil.disk_usage(folder).free):
        raise GkdError(f"its answers may come to {readable(size)}, and the disk of {folder} has {readable(free)} left")


def _unused(path: Path) -> bool:
    with path.open("rb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def readable(size: int) -> str:
    """A number of bytes for people."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"


def _checksums(answers: NDArray[np.float32]) -> NDArray[np.uint64]:
    """[B], 1 + Σ_i (i + 1)·word_i, modulo 2^64, of the answers' 32-bit words.

    Below 2^16 words the sum never comes round to 0, so every word that is still zero and should not be shows.
    """
    words = answers.view(np.uint32).astype(np.uint64)
    places = np.arange(1, answers.shape[1] + 1, dtype=np.uint64)
    sums: NDArray[np.uint64] = words @ places + np.uint64(1)
    return sums
