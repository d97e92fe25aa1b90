"""Any classification set of torchvision by name: `torchvision:FashionMNIST`, `torchvision:DTD?partition=2`, `cifar10`.

The splits are found by the set's own argument (`train` or `split`). A set with `train`, `val` and `test` has all three
taken as they are; where there is no `test`, `val` is the test and validation is taken from train; where there is
neither, both are. Classes without a single training image are left out.
"""

import contextlib
import inspect
import os
import sys
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torchvision import datasets

from gkd_core.data.images import Unreadable, fit
from gkd_core.data.sources.base import Examples, Source, SplitName
from gkd_core.errors import GkdError, unknown

# Their targets are captions, boxes, attributes, pairs, maps; or gkd reads them itself (folders).
NOT_ONE_CLASS = {
    *("VOCSegmentation", "VOCDetection", "CocoCaptions", "CocoDetection", "Cityscapes", "Kitti", "SBU", "Flickr8k"),
    *("Flickr30k", "CelebA", "WIDERFace", "LFWPairs", "ImageFolder", "DatasetFolder"),
    *("LSUNClass", "VisionDataset"),
}
# Characters and signs: a mirrored one is another one, or none.
NOT_MIRRORED = {
    *("MNIST", "EMNIST", "KMNIST", "QMNIST", "USPS", "SEMEION", "Omniglot", "SVHN", "GTSRB", "RenderedSST2"),
}
SAFE_TAR = hasattr(tarfile, "data_filter")
# What the sets call their splits, the most usual first.
SPLIT_WORDS: dict[SplitName, tuple[str, ...]] = {
    "train": ("train", "trainval", "train-standard"),
    "validation": ("val", "valid"),
    "test": ("test",),
}
SHORT = {"cifar10": "torchvision:CIFAR10", "cifar100": "torchvision:CIFAR100"}
LARGEST_KEPT = 128
DEFAULT_SIZE = 64
PROBED = 32


def cache_folder() -> Path:
    """Where downloads go when `data.root` names no folder: gkd in the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "gkd"


def known_sets() -> list[str]:
    """Names of torchvision's classification sets."""
    found = ((name, getattr(datasets, name, None)) for name in datasets.__all__ if name not in NOT_ONE_CLASS)
    return [name for name, kind in found if inspect.isclass(kind) and "target_transform" in _arguments(kind)]


def torchvision_set(source: str, root: Path | None, image_size: int | None, channels: int | None) -> Source:
    """A set by its class name, with the set's further arguments after a question mark.

    Args:
        source: "cifar10", "cifar100", "torchvision:NAME" or "torchvision:NAME?argument=value&…".
        root: where it lies or is downloaded to; null is the cache.
        image_size: side in pixels; null keeps the set's own where its images are square, alike and up to 128, else 64.
        channels: 1 or 3; null is 1 where the images are grey, else 3.
    Raises:
        GkdError: no such set, an argument it does not have, it cannot be had, or its targets are not classes.
    """
    name, _, query = SHORT.get(source, source).removeprefix("torchvision:").partition("?")
    if name not in known_sets():
        raise GkdError(unknown("data.source: the torchvision set", name, known_sets()))
    options = {key: int(value) if value.isdecimal() else value for key, value in parse_qsl(query)}
    opened = _open_splits(source, getattr(datasets, name), root or cache_folder(), options)
    labels = {split: _labels(source, dataset) for split, dataset in opened.items()}
    # A test without published labels is of no use here.
    have = {split: found for split, found in labels.items() if found is not None}
    if "train" not in have:
        raise GkdError(f"{source} has no class for each training image: it is not a classification set")
    if "test" not in have and "validation" in have:
        have["test"], opened["test"] = have.pop("validation"), opened["validation"]

    size, depth = _own_shape(opened["train"])
    size, depth = image_size or size, channels or depth
    present = np.unique(have["train"])
    names = _class_names(opened["train"], present)
    splits: dict[SplitName, Examples] = {}
    for split, found in have.items():
        if strangers := sorted(set(found.tolist()) - set(present.tolist())):
            raise GkdError(f"class {strangers[0]} is in the {split} split of {source} but not in its training split")
        splits[split] = _examples(source, split, opened[split], found, np.searchsorted(present, found), size, depth)
    return Source(source, names, size, depth, splits, flip=name not in NOT_MIRRORED)


def _arguments(kind: type) -> dict[str, inspect.Parameter]:
    """Arguments of a set's constructor, those handed on to its base included."""
    found: dict[str, inspect.Parameter] = {}
    for base in kind.__mro__:
        parameters = inspect.signature(base.__init__).parameters  # type: ignore[misc]
        found = {**parameters, **found}
        if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
            break
    return {n: p for n, p in found.items() if n != "self" and p.kind is not inspect.Parameter.VAR_KEYWORD}


def _open_splits(source: str, kind: type, root: Path, options: dict[str, Any]) -> dict[SplitName, Any]:
    arguments = _arguments(kind)
    for option in options:
        if option not in arguments:
            raise GkdError(unknown(f"data.source {source!r}: argument", option, arguments))
    fixed = {**options}
    if "root" in arguments:
        root.mkdir(parents=True, exist_ok=True)
        fixed["root"] = str(root)
    if "download" in arguments:
        fixed["download"] = True
    chooses = next((word for word in ("train", "split") if word in arguments and word not in options), None)
    choices: dict[SplitName, tuple[Any, ...]] = {"train": (None,)}
    if chooses == "train":
        choices = {"train": (True,), "test": (False,)}
    elif chooses == "split":
        choices = {**SPLIT_WORDS}
    needed = (name for name, argument in arguments.items() if argument.default is argument.empty)
    if missing := [name for name in needed if name not in fixed and name != chooses]:
        raise GkdError(f"{source} needs {missing[0]}: write it as {source}{'&' if options else '?'}{missing[0]}=…")
    opened: dict[SplitName, Any] = {}
    for split, words in choices.items():
        for word in words:
            with contextlib.suppress(_NoSuchSplit):
                opened[split] = _open(source, kind, root, {**fixed, **({chooses: word} if chooses else {})}, word)
                break
    return opened


