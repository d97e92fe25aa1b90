"""What is to be classified, in order: pictures, folders, lists and addresses as one list of entries.

A folder's pictures come sorted by path, a list's in the list's order. The list of entries is kept on disk, so that a
million of them take no memory, and has a digest: by it a run that was stopped finds that it is the same work.
"""

import hashlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gkd_core.data.sources.address import is_address, local_path, without_secrets
from gkd_core.data.sources.archive import TemporaryFolder, is_archive
from gkd_core.data.sources.listing import ENDINGS as LISTS
from gkd_core.data.sources.listing import NoPlace, listed_pictures, place_of
from gkd_core.data.sources.walk import ENDINGS, IS_SYSTEM, IS_THUMBNAIL, Walk, shown
from gkd_core.errors import GkdError
from gkd_core.prediction.reading import OPTION, Entry


class Entries:
    """The entries of some places, found once and kept in a temporary file that goes with the process.

    Attributes:
        count: how many there are.
        addresses: how many of them are addresses.
        left_out: files that are no pictures.
        digest: sha256 of what they are, in hex: names, places, and of files size and time.
    """

    def __init__(self, places: Sequence[str], option: str = OPTION) -> None:
        """Find them.

        Args:
            places: files, folders, lists and addresses.
            option: what named them, for the errors.
        Raises:
            GkdError: a place is not there or cannot be read, or there are no pictures at all.
        """
        self.count = self.addresses = self.left_out = 0
        self._file = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
        content = hashlib.sha256()
        empty = []
        for place in places:
            before = self.count
            for entry, mark in self._found(place, option):
                line = json.dumps([entry.name, entry.kind, entry.place])  # in ASCII: a path may hold any bytes
                content.update(f"{line} {mark}\n".encode())
                self._file.write(line + "\n")
                self.count += 1
                self.addresses += entry.kind == "address"
            if self.count == before:
                empty.append(_why_empty(place))
        self.digest = content.hexdigest()
        if not self.count:
            others = f" among {self.left_out} files" if self.left_out else ""
            raise GkdError(f"{option}: {'; '.join(empty)}{others}: name another place")

    def since(self, start: int) -> Iterator[Entry]:
        """The entries from a position on; one such iterator at a time."""
        self._file.seek(0)
        for position, line in enumerate(self._file):
            if position >= start:
                yield Entry(*json.loads(line))

    def close(self) -> None:
        """Let the file go."""
        self._file.close()

    def _found(self, place: str, option: str) -> Iterator[tuple[Entry, str]]:
        """The entries of one place, each with what changes when its file does."""
        if is_address(place):
            yield from self._behind(place, option)
            return
        path = Path(place).expanduser()
        if path.is_dir():
            walk = Walk(path, option)
            for file in walk.each_picture(path):
                yield _of_file(file, shown(file))
            self.left_out += len(walk.left_out)
        elif not path.exists():
            raise GkdError(f"{option} {place} is not there: name a picture, a folder, a list or an address")
        elif path.suffix.lower() in LISTS:
            yield from _of_list(path, option)
        elif path.is_file() and is_archive(path):
            raise GkdError(f"{option} {place} is an archive: unpack it, and name the folder")
        else:
            yield _of_file(path, shown(path))

    def _behind(self, address: str, option: str) -> Iterator[tuple[Entry, str]]:
        from gkd_core.data.sources.remote import fetch, files_below

        if address.partition("?")[0].lower().endswith(LISTS):
            temporary = TemporaryFolder()
            try:
                yield from _of_list(fetch(address, temporary.new(), option), option, base=address)
            finally:
                temporary.remove()
            return
        below = files_below(address, option)
        if below is None:
            yield Entry(without_secrets(address), "address", address), ""
            return
        for name in sorted(below):
            parts = name.lower().split("/")
            if Path(name).suffix.lower() in ENDINGS and not any(
                IS_SYSTEM(part) or IS_THUMBNAIL(part) for part in parts
            ):
                whole = f"{address.rstrip('/')}/{name}"
                yield Entry(without_secrets(whole), "address", whole), below[name]
            else:
                self.left_out += 1


def _why_empty(place: str) -> str:
    """Of a folder, a list or a prefix in which there is no entry."""
    path, name = local_path(place), without_secrets(place)
    if path.is_file() if path is not None else place.partition("?")[0].lower().endswith(LISTS):
        return f"the list {name} is empty (no row below its header)"
    return f"{name} has no pictures ({', '.join(sorted(ENDINGS))})"


def _of_file(path: Path, name: str) -> tuple[Entry, str]:
    try:
        facts: Any = path.stat()
        mark = f"{facts.st_size} {facts.st_mtime_ns}"
    except OSError:  # a link that leads nowhere
        mark = ""
    return Entry(name, "file", str(path)), mark


def _of_list(file: Path, option: str, base: str | None = None) -> Iterator[tuple[Entry, str]]:
    """A row of which nothing can be had is an entry too: the table has a row for each row of the list."""
    home = file.parent.resolve()
    for row in listed_pictures(file, option):
        if not row.image:
            yield Entry("", "fault", f"line {row.line} of the list names no file"), ""
            continue
        try:
            place = place_of(row, home, base)
        except NoPlace as reason:
            yield Entry(row.name, "fault", f"line {row.line} of the list {reason}"), ""
            continue
        yield (Entry(row.name, "address", place), "") if isinstance(place, str) else _of_file(place, row.name)
