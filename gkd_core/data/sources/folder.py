"""A folder of images: a folder for each class, or `train/`, `val/`, `test/` that hold such folders.

Images are found at any depth below their class; `walk` says what is one. Class names are the folders' own, in
Unicode's composed form (NFC), sorted by code point. Splits are known by their usual names in any spelling
(`SPLIT_FOLDERS`); `val/` and `test/` may be missing. What is not used is in the source's `left_out`.
"""

import re
import unicodedata
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gkd_core.data.images import read_image
from gkd_core.data.sources.base import SPLITS, Examples, Source, SplitName
from gkd_core.data.sources.class_names import FAULT, doubtful_names, folded, is_line
from gkd_core.data.sources.walk import ENDINGS, OUTSIDE, Walk, shown
from gkd_core.errors import GkdError

SPLIT_FOLDERS: dict[str, SplitName] = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval", "evaluation"), "validation"),
    **dict.fromkeys(("test", "testing", "tst", "holdout"), "test"),
}
USUAL = "train, val, test"  # for the errors
FEW = 4  # folders, that may be splits by names nobody knows


def split_of(name: str) -> SplitName | None:
    """The split that a folder's name, or a word in a list, stands for: `Training`, `test_set`, `VAL`; None for none."""
    return SPLIT_FOLDERS.get(re.sub(r"[\s_-]*(set|data|split|images)$", "", name.strip().lower()))


def folder(root: Path, image_size: int | None, channels: int | None, *, option: str = "data.root") -> Source:
    """The images below a folder; nothing is decoded yet.

    Args:
        root: folder of classes, or of ready splits.
        image_size: side in pixels; null is 64.
        channels: 1 or 3; null is 3.
        option: what named the folder, for the errors.
    Raises:
        GkdError: no such folder, no images, an empty class, a class train does not have, splits that are ambiguous,
            a class whose name is no line of text.
    """
    if not root.is_dir():
        raise GkdError(
            f"{option} {root} is {'not a folder' if root.exists() else 'not there'}: name a folder of images"
        )
    size, depth = image_size or 64, channels or 3
    walk = Walk(root, option)
    places = _split_folders(root, walk)
    files = {split: _files_by_class(folders, place, walk) for split, (place, folders) in places.items()}
    classes = tuple(sorted(files["train"]))
    if len(classes) == 1:
        inner = places["train"][1][0]
        nested = any(path.is_dir() for path in inner.iterdir())
        raise GkdError(
            f"{option} {root} has one class, {classes[0]!r}: a classifier needs two folders of images or more"
            + (f"; if its folders are the classes, name {inner}" if nested else "")
        )
    splits: dict[SplitName, Examples] = {}
    for split, by_class in files.items():
        if strangers := sorted(set(by_class) - set(classes)):
            like = next((name for name in classes if folded(name) == folded(strangers[0])), None)
            raise GkdError(
                f"class {strangers[0]!r} is in the {split} split of {root} but not in {places['train'][0].name}/"
                f"{f', which has {like!r}' if like else ''}: add it to {places['train'][0].name}/, or remove it there"
            )
        splits[split] = _examples(root, classes, by_class, size, depth)
    left_out = tuple(sorted(walk.left_out, key=lambda each: each.name))
    return Source(
        *("folder", classes, size, depth, splits),
        flip=True,
        left_out=left_out,
        warnings=(*doubtful_names(classes, shown(root)), *_doubtful_splits(root, places)),
    )


def pictures(root: Path, image_size: int, channels: int, *, option: str = "data.unlabelled") -> Source:
    """The images anywhere below a folder, whatever the folders they are in are called: without classes, label −1.

    Args:
        root: folder of images.
        image_size: side in pixels.
        channels: 1 or 3.
        option: what named the folder, for the errors.
    Raises:
        GkdError: no such folder, or no images in it.
    """
    if not root.is_dir():
        raise GkdError(
            f"{option} {root} is {'not a folder' if root.exists() else 'not there'}: name a folder of images"
        )
    walk = Walk(root, option)
    paths = walk.pictures(root)
    if not paths:
        raise GkdError(f"{option} {root} has no images ({', '.join(sorted(ENDINGS))}): name a folder of images")

    def read(position: int) -> NDArray[np.uint8]:
        return read_image(paths[position], image_size, channels)

    examples = Examples(
        np.full(len(paths), -1, dtype=np.int64),
        read,
        tuple(shown(path.relative_to(root)) for path in paths),
        parallel=True,
        open=lambda position: paths[position].open("rb"),
    )
    left_out = tuple(sorted(walk.left_out, key=lambda each: each.name))
    return Source("unlabelled", (), image_size, channels, {"train": examples}, flip=True, left_out=left_out)


Places = dict[SplitName, tuple[Path, list[Path]]]


