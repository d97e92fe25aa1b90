"""Data for a notebook or a script: whatever holds labelled images, as prepared data."""

import contextlib
import functools
import re
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Subset

from gkd_core.config.schema import FILES
from gkd_core.data.images import Crop, fit
from gkd_core.data.prepare import StoreOption, write_prepared
from gkd_core.data.prepared import PreparedData
from gkd_core.data.sources import KNOWN, files_of, open_source
from gkd_core.data.sources.address import is_address
from gkd_core.data.sources.base import SPLITS, Examples, Source
from gkd_core.data.sources.folder import pictures as folder_of_pictures
from gkd_core.data.unlabelled import add_unlabelled, refuse_inside
from gkd_core.errors import GkdError, unknown
from gkd_core.files import whole_folder

# Arguments of `load_data` as the sources speak of them, in the words of params.yaml.
PARAMETERS = re.compile(
    r"^data: |(?<![\w./-])data\.(source|root|image_size|channels|seed|train_images|validation_fraction|test_fraction|"
    r"unreadable|store_size|store|crop|leakage|columns|group|unlabelled)\b",
    re.MULTILINE,
)


class Labelled(Sized, Protocol):
    """A torch `Dataset` of (image, label): a Pillow image or a tensor [C, H, W], and an int."""

    def __getitem__(self, index: int, /) -> Any: ...


def load_data(
    source: str | Path | Sequence[Labelled],
    *,
    image_size: int | None = None,
    channels: int | None = None,
    classes: Sequence[str] | None = None,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.2,
    train_images: int | None = None,
    seed: int = 0,
    unreadable: Literal["refuse", "drop"] = "refuse",
    leakage: Literal["refuse", "allow"] = "refuse",
    store: StoreOption = "auto",
    store_size: int | None = None,
    crop: Crop = "center",
    unlabelled: str | Path | None = None,
    root: str | Path | None = None,
    columns: Mapping[str, str] | None = None,
    group: str | None = None,
    cache: str | Path | None = None,
) -> PreparedData:
    """Labelled images in three splits, all of one size. A split that the source does not have is taken from train.

    The images are read once and kept as uint8 in a temporary folder, which goes when the result and this process do;
    with `cache` in a folder of yours.

    Args:
        source: "digits", "cifar10", "cifar100", "torchvision:NAME"; a folder with a folder of images for each class, or
            with train/, val/, test/ of such; a list of images (.csv, .parquet); a Hugging Face data set that was saved
            to disk; an archive of a folder, or an address of any (s3://, gs://, https://); a folder that `gkd prepare`
            or a `cache` made; or torch `Dataset`s of your own, in the order train, validation, test. Their items are
            (image, label): a Pillow image, or a tensor [C, H, W] of uint8 or of floats in [0, 1], not normalised. Each
            item is read once, so what changes images at random belongs into the training.
        image_size: side in pixels; None keeps the source's own (a folder's is 64, a data set's that of its first
            image). The centre square is scaled to it, see `crop`.
        channels: 1 or 3; None keeps the source's own.
        classes: class names for data sets of your own, in the order of their labels; None takes the `classes` of the
            first, or numbers.
        validation_fraction, test_fraction: of the training images, for a split that is missing; stratified by class.
        train_images: how many training images to keep, stratified by class; the others are in no split.
        seed: of what is taken.
        unreadable: what happens to a folder with files that cannot be decoded.
        leakage: what happens to copies of one picture in a folder: "refuse" those in two of its splits and keep the
            others together where a split is taken from train, or "allow" them anywhere.
        store: how the training pictures of a folder are kept: whole (`raw`, or `compressed` as JPEG), as `squares`, or
            squares up to 64 pixels and whole above (`auto`). A training draws its windows from all of a whole picture.
        store_size: shorter side of whole pictures in pixels; None is 1.15 times `image_size`.
        crop: how a square is made of a picture that is not trained on: its centre, all of it out of proportion
            (`squash`), or all of it between grey borders (`border`).
        unlabelled: a folder of pictures without classes, at any depth: `distill` lets the teacher's answers teach on
            them (`unlabelled_fraction`). One with the pixels of a validation or test image is left out.
        root: where the files of a named source are, or are downloaded to; None is a cache of gkd's. With it `source`
            may be "folder", "list" or "huggingface", for an archive of a list, say.
        columns: names of a table's columns "image", "label" and "split", where they are none of the usual.
        group: the column, or of a folder the regular expression, that tells what is kept in one split.
        cache: a folder to keep the prepared images in. If it is there already it is read, and `source` is not; a
            `source` that is prepared already is used where it lies.
    Returns:
        `classes`, and `train`, `validation`, `test`, each with `images` [N, S, S, C] and `labels` [N]; `unlabelled`,
        such a split or None; `info` says the rest.
    Raises:
        GkdError: the source is not there, is damaged, or cannot be split; images that are not in [0, 1]; a cache of
            other images.

    Example:
        >>> data = load_data("digits")
        >>> len(data.classes), data.train.images.shape
        (10, (1293, 8, 8, 1))
    """
    cached = Path(cache) if cache is not None else None
    prepared = Path(source) if isinstance(source, str | Path) and Path(source, "dataset.json").is_file() else cached
    if prepared is not None and prepared.exists():
        return _as_asked(PreparedData.open(prepared), image_size, channels, classes, unlabelled)
    with _in_words_of_this_call():
        _refuse_wrong(
            image_size=image_size, channels=channels, validation_fraction=validation_fraction,
            test_fraction=test_fraction, train_images=train_images, seed=seed, unreadable=unreadable, leakage=leakage,
            store=store, store_size=store_size, crop=crop,
        )  # fmt: skip
        opened = _open(source, root, image_size, channels, classes, columns, group)
        pictures = None if unlabelled is None else _open_unlabelled(unlabelled, source, opened)
        write = functools.partial(
            write_prepared,
            opened,
            validation_fraction=validation_fraction,
            test_fraction=test_fraction,
            train_images=train_images,
            seed=seed,
            unreadable=unreadable,
            leakage=leakage,
            store=store,
            store_size=store_size,
            crop=crop,
        )

        def prepare(folder: Path) -> None:
            info = write(folder)
            if pictures is not None:
                add_unlabelled(folder, info, pictures, unreadable=unreadable)

        if cached is not None:
            with whole_folder(cached, kind="data", option="cache") as folder:
                prepare(folder)
            return PreparedData.open(cached, check=False)
        temporary = Path(tempfile.mkdtemp(prefix="gkd-data-"))
        try:
            prepare(temporary)
            data = PreparedData.open(temporary, check=False)
        except BaseException:
            shutil.rmtree(temporary)
            raise
        weakref.finalize(data, shutil.rmtree, temporary, ignore_errors=True)  # arrays that are open stay readable
        return data


