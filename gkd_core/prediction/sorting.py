"""Pictures sorted into a folder for each class, as links or copies: `--sort-into`. The pictures themselves stay.

What lies behind addresses can only be copied, and is fetched for it, some files at a time.

The folder is filled under a hidden name beside it and appears whole. What is there already of the same work is left as
it is, so a run that was stopped goes on.
"""

import contextlib
import hashlib
import os
import re
import shutil
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gkd_core.data.sources.address import without_secrets
from gkd_core.errors import GkdError
from gkd_core.files import refuse_to_replace, write_bytes

if TYPE_CHECKING:
    from gkd_core.data.sources.remote import Fetcher

OPTION = "--sort-into"
UNSURE = "unsure"
MARK = ".gkd-predict"  # holds the digest of the work while the folder is not finished
TOGETHER = 64  # files that are fetched at a time
LONGEST = 255  # bytes of a file's name
_UNFIT = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|]')  # in a file's name, on one system or another


class Sorted:
    """A folder to be, with a folder for each class and one for what the model is unsure of.

    Args:
        folder: new, or empty.
        classes: names; what no file system would take of them is replaced by "_".
        key: digest of the work.
        sources: what is read: the folder may neither hold any of it nor lie in it.
        copy: copies instead of links.
    Raises:
        GkdError: the folder may not be written.
    """

    def __init__(
        self, folder: Path, classes: Sequence[str], *, key: str, sources: Iterable[Path], copy: bool = False
    ) -> None:
        refuse_sorting(folder, sources, key)
        self._folder, self._key, self._copy = folder, key, copy
        self._filling = folder.with_name(f".{folder.name}.sorting")
        self._fetched = self._filling / f"{MARK}.fetched"
        *of_classes, self._unsure = folder_names([*classes, UNSURE])
        self._folders = dict(zip(classes, of_classes, strict=True))
        self._taken: dict[bytes, int] = {}
        self._wanted: dict[str, list[Path]] = {}
        self._fetcher: Fetcher | None = None
        self._finished = _marked(folder) == key

    def begin(self) -> None:
        """Make the hidden folder, or find what an earlier run of this work left in it."""
        if self._finished:
            return
        if self._filling.exists() and _marked(self._filling) != self._key:
            shutil.rmtree(self._filling)
        shutil.rmtree(self._fetched, ignore_errors=True)
        for name in (*self._folders.values(), self._unsure):
            (self._filling / name).mkdir(parents=True, exist_ok=True)
        write_bytes(self._filling / MARK, self._key.encode())

    def add(self, source: Path, name: str | None) -> None:
        """Put a picture to its class, or to those the model is unsure of (None).

        Of several that have one name in one class, the second gets " (2)" before its ending, and so on.

        Raises:
            GkdError: the place takes no links.
        """
        target = self._target(source.name, name)
        if target is None:
            return
        if self._copy:
            partly = self._filling / f"{MARK}.part"
            shutil.copy2(source, partly)
            partly.replace(target)
            return
        try:
            target.symlink_to(source.absolute())
        except OSError as error:
            raise GkdError(f"{OPTION} {self._folder} takes no links ({error.strerror}): give --copy") from None

    def add_address(self, address: str, name: str | None) -> None:
        """The same of a picture behind an address, under the last part of it; it is there once `fetch` was called.

        Raises:
            GkdError: as `fetch`.
        """
        (file,) = folder_names([without_secrets(address).rstrip("/").rpartition("/")[2]])
        if (target := self._target(file, name)) is not None:
            self._wanted.setdefault(address, []).append(target)
        if len(self._wanted) == TOGETHER:
            self.fetch()

    def fetch(self) -> None:
        """Fetch the pictures of `add_address`: each appears whole.

        Raises:
            GkdError: one cannot be had, or not any more.
        """
        if not self._wanted:
            return
        if self._fetcher is None:
            from gkd_core.data.sources.remote import Fetcher

            self._fetcher = Fetcher(OPTION)
        self._fetched.mkdir(exist_ok=True)
        places = {address: self._fetched / str(number) for number, address in enumerate(self._wanted)}
        if missing := self._fetcher.fetch(places):
            raise GkdError(f"{OPTION}: {without_secrets(missing[0])} went away while it was read: run the same again")
        for address, (first, *others) in self._wanted.items():
            for target in others:
                shutil.copyfile(places[address], self._fetched / "copy").replace(target)
            places[address].replace(first)
        self._fetched.rmdir()
        self._wanted.clear()

    def finish(self) -> None:
        """The folder appears under its name; classes without a picture have no folder in it."""
        if self._finished:
            return
        for folder in (*self._folders.values(), self._unsure):
            with contextlib.suppress(OSError):  # it is not empty
                (self._filling / folder).rmdir()
        self._filling.rename(self._folder)
        self._finished = True

    def remove_mark(self) -> None:
        """The last thing to do: nothing is to be gone on with."""
        (self._folder / MARK).unlink(missing_ok=True)

    def _target(self, file: str, name: str | None) -> Path | None:
        """Where a picture of this name is to be put; None where it is already."""
        folder = self._unsure if name is None else self._folders[name]
        target = self._filling / folder / self._free_name(folder, file)
        return None if self._finished or os.path.lexists(target) else target

    def _free_name(self, folder: str, name: str) -> str:
        """By what came before alone, so that another run of the same work comes to the same names."""
        number = 1
        wanted = name
        while (key := _folded(folder, wanted)) in self._taken:
            first = _folded(folder, name)
            number = self._taken[first] = self._taken[first] + 1
            wanted = _numbered(name, number)
        self._taken[key] = 1
        return wanted