def _split_folders(root: Path, walk: Walk) -> Places:
    """Where each split lies, and its folders of classes; only "train", the root itself, when there are no ready splits.

    Raises:
        GkdError: it is not clear which folders are splits and which are classes.
    """
    folders = walk.folders(root)
    words = {path: split_of(path.name) for path in folders}
    # A class may well be called "train": a split is recognised by the folders of classes in it.
    if not any(word == "train" and _has_folders(path) for path, word in words.items()):
        if folders and all(words.values()):
            lacks = "folders of classes in them" if "train" in words.values() else "train/"
            raise GkdError(
                f"{shown(root)} has {', '.join(f'{path.name}/' for path in folders)} and no {lacks}: make it "
                "train/CLASS/*.jpg, test/CLASS/*.jpg"
            )
        if len(folders) > 1 and all(_has_splits(path) for path in folders):
            raise GkdError(
                f"{shown(root)} has splits within its classes ({folders[0].name}/…), and their images would be trained "
                "on together: make it train/CLASS/*.jpg, test/CLASS/*.jpg"
            )
        likely = {_like_split(path.name) for path in folders}
        if "train" in likely and len(likely) > 1 and None not in likely:
            raise GkdError(
                f"{shown(root)} has {', '.join(f'{path.name}/' for path in folders)}, which would be classes and are "
                "called like splits: make it train/CLASS/*.jpg, test/CLASS/*.jpg"
            )
        return {"train": (root, folders)}
    splits: dict[SplitName, Path] = {}
    for path, word in words.items():
        if word is None:
            raise GkdError(
                f"{shown(root)} has {next(p.name for p, w in words.items() if w == 'train')}/ and beside it "
                f"{path.name!r}, which is none of {USUAL} in any usual spelling: move it away"
            )
        if word in splits:
            raise GkdError(f"{shown(root)} has both {splits[word].name}/ and {path.name}/: keep one of them")
        splits[word] = path
    return {split: (splits[split], walk.folders(splits[split])) for split in SPLITS if split in splits}


def _like_split(name: str) -> SplitName | None:
    """The split that a word in a folder's name stands for: `01_train`, `test2017`, `seg_pred` none."""
    return next((SPLIT_FOLDERS[word] for word in re.split(r"[^a-z]+", name.lower()) if word in SPLIT_FOLDERS), None)


def _has_folders(place: Path) -> bool:
    return bool(Walk(place).folders(place))


def _has_splits(place: Path) -> bool:
    return any(split_of(path.name) == "train" for path in Walk(place).folders(place))


def _files_by_class(folders: list[Path], place: Path, walk: Walk) -> dict[str, list[Path]]:
    """The image files of each class; folders whose names are written in two ways of Unicode are one class.

    Raises:
        GkdError: there are no images, or a class has none, or its name is no line of text.
    """
    by_class: dict[str, list[Path]] = {}
    for path in folders:
        if shown(path.name) != path.name:
            raise GkdError(f"the name of the class folder {shown(path)} is not UTF-8: rename it")
        if not is_line(path.name):
            raise GkdError(f"the name of the class folder {str(path)!r} {FAULT}: rename it")
        by_class.setdefault(unicodedata.normalize("NFC", path.name), []).extend(walk.pictures(path))
    if not any(by_class.values()):
        beside = sum(file.reason == OUTSIDE and Path(file.name).suffix.lower() in ENDINGS for file in walk.left_out)
        raise GkdError(
            f"{shown(place)} has no images in folders of classes: put them there as CLASS/*.jpg "
            f"({', '.join(sorted(ENDINGS))})"
            + (f"; if its own {beside} are one class, name what holds all classes" if beside else "")
        )
    for name, files in by_class.items():
        if not files:
            endings = ", ".join(sorted(ENDINGS))
            raise GkdError(f"the class folder {place / name} has no images ({endings}): add some, or remove it")
    return by_class


def _doubtful_splits(root: Path, places: Places) -> list[str]:
    outer = places["train"][1]
    if list(places) == ["train"] and 1 < len(outer) <= FEW:
        named = ", ".join(repr(place.name) for place in outer)
        inner = [{path.name for path in Walk(place).folders(place)} for place in outer]
        if len(inner[0]) > 1 and all(each == inner[0] for each in inner):
            return [
                f"the classes {named} of {shown(root)} hold the same folders, "
                f"{', '.join(map(repr, sorted(inner[0])[:2]))}{', …' * (len(inner[0]) > 2)}: if those are the classes, "
                f"call the outer ones {USUAL}"
            ]
        if len({_like_split(place.name) for place in outer} - {None}) > 1:
            return [
                f"the classes {named} of {shown(root)} are called like splits: if they are, call them {USUAL}, with a "
                "folder for each class in them"
            ]
    name = places["validation"][0].name if "validation" in places else ""
    if "test" in places or not name.lower().startswith("eval"):
        return []
    return [
        f"{name}/ of {shown(root)} is taken for the validation split, and a test split is taken from train: rename it "
        "test/ if it is what to measure on at the end"
    ]


def _examples(
    root: Path, classes: tuple[str, ...], by_class: dict[str, list[Path]], size: int, channels: int
) -> Examples:
    paths = [path for name in classes for path in by_class.get(name, [])]
    labels = [label for label, name in enumerate(classes) for _ in by_class.get(name, [])]

    def read(position: int) -> NDArray[np.uint8]:
        return read_image(paths[position], size, channels)

    names = tuple(shown(path.relative_to(root)) for path in paths)
    return Examples(
        np.array(labels, dtype=np.int64), read, names, parallel=True, open=lambda position: paths[position].open("rb")
    )