@contextlib.contextmanager
def _in_words_of_this_call() -> Iterator[None]:
    """What params.yaml calls `data.train_images` is the argument `train_images` here."""
    try:
        yield
    except GkdError as error:
        raise GkdError(PARAMETERS.sub(lambda found: found[1] or "", str(error))) from None


def _refuse_wrong(**given: object) -> None:
    """Raises: GkdError: an argument is not what `data` of params.yaml may be, a sentence each."""
    from gkd_core.config import DataConfig, parse_section

    parse_section(DataConfig, {"source": "folder", "root": ".", **given}, "data")


def _as_asked(
    data: PreparedData,
    image_size: int | None,
    channels: int | None,
    classes: Sequence[str] | None,
    unlabelled: str | Path | None,
) -> PreparedData:
    """The same. Raises: GkdError: it is prepared otherwise than asked."""
    info = data.info
    wanted = {"image_size": image_size, "channels": channels, "classes": None if classes is None else tuple(classes)}
    for name, value in wanted.items():
        if value is not None and value != getattr(info, name):
            raise GkdError(
                f"the prepared images in {data.folder} have {name} {getattr(info, name)}, not {value}: remove that "
                "folder to prepare them again, or leave the argument out"
            )
    if unlabelled is not None and info.unlabelled is None:
        raise GkdError(
            f"the prepared images in {data.folder} have none without a class: remove that folder to prepare them "
            "again, or leave unlabelled out"
        )
    return data


def _open_unlabelled(unlabelled: str | Path, source: str | Path | Sequence[Labelled], opened: Source) -> Source:
    """Pictures without a class, of the size of the others."""
    place = Path(unlabelled).expanduser()
    root = Path(source).expanduser() if opened.name == "folder" and isinstance(source, str | Path) else None
    refuse_inside(place, root, "unlabelled", "source")
    return folder_of_pictures(place, opened.image_size, opened.channels, option="unlabelled")


def _open(
    source: str | Path | Sequence[Labelled],
    root: str | Path | None,
    image_size: int | None,
    channels: int | None,
    classes: Sequence[str] | None,
    columns: Mapping[str, str] | None,
    group: str | None,
) -> Source:
    if not isinstance(source, str | Path):
        return _datasets(source, image_size, channels, classes)
    if classes is not None:
        raise GkdError("classes names the classes of data sets of your own, and this source has its own: leave it out")
    known = [name for name in KNOWN if name not in FILES]
    named = isinstance(source, str) and (source in known or source.startswith("torchvision:"))
    if named or (source in FILES and root is not None):
        return open_source(str(source), root, image_size, channels, columns=columns, group=group, option="root")
    if not is_address(source) and not Path(source).expanduser().exists():
        if isinstance(source, Path) or "/" in source:
            raise GkdError(f"source {source} is not there: name a folder, an archive or a list of images")
        places = ["a folder, an archive or a list of images", "an address", "Datasets of your own"]
        raise GkdError(unknown("data source", str(source), [*known, *places]))
    return open_source(files_of(source), source, image_size, channels, columns=columns, group=group, option="source")


