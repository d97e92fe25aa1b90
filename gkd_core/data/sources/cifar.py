"""CIFAR-10 and CIFAR-100, read from the published "python version".

The published files are pickles. Each is opened only after its bytes had the published md5, with an unpickler that
admits nothing but the numpy arrays they hold. Unpacked files are read where they lie; an archive is read without being
unpacked.
"""

import hashlib
import io
import pickle
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gkd_core.data.download import cache_folder, download
from gkd_core.data.images import fit
from gkd_core.data.sources.base import Examples, Source, SplitName
from gkd_core.errors import GkdError

LARGEST_FILE = 1 << 28  # bytes; CIFAR-100's largest has 155 million


@dataclass(frozen=True)
class Published:
    """One data set as its authors published it (https://www.cs.toronto.edu/~kriz/cifar.html).

    Attributes:
        address, md5: of the archive.
        folder: the folder in the archive.
        files: md5 of each file in it.
        train, test, meta: which file is what.
        labels, class_names: keys in those files.
    """

    address: str
    md5: str
    folder: str
    files: dict[str, str]
    train: tuple[str, ...]
    test: str
    meta: str
    labels: bytes
    class_names: bytes


PUBLISHED = {
    "cifar10": Published(
        address="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        md5="c58f30108f718f92721af3b95e74349a",
        folder="cifar-10-batches-py",
        files={
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            "test_batch": "40351d587109b95175f43aff81a1287e",
            "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
        },
        train=("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5"),
        test="test_batch",
        meta="batches.meta",
        labels=b"labels",
        class_names=b"label_names",
    ),
    "cifar100": Published(
        address="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        md5="eb9058c3a382ffc7106e4002c42a8d85",
        folder="cifar-100-python",
        files={
            "train": "16019d7e3df5f24257cddd939b257f8d",
            "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
            "meta": "7973b15100ade9c7d40fb424638fde48",
        },
        train=("train",),
        test="test",
        meta="meta",
        labels=b"fine_labels",
        class_names=b"fine_label_names",
    ),
}


def cifar(name: str, root: Path | None, image_size: int | None, channels: int | None) -> Source:
    """CIFAR-10 or CIFAR-100 with its own train and test split.

    Args:
        name: "cifar10" or "cifar100".
        root: folder with the unpacked folder or the archive, else where to download it; null is the cache.
        image_size: side in pixels; null keeps 32.
        channels: 1 or 3; null keeps 3.
    Raises:
        GkdError: a file or the archive is missing, truncated or not the published one, or cannot be downloaded.
    """
    published = PUBLISHED[name]
    size, depth = image_size or 32, channels or 3
    read = _opener(published, root or cache_folder())
    meta = _load(read(published.meta))
    classes = tuple(c.decode() for c in meta[published.class_names])
    splits: dict[SplitName, Examples] = {
        "train": _examples([_load(read(file)) for file in published.train], published.labels, size, depth),
        "test": _examples([_load(read(published.test))], published.labels, size, depth),
    }
    return Source(name, classes, size, depth, splits, flip=True)


def _examples(batches: list[dict[bytes, Any]], labels: bytes, size: int, channels: int) -> Examples:
    # A row is 1,024 red values, then green, then blue; the blocks stay apart so that no second copy is held.
    blocks: list[NDArray[np.uint8]] = [b[b"data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1) for b in batches]
    starts = np.cumsum([0] + [len(block) for block in blocks])

    def read(position: int) -> NDArray[np.uint8]:
        block = int(np.searchsorted(starts, position, side="right")) - 1
        return fit(np.ascontiguousarray(blocks[block][position - starts[block]]), size, channels)

    return Examples(np.concatenate([np.asarray(b[labels], dtype=np.int64) for b in batches]), read)


def _opener(published: Published, root: Path) -> Callable[[str], bytes]:
    """file name → its bytes, checked; from the unpacked folder, else from the archive, which is fetched if need be."""
    folder = root / published.folder
    if folder.is_dir():
        return lambda file: _unpacked(published, folder, file)
    archive = root / published.address.rpartition("/")[2]
    if not archive.exists():
        download(published.address, archive, published.md5)
    with archive.open("rb") as stream:
        found = hashlib.file_digest(stream, "md5").hexdigest()
    if found != published.md5:
        raise GkdError(
            f"{archive} is truncated or not the published archive (md5 {found}, published {published.md5}): "
            f"delete it and run again, or fetch {published.address} into {root}"
        )
    return _packed(published, archive).__getitem__


def _unpacked(published: Published, folder: Path, file: str) -> bytes:
    path = folder / file
    mend = f"delete {folder} so that the archive is taken, or unpack {published.address} again"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise GkdError(f"{path} cannot be read ({error.strerror}): {mend}") from None
    found = hashlib.md5(content).hexdigest()
    if found != published.files[file]:
        raise GkdError(
            f"{path} is truncated or not the published file (md5 {found}, published {published.files[file]}): {mend}"
        )
    return content


def _packed(published: Published, archive: Path) -> dict[str, bytes]:
    """All files of the archive in one pass over it."""
    contents: dict[str, bytes] = {}
    try:
        with tarfile.open(archive, "r|gz") as members:
            for member in members:
                folder, _, file = member.name.rpartition("/")
                if folder != published.folder or file not in published.files or not member.isfile():
                    continue
                if member.size > LARGEST_FILE:
                    raise tarfile.TarError(f"{member.name} would have {member.size} bytes")
                if (stream := members.extractfile(member)) is not None:
                    contents[file] = stream.read()
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise GkdError(f"{archive} cannot be unpacked ({error}): delete it and run again") from None
    for file, md5 in published.files.items():
        if file not in contents or hashlib.md5(contents[file]).hexdigest() != md5:
            raise GkdError(f"{archive} holds no {published.folder}/{file} as published: delete it and run again")
    return contents


# The very objects numpy names when it pickles an array, wherever its modules have moved since.
_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is not part of an array") from None


def _load(content: bytes) -> dict[bytes, Any]:
    """A pickle of Python 2, of built-in containers and numpy arrays only; strings stay bytes.

    Raises:
        GkdError: it holds anything else, or is damaged.
    """
    try:
        loaded = _ArraysOnly(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # whatever a damaged pickle makes the unpickler and numpy raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise GkdError(f"a file of CIFAR is damaged ({reason}): fetch it again") from None
    if not isinstance(loaded, dict):
        raise GkdError("a file of CIFAR is damaged (it holds no table): fetch it again")
    return loaded
