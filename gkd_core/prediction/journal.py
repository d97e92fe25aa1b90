"""Rows that are done, kept beside the output while it is made: what goes on after a stop begins behind them.

One JSON object a line in `.OUT.progress`, the first of them saying of which work. Lines are only ever appended, so
whatever killed the writer, all but the last are whole.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self

from gkd_core.errors import GkdError

Row = dict[str, Any]


class Journal:
    """The rows of one work, in order.

    Attributes:
        done: how many there are.
        discarded: there were rows of other work, which are deleted.
    """

    def __init__(self, out: Path, key: str, *, total: int, batch: int) -> None:
        """Open what is there of this work, or begin it.

        Args:
            out: the output; only one process may work on it.
            key: digest of the work.
            total: how many rows there will be.
            batch: rows that are made together: what is there of the last, incomplete batch is made again, so that
                every row comes from the batch that it would be in if nothing had been stopped.
        Raises:
            GkdError: another process works on it.
        """
        self._path = out.with_name(f".{out.name}.progress")
        self._stream = _locked(self._path, out)
        self.discarded = False
        self._stream.seek(0)
        first = self._stream.readline()
        if _parsed(first) == {"work": key}:
            self.done = self._read(total, batch)
        else:
            self.discarded = bool(first)
            self.done = 0
            self._stream.truncate(0)
            self._write([{"work": key}])
        self._stream.seek(0, os.SEEK_END)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if not self.done:  # there is nothing to go on with
            self.remove()
        self._stream.close()

    def add(self, rows: Iterable[Row]) -> None:
        """Append rows; once this returns, the end of this process loses none of them."""
        rows = list(rows)
        self._write(rows)
        self.done += len(rows)

    def rows(self) -> Iterator[Row]:
        """All rows, read from the file."""
        with self._path.open("rb") as stream:
            next(stream)
            yield from map(json.loads, stream)

    def remove(self) -> None:
        """The output is there: nothing is to be gone on with."""
        self._path.unlink(missing_ok=True)

    def _read(self, total: int, batch: int) -> int:
        """Count the whole rows, and cut off what follows the last whole batch."""
        count = kept = 0
        end = place = self._stream.tell()
        while count < total and isinstance(_parsed(line := self._stream.readline()), dict):
            count += 1
            place += len(line)
            if count % batch == 0 or count == total:
                kept, end = count, place
        self._stream.truncate(end)
        return kept

    def _write(self, rows: Iterable[Row]) -> None:
        content = b"".join(json.dumps(row, allow_nan=False).encode() + b"\n" for row in rows)
        try:
            self._stream.write(content)
            self._stream.flush()
        except OSError as error:  # of a write, which tells no name
            raise OSError(error.errno, error.strerror, str(self._path)) from None


def _parsed(line: bytes) -> object:
    """What a line holds; None where it is not whole."""
    if line.endswith(b"\n"):
        with contextlib.suppress(ValueError):
            return json.loads(line)
    return None


def _locked(path: Path, out: Path) -> Any:
    """The file, open to read and append, which nobody else has so."""
    while True:
        stream = path.open("a+b")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.close()
            raise GkdError(f"another process is writing {out}: wait for it, or name another file") from None
        # Whoever had it before may have finished and removed it after it was opened here.
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(stream.fileno()).st_ino == path.stat().st_ino:
                return stream
        stream.close()