def _datasets(
    datasets: Sequence[Labelled], image_size: int | None, channels: int | None, classes: Sequence[str] | None
) -> Source:
    """Up to three data sets as a source of gkd's."""
    if not 1 <= len(datasets) <= len(SPLITS) or not all(hasattr(each, "__getitem__") for each in datasets):
        raise GkdError(
            "give one to three data sets in the order train, validation, test: load_data((train, validation))"
        )
    if empty := [name for name, each in zip(SPLITS, datasets, strict=False) if not len(each)]:
        raise GkdError(f"the {empty[0]} data set has no images: leave it out, or give it some")
    first = _pixels(datasets[0][0][0], "the first training image")
    size = image_size or min(first.shape[:2])
    depth = channels or first.shape[2]
    labels = {name: _labels(each) for name, each in zip(SPLITS, datasets, strict=False)}
    highest, lowest = max(each.max() for each in labels.values()), min(each.min() for each in labels.values())
    names = classes if classes is not None else getattr(datasets[0], "classes", None)
    names = tuple(str(name) for name in names) if names else tuple(str(label) for label in range(highest + 1))
    if not 0 <= lowest <= highest < len(names):
        raise GkdError(
            f"the labels go from {lowest} to {highest}, and there are {len(names)} classes: a label is a position in "
            "classes, counted from 0"
        )
    splits = {
        name: Examples(labels[name], _reader(each, f"image {{}} of the {name} data set", size, depth))
        for name, each in zip(SPLITS, datasets, strict=False)
    }
    return Source("datasets", names, size, depth, splits, flip=False)


def _reader(dataset: Labelled, where: str, size: int, channels: int) -> Any:
    def read(position: int) -> NDArray[np.uint8]:
        image = dataset[position][0]
        return fit(image if isinstance(image, Image.Image) else _pixels(image, where.format(position)), size, channels)

    return read


def _labels(dataset: Labelled) -> NDArray[np.int64]:
    """The labels alone where they can be had without decoding the images, as torchvision's data sets have them."""
    if isinstance(dataset, Subset):
        rows: NDArray[np.int64] = _labels(dataset.dataset)[np.asarray(dataset.indices)]  # type: ignore[arg-type]
        return rows
    targets = getattr(dataset, "targets", None)
    if targets is None or getattr(dataset, "target_transform", None) is not None:
        targets = [dataset[position][1] for position in range(len(dataset))]
    try:
        numbers = np.asarray([float(target) for target in targets])
    except (TypeError, ValueError, RuntimeError) as error:
        raise GkdError(f"a label is not a number ({error}): give positions in classes, counted from 0") from None
    if (broken := ~(np.isfinite(numbers) & (numbers == np.trunc(numbers)))).any():
        raise GkdError(f"label {numbers[broken][0]:g} is not whole: give positions in classes, counted from 0")
    return numbers.astype(np.int64)


def _pixels(image: Any, where: str) -> NDArray[np.uint8]:
    """uint8 [H, W, C] of a Pillow image or a tensor [C, H, W]."""
    if isinstance(image, Image.Image):
        plain = np.asarray(image.convert("L" if image.mode in ("1", "L", "I;16") else "RGB"))
        return plain.reshape(*plain.shape[:2], -1)
    if not isinstance(image, Tensor) or image.ndim != 3 or image.shape[0] not in (1, 3):
        shape = f" of shape {list(image.shape)}" if hasattr(image, "shape") else ""
        raise GkdError(
            f"{where} is a {type(image).__name__}{shape}: a data set gives Pillow images, or tensors [C, H, W] with "
            "one channel or three"
        )
    if image.is_floating_point():
        low, high = float(image.min()), float(image.max())
        if not 0 <= low <= high <= 1:
            raise GkdError(
                f"{where} has values from {low:.3g} to {high:.3g}: give images in [0, 1], not normalised (a network "
                "does that for itself)"
            )
        image = (image * 255).round()
    elif image.dtype != torch.uint8:
        raise GkdError(f"{where} is {image.dtype}: give uint8, or floats in [0, 1]")
    return np.ascontiguousarray(image.to(torch.uint8).permute(1, 2, 0).cpu().numpy())
