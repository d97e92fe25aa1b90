"""Every file below a folder of pictures: a picture, or left out with the reason.

A link to a folder is followed where it leads out of the data's root, and each folder is entered once, so that no link
makes a picture count twice or the walk go round in a circle. Of a file with another ending the content decides.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from fnmatch import translate
from pathlib import Path

from gkd_core.data.images import is_picture
from gkd_core.data.sources.base import LeftOut
from gkd_core.errors import GkdError

ENDINGS = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
        *(".heic", ".heif", ".hif", ".avif"),
    }
)
# TIFF by their content, but what Pillow would find in them is a thumbnail.
RAW_ENDINGS = frozenset(
    {".3fr", ".arw", ".cr2", ".cr3", ".dng", ".erf", ".iiq", ".kdc", ".mef", ".mrw", ".nef", ".nrw", ".orf", ".pef"}
    | {".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f"}
)
# What operating systems, network drives and photo programs put among photos; patterns in small letters.
SYSTEM_NAMES = (
    *(".*", "__macosx", "lost+found", "system volume information", "$recycle.bin", "recycler", "found.000"),
    *("@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "@tmp"),
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "picasa.ini", "zbthumbnail.info", "__pycache__"),
)
THUMBNAIL_NAMES = ("synophoto_thumb_*", "synofile_thumb_*", "thumbs", "thumbnails", "_thumbs", "_thumbnails")

MAY_BE_CLASSES = ("thumbs",)  # of hands

NOT_A_PICTURE = "no picture of a format that is read"
RAW = "camera raw: export it as JPEG"
SYSTEM = "hidden, or of a system or a program (.DS_Store, @eaDir, …)"
THUMBNAIL = "a thumbnail"
OUTSIDE = "in no folder of a class"
NO_FILE = "neither a file nor a folder"
LEADS_BACK = "a link that leads back to the data's root"
READ_ELSEWHERE = "a link to a folder that is read already"

IS_SYSTEM, IS_THUMBNAIL = (
    re.compile("|".join(map(translate, patterns))).match for patterns in (SYSTEM_NAMES, THUMBNAIL_NAMES)
)


class Walk:
    """Goes through a root folder by folder, and keeps what it leaves out in `left_out`.

    Args:
        root: a folder.
        option: what named it, for the errors.
    """

    def __init__(self, root: Path, option: str = "data.root") -> None:
        self.left_out: list[LeftOut] = []
        self._root, self._resolved, self._option = root, root.resolve(), option
        self._entered: set[tuple[int, int]] = set()

    def folders(self, place: Path) -> list[Path]:
        """The folders in the root, or in a split, sorted by name; its files are in no class.

        Raises:
            GkdError: it cannot be listed.
        """
        folders, files = self._entries(place)
        for file in files:
            self._leave(file, OUTSIDE)
        return folders

    def pictures(self, place: Path) -> list[Path]:
        """The pictures at any depth below a class, sorted by name.

        Raises:
            GkdError: a folder cannot be listed.
        """
        found: list[Path] = []
        waiting = [place]
        while waiting:
            folders, files = self._entries(waiting.pop(), in_class=True)
            waiting += folders
            found += [file for file in files if self._is_taken(file)]
        return sorted(found, key=str)

    def each_picture(self, place: Path) -> Iterator[Path]:
        """The same pictures in the same order, one by one: of a million files only the names of one folder are held.

        Where two links lead to one folder, it is entered by the first of them.

        Raises:
            GkdError: a folder cannot be listed.
        """
        waiting = [(place, iter(self._names(place)))]
        while waiting:
            folder, names = waiting[-1]
            name = next(names, None)
            if name is None:
                waiting.pop()
                continue
            path = folder / name
            if self._is_passed_over(path, in_class=True):
                continue
            if not name.endswith("/"):
                if self._is_taken(path):
                    yield path
            elif reason := self._why_not(path):
                self._leave(path, reason, folder=True)
            else:
                waiting.append((path, iter(self._names(path))))

    def _names(self, place: Path) -> list[str]:
        """What a folder holds, a folder's name with "/": so sorted, the paths below are in order as text."""
        with self._listing(place) as listing:
            return sorted(entry.name + "/" * entry.is_dir() for entry in listing)

    def _entries(self, place: Path, *, in_class: bool = False) -> tuple[list[Path], list[Path]]:
        """Folders to enter, and files, without what a system put there."""
        folders: list[Path] = []
        files: list[Path] = []
        with self._listing(place) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
        for entry in entries:
            path = place / entry.name
            if self._is_passed_over(path, in_class=in_class):
                continue
            if not entry.is_dir():
                files.append(path)
            elif reason := self._why_not(path):
                self._leave(path, reason, folder=True)
            else:
                folders.append(path)
        return folders, files

    @contextlib.contextmanager
    def _listing(self, place: Path) -> Iterator[Iterator[os.DirEntry[str]]]:
        try:
            with os.scandir(place) as listing:
                yield listing
        except OSError as error:
            raise GkdError(
                f"{self._option}: {shown(place)} cannot be listed ({error.strerror}): make it readable, or move it away"
            ) from None

    def _is_passed_over(self, path: Path, *, in_class: bool) -> bool:
        """Whether it is a system's or a thumbnail, which is noted then."""
        name = path.name.lower()
        if IS_SYSTEM(name):
            self._leave_all(path, SYSTEM)
        elif IS_THUMBNAIL(name) and (in_class or name not in MAY_BE_CLASSES):
            self._leave_all(path, THUMBNAIL)
        else:
            return False
        return True

    def _why_not(self, folder: Path) -> str | None:
        """Why a folder is not entered."""
        target = folder.resolve()
        if folder.is_symlink() and self._resolved.is_relative_to(target):
            return LEADS_BACK
        if folder.is_symlink() and target.is_relative_to(self._resolved):
            # What is hidden is read by links alone: a store of files, as some tools keep it.
            inside = target.relative_to(self._resolved)
            if not any(IS_SYSTEM(part.lower()) for part in inside.parts):
                return READ_ELSEWHERE
        found = target.stat()
        if (found.st_dev, found.st_ino) in self._entered:
            return READ_ELSEWHERE
        self._entered.add((found.st_dev, found.st_ino))
        return None

    def _is_taken(self, file: Path) -> bool:
        """Whether a file is a picture, or would be one: what cannot be decoded is for `data.unreadable` to decide."""
        ending = file.suffix.lower()
        if not file.is_file():
            if ending in ENDINGS and file.is_symlink() and not file.exists():
                return True
            self._leave(file, NO_FILE)
        elif ending in ENDINGS:
            return True
        elif ending in RAW_ENDINGS:
            self._leave(file, RAW)
        elif is_picture(file):
            return True
        else:
            self._leave(file, NOT_A_PICTURE)
        return False

    def _leave_all(self, path: Path, reason: str) -> None:
        if not path.is_dir() or path.is_symlink():
            self._leave(path, reason)
        for parent, folders, names in os.walk(path):
            folders.sort()
            for name in sorted(names):
                self._leave(Path(parent, name), reason)

    def _leave(self, path: Path, reason: str, *, folder: bool = False) -> None:
        self.left_out.append(LeftOut(shown(path.relative_to(self._root)) + "/" * folder, reason))


def shown(path: Path | str) -> str:
    """The path as text that can be printed and kept, whatever bytes are in it."""
    return os.fsencode(path).decode("utf-8", errors="replace").replace(os.sep, "/")
