"""An archive as a folder: unpacked where it hurts nothing else, and swept away with whoever reads it.

What is in it is not trusted: members that would land outside, links that lead there and devices are refused, and so is
what would become a hundred times its size.
"""

import lzma
import shutil
import tarfile
import tempfile
import weakref
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from gkd_core.data.sources.base import LeftOut
from gkd_core.data.sources.walk import IS_SYSTEM, SYSTEM, shown
from gkd_core.errors import GkdError

GROWTH, ROOM = 100, 1 << 30  # an archive may become so many times its size, and a gigabyte
PACKED = (".zip", ".tar", ".tar.gz", ".tar.bz2", ".tar.xz")
DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError)
"""What their readers raise; ValueError of names and numbers that are none."""


class TemporaryFolder:
    """A folder that goes when the last reference to this object does, or the process, and is made when it is needed.

    It lies in the system's place for such (TMPDIR).
    """

    def __init__(self) -> None:
        self.remove: Callable[[], object] = lambda: None
        self._path: str | None = None

    def new(self) -> Path:
        """An empty folder in it."""
        if self._path is None:
            self._path = tempfile.mkdtemp(prefix="gkd-source-")
            self.remove = weakref.finalize(self, shutil.rmtree, self._path, ignore_errors=True)
        return Path(tempfile.mkdtemp(dir=self._path))


def is_archive(file: Path) -> bool:
    """Whether a file is a zip or a tar, packed by gzip, bzip2 or xz or not, whatever its name."""
    return zipfile.is_zipfile(file) or _is_tar(file)


def _is_tar(file: Path) -> bool:
    """tarfile's own lets through what gzip, bzip2 and xz raise of a damaged beginning."""
    try:
        return tarfile.is_tarfile(file)
    except DAMAGED:
        return False


def top_level(place: Path) -> tuple[set[str], set[str]]:
    """Names of the folders and of the files in a folder, or in an archive as `innermost` would have it.

    Both are empty where the place cannot be read.
    """
    try:
        if place.is_dir():
            inside = [each for each in place.iterdir() if not IS_SYSTEM(each.name.lower())]
            return {each.name for each in inside if each.is_dir()}, {each.name for each in inside if each.is_file()}
        if zipfile.is_zipfile(place):
            with zipfile.ZipFile(place) as packed:
                names = [name for name in packed.namelist() if not name.endswith("/")]
        elif _is_tar(place):
            with tarfile.open(place) as packed_tar:
                names = [member.name for member in packed_tar if member.isfile()]
        else:
            return set(), set()
    except DAMAGED:
        return set(), set()
    paths = [[part for part in name.split("/") if part not in ("", ".")] for name in names]
    while True:
        paths = [parts for parts in paths if parts and not IS_SYSTEM(parts[0].lower())]
        files, folders = ({p[0] for p in paths if (len(p) == 1) == alone} for alone in (True, False))
        if files or len(folders) != 1:
            return folders, files
        paths = [parts[1:] for parts in paths]


def unpack(archive: Path, folder: Path, called: str) -> None:
    """Unpack an archive.

    Args:
        archive: zip, tar, tar.gz, tar.bz2 or tar.xz.
        folder: an empty one.
        called: what the archive is called in errors.
    Raises:
        GkdError: it is no archive, damaged, or locked; it leads outside, or would grow beyond measure or the disk.
    """
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as packed:
                members = packed.infolist()
                for member in members:
                    if not (folder / member.filename).resolve().is_relative_to(folder.resolve()):
                        raise GkdError(
                            f"{called} holds {member.filename!r}, which would land outside its folder: pack it anew"
                        )
                    if member.flag_bits & 1:
                        raise GkdError(f"{called} is locked by a password: pack it anew without one")
                _refuse_growth(sum(member.file_size for member in members), archive, folder, called)
                packed.extractall(folder)  # noqa: S202  # zipfile drops ways out and makes no links
        elif _is_tar(archive):
            with tarfile.open(archive) as packed_tar:
                _refuse_growth(sum(member.size for member in packed_tar), archive, folder, called)
                packed_tar.extractall(folder, filter="data")
        else:
            raise GkdError(
                f"{called} is neither a zip nor a tar archive ({', '.join(PACKED)}): pack it as one, or name the "
                "folder itself"
            )
    except (*DAMAGED, NotImplementedError) as error:
        raise GkdError(f"{called} cannot be unpacked ({error}): pack it anew") from error


def _refuse_growth(total: int, archive: Path, folder: Path, called: str) -> None:
    """Pictures hardly shrink when packed, tables ten times: what grows a hundred times is no data set."""
    if total > GROWTH * archive.stat().st_size + ROOM:
        raise GkdError(f"{called} would become {total / 1e9:.0f} GB, far more than data of its size: pack it anew")
    refuse_no_room(total, folder, f"{called} unpacked")


def refuse_no_room(total: int, folder: Path, what: str) -> None:
    """Raises: GkdError: so many bytes do not fit on the disk of a folder."""
    free = shutil.disk_usage(folder).free
    if total > free:
        raise GkdError(
            f"{what} needs {total / 1e9:.1f} GB, and {folder.parent} has {free / 1e9:.1f} GB left: make room, or let "
            "TMPDIR name a folder on a larger disk"
        )


def innermost(folder: Path) -> Path:
    """What an archive holds below the one folder that it was made of, if that is so.

    `photos.zip` of a folder `photos/` holds `photos/cat/…`: one folder alone can be no data set, since a classifier
    needs two classes.
    """
    while True:
        inside = [place for place in folder.iterdir() if not IS_SYSTEM(place.name.lower())]
        if len(inside) != 1 or not inside[0].is_dir() or inside[0].is_symlink():
            return folder
        folder = inside[0]


def beside(unpacked: Path, inner: Path) -> list[LeftOut]:
    """The files of an archive that do not lie in its `innermost` folder: they are all of a system."""
    files = (file for file in unpacked.rglob("*") if not file.is_dir() and not file.is_relative_to(inner))
    return [LeftOut(shown(file.relative_to(unpacked)), SYSTEM) for file in files]
