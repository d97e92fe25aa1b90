"""A folder of images: a folder for each class, or `train/`, `val/`, `test/` that hold such folders.

Images are found at any depth below their class, by ending. Hidden files and folders (a name that starts with a dot,
or `__MACOSX`) and other files are passed over, and so are images that lie outside any class. Class names are the
folders' own, sorted by code point. `val/` may be called `valid/` or `validation/`; `val/` and `test/` may be missing.
"""

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gkd_core.data.images import read_image
from gkd_core.data.sources.base import Examples, Source, SplitName
from gkd_core.errors import GkdError

ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff"})
SPLIT_FOLDERS: dict[str, SplitName] = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}


def folder(root: Path, image_size: int | None, channels: int | None, *, option: str = "data.root") -> Source:
    """The images below a folder; nothing is decoded yet.

    Args:
        root: folder of classes, or of ready splits.
        image_size: side in pixels; null is 64.
        channels: 1 or 3; null is 3.
        option: what named the folder, for the errors.
    Raises:
        GkdError: no such folder, no images, an empty class, a class train does not have, splits that are ambiguous.
    """
    if not root.is_dir():
        raise GkdError(
            f"{option} {root} is {'not a folder' if root.exists() else 'not there'}: name a folder of images"
        )
    size, depth = image_size or 64, channels or 3
    files = {split: _files_by_class(place) for split, place in _split_folders(root).items()}
    classes = tuple(sorted(files["train"]))
    if len(classes) == 1:
        raise GkdError(
            f"{option} {root} has one class, {classes[0]!r}: a classifier needs two folders of images or more"
        )
    splits: dict[SplitName, Examples] = {}
    for split, by_class in files.items():
        if strangers := sorted(set(by_class) - set(classes)):
            raise GkdError(
                f"class {strangers[0]!r} is in the {split} split of {root} but not in train/: "
                "add it to train/, or remove it there"
            )
        splits[split] = _examples(root, classes, by_class, size, depth)
    return Source("folder", classes, size, depth, splits, flip=True)


def _split_folders(root: Path) -> dict[SplitName, Path]:
    """Where each split lies; only "train", the root itself, when there are no ready splits."""
    names = {place.name for place in _subfolders(root)}
    # A class may well be called "train": a split is recognised by the folders of classes in it.
    if "train" not in names or not _subfolders(root / "train"):
        return {"train": root}
    if others := sorted(names - set(SPLIT_FOLDERS)):
        raise GkdError(
            f"{root} has train/ and beside it {others[0]!r}, which is none of {', '.join(SPLIT_FOLDERS)}: move it away"
        )
    splits: dict[SplitName, Path] = {}
    for name in sorted(names):
        split = SPLIT_FOLDERS[name]
        if split in splits:
            raise GkdError(f"{root} has both {splits[split].name}/ and {name}/: keep one of them")
        splits[split] = root / name
    return {split: splits[split] for split in ("train", "validation", "test") if split in splits}


def _files_by_class(place: Path) -> dict[str, list[Path]]:
    """The image files of each class folder.

    Raises:
        GkdError: there are no images, or a class has none, or its name cannot be written as text.
    """
    by_class = {subfolder.name: _images_below(subfolder) for subfolder in _subfolders(place)}
    if not any(by_class.values()):
        raise GkdError(
            f"{_shown(place)} has no images in folders of classes: put them there as CLASS/*.jpg "
            f"({', '.join(sorted(ENDINGS))})"
        )
    for name, files in by_class.items():
        if not _is_text(name):
            raise GkdError(f"the name of the class folder {_shown(place / name)} is not UTF-8: rename it")
        if not files:
            raise GkdError(f"the class folder {place / name} has no images: add some, or remove it")
    return by_class


def _examples(
    root: Path, classes: tuple[str, ...], by_class: dict[str, list[Path]], size: int, channels: int
) -> Examples:
    paths = [path for name in classes for path in by_class.get(name, [])]
    labels = [label for label, name in enumerate(classes) for _ in by_class.get(name, [])]

    def read(position: int) -> NDArray[np.uint8]:
        return read_image(paths[position], size, channels)

    names = tuple(_shown(path.relative_to(root)) for path in paths)
    return Examples(
        np.array(labels, dtype=np.int64), read, names, parallel=True, open=lambda position: paths[position].open("rb")
    )


def _subfolders(place: Path) -> list[Path]:
    return sorted(path for path in place.iterdir() if path.is_dir() and not _is_hidden(path.name))


def _images_below(place: Path) -> list[Path]:
    found: list[Path] = []
    for parent, folders, names in os.walk(place):
        folders[:] = [name for name in folders if not _is_hidden(name)]
        found += [Path(parent, name) for name in names if not _is_hidden(name) and Path(name).suffix.lower() in ENDINGS]
    return sorted(found, key=lambda path: path.relative_to(place).as_posix())


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _is_text(name: str) -> bool:
    return _shown(name) == name


def _shown(path: Path | str) -> str:
    """The path as text that can be printed and kept, whatever bytes are in it."""
    return os.fsencode(path).decode("utf-8", errors="replace").replace(os.sep, "/")