class _NoSuchSplit(Exception):
    """The set has no split by this word."""


def _open(source: str, kind: type, root: Path, arguments: dict[str, Any], word: str | bool | None) -> Any:
    try:
        # torchvision prints what it downloads; stdout is for the result.
        with contextlib.redirect_stdout(sys.stderr), _careful_extraction():
            return kind(**arguments)
    except Exception as error:  # network, archives, missing packages: torchvision has no common base for its errors
        # Sets check the word before anything else, so a refused word is not a failed download.
        if f"Unknown value '{word}'" in str(error):
            raise _NoSuchSplit from None
        reason = " ".join(str(error).split()) or type(error).__name__
        raise GkdError(
            f"{source} cannot be opened in {root} ({reason}): check the network, or put the set there as torchvision "
            "expects it, or name the folder that has it as data.root"
        ) from None


@contextlib.contextmanager
def _careful_extraction() -> Iterator[None]:
    """torchvision unpacks tar archives without a filter: paths and links that lead outside, and devices, are refused.

    (Its zip archives are unpacked by zipfile, which drops `..` and leading slashes by itself.) Python before 3.11.4
    has no filter, so there nothing is unpacked; a set that lies there unpacked is read.
    """
    name, checked = ("extraction_filter", staticmethod(tarfile.data_filter)) if SAFE_TAR else ("extractall", _refuse)
    before = vars(tarfile.TarFile)[name]
    setattr(tarfile.TarFile, name, checked)
    try:
        yield
    finally:
        setattr(tarfile.TarFile, name, before)


def _refuse(archive: tarfile.TarFile, *_: Any, **__: Any) -> None:
    version = ".".join(map(str, sys.version_info[:3]))
    raise GkdError(f"Python {version} cannot unpack {archive.name!s} safely: unpack it yourself, or use Python 3.11.4")


def _labels(source: str, dataset: Any) -> NDArray[np.int64] | None:
    """The class of every image [N] int64 without decoding any, where the set keeps them; null where there are none."""
    candidates: list[Any] = [getattr(dataset, name, None) for name in ("targets", "_labels", "labels", "y")]
    for name in ("_samples", "samples"):
        pairs = getattr(dataset, name, None)
        if isinstance(pairs, list) and pairs and isinstance(pairs[0], tuple) and len(pairs[0]) == 2:
            candidates.append([label for _, label in pairs])
    for candidate in candidates:
        if candidate is not None and (found := _whole_numbers(candidate, len(dataset))) is not None:
            return found
    return _whole_numbers([dataset[i][1] for i in range(len(dataset))], len(dataset))


def _whole_numbers(values: Iterable[Any], count: int) -> NDArray[np.int64] | None:
    try:
        found = np.asarray(values)
    except (ValueError, TypeError, RuntimeError):
        return None
    if found.shape != (count,) or not np.issubdtype(found.dtype, np.integer) or (count and found.min() < 0):
        return None
    return found.astype(np.int64)


def _examples(
    source: str,
    split: SplitName,
    dataset: Any,
    own: NDArray[np.int64],
    labels: NDArray[np.int64],
    size: int,
    channels: int,
) -> Examples:
    def read(position: int) -> NDArray[np.uint8]:
        try:
            image, target = dataset[position]
        except Exception as error:
            said = " ".join(str(error).split()) or type(error).__name__
            raise Unreadable(f"the data set cannot give it: fetch it again ({said})") from None
        if not isinstance(image, Image.Image):
            raise GkdError(
                f"{source} gives a {type(image).__name__} where an image was expected: it cannot be prepared"
            )
        if int(target) != own[position]:
            raise GkdError(f"{source} gives class {int(target)} for image {position} and keeps {own[position]} for it")
        return fit(image, size, channels)

    names = tuple(f"{split}/{i}" for i in range(len(labels)))
    return Examples(labels.astype(np.int64), read, names)


def _own_shape(dataset: Any) -> tuple[int, int]:
    """Side and channels the set's images have, from some spread over it."""
    positions = np.unique(np.linspace(0, len(dataset) - 1, PROBED).astype(int))
    images = [dataset[int(i)][0] for i in positions]
    sizes = {image.size for image in images}
    width, height = next(iter(sizes))
    alike = len(sizes) == 1 and width == height <= LARGEST_KEPT
    return width if alike else DEFAULT_SIZE, 1 if all(image.mode in ("L", "1") for image in images) else 3


def _class_names(dataset: Any, present: NDArray[np.int64]) -> tuple[str, ...]:
    """Names of the classes that occur; numbers where the set has no names."""
    kept = getattr(dataset, "classes", None)
    if not isinstance(kept, (list, tuple)) or len(kept) <= present.max():
        return tuple(str(label) for label in present)
    names = [", ".join(kept[i]) if isinstance(kept[i], (list, tuple)) else str(kept[i]) for i in present]
    # A name that occurs twice is told apart by its number.
    return tuple(n if names.count(n) == 1 else f"{n} ({i})" for n, i in zip(names, present, strict=True))