def refuse_sorting(folder: Path, sources: Iterable[Path], key: str | None = None) -> None:
    """See that sorting into a folder changes nothing that is there.

    Args:
        key: of the work that may have been gone on with there; None where it is not known yet.
    Raises:
        GkdError: it holds something, is no folder, or holds or lies in what is read.
    """
    mark = _marked(folder)
    if mark is not None and key in (None, mark):
        return
    refuse_to_replace(folder, sources, option=OPTION)
    if there := sorted(folder.iterdir() if folder.is_dir() else ()):
        raise GkdError(f"{OPTION} {folder} holds {there[0].name} already: name a new folder, or empty that one")


def folder_names(classes: Iterable[str]) -> list[str]:
    """A folder's name for each class, all different, also where a file system does not tell case.

    >>> folder_names(["a cat", "../cat", "A cat"])
    ['a cat', '_.._cat', 'A cat (2)']
    """
    taken: set[bytes] = set()
    names = []
    for name in classes:
        fit = _UNFIT.sub("_", name).strip(" ") or "_"
        fit = _cut("_" * (set(fit) == {"."} or fit.startswith(".")) + fit, "")
        number, wanted = 1, fit
        while _folded("", wanted) in taken:
            number += 1
            wanted = _cut(fit, f" ({number})")
        taken.add(_folded("", wanted))
        names.append(wanted)
    return names


def _marked(folder: Path) -> str | None:
    with contextlib.suppress(OSError):
        return (folder / MARK).read_text()
    return None


def _numbered(name: str, number: int) -> str:
    return _cut(Path(name).stem, f" ({number}){Path(name).suffix}")


def _cut(stem: str, ending: str) -> str:
    """Both together, the first cut off where they are too long for a file's name."""
    while len(os.fsencode(stem + ending)) > LONGEST:
        stem = stem[:-1]
    return stem + ending


def _folded(folder: str, name: str) -> bytes:
    """What two names have in common that some file system takes for one; short, since there may be a million."""
    text = unicodedata.normalize("NFC", f"{folder}/{name}").casefold()
    return hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=8).digest()
