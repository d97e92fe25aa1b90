"""Which example goes to which split: decided on labels alone, before anything is decoded."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split

from gkd_core.data.sources.base import SPLITS, Source, SplitName
from gkd_core.errors import GkdError


class Chosen(NamedTuple):
    """Examples of one prepared split: `positions` [N] int64, rising, in the source's split `origin`."""

    origin: SplitName
    positions: NDArray[np.int64]


def choose_splits(
    source: Source,
    validation_fraction: float,
    test_fraction: float,
    seed: int,
    excluded: Mapping[SplitName, set[int]] | None = None,
    train_images: int | None = None,
) -> dict[SplitName, Chosen]:
    """Train, validation and test: the source's own where it has them, else taken from train, stratified by class.

    The same labels, fractions and seed give the same splits.

    Args:
        excluded: positions to leave out, by the source's split.
        train_images: how many of the training split to keep, stratified by class; the others are in no split.
    Raises:
        GkdError: a class without images, or with too few to be in every split taken from train; fewer training images
            than `train_images`.
    """
    chosen: dict[SplitName, Chosen] = {}
    for name, examples in source.splits.items():
        out = np.array(sorted((excluded or {}).get(name, ())), dtype=np.int64)
        chosen[name] = Chosen(name, np.setdiff1d(np.arange(len(examples.labels)), out, assume_unique=True))
        if not len(chosen[name].positions):
            raise GkdError(f"the {name} split of {source.name} has no images: add some, or remove the split")
    labels = source.splits["train"].labels
    _check_classes(source, labels[chosen["train"].positions])
    fractions: tuple[tuple[SplitName, float], ...] = (("test", test_fraction), ("validation", validation_fraction))
    for name, fraction in fractions:
        if name not in chosen:
            kept, taken = _take(source, labels, chosen["train"].positions, name, fraction, seed)
            chosen["train"], chosen[name] = Chosen("train", kept), Chosen("train", taken)
    if train_images is not None:
        origin, positions = chosen["train"]
        chosen["train"] = Chosen(origin, _some(source, labels, positions, train_images, seed))
    return {name: chosen[name] for name in SPLITS}


def _some(
    source: Source, labels: NDArray[np.int64], positions: NDArray[np.int64], count: int, seed: int
) -> NDArray[np.int64]:
    """`count` of the positions, each class in proportion and present."""
    if count == len(positions):
        return positions
    if count > len(positions):
        raise GkdError(
            f"data.train_images is {count}, but {source.name} leaves {len(positions)} images to train on: lower it, or "
            "set it to null"
        )
    too_few = GkdError(
        f"data.train_images is {count}, too few for the {len(source.classes)} classes of {source.name} to be in it in "
        "proportion: raise it"
    )
    try:
        kept, _ = train_test_split(positions, train_size=count, random_state=seed, stratify=labels[positions])
    except ValueError:  # fewer images in one part than there are classes
        raise too_few from None
    if not np.bincount(labels[kept], minlength=len(source.classes)).all():
        raise too_few
    return np.sort(kept)


def _take(
    source: Source, labels: NDArray[np.int64], positions: NDArray[np.int64], name: str, fraction: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions that stay and positions taken, each class in proportion and in both."""
    counts = np.bincount(labels[positions], minlength=len(source.classes))
    parameter = f"data.{name}_fraction"
    scarce = int(np.argmin(counts))
    few = int(counts[scarce])
    too_few = GkdError(
        f"class {source.classes[scarce]!r} of {source.name} has {few} image{'' if few == 1 else 's'} to "
        f"split, too few for a {name} split of {fraction:g}: give it {int(np.ceil(1 / fraction))} or more, remove the "
        f"class, or raise {parameter}"
    )
    if few < 2:
        raise too_few
    try:
        kept, taken = train_test_split(positions, test_size=fraction, random_state=seed, stratify=labels[positions])
    except ValueError:  # fewer images in one part than there are classes
        raise too_few from None
    for part in (kept, taken):
        if not np.bincount(labels[part], minlength=len(source.classes)).all():
            raise too_few
    return np.sort(kept), np.sort(taken)


def _check_classes(source: Source, labels: NDArray[np.int64]) -> None:
    empty = [source.classes[i] for i in np.flatnonzero(np.bincount(labels, minlength=len(source.classes)) == 0)]
    if empty:
        raise GkdError(
            f"class {empty[0]!r} of {source.name} has no readable training image"
            f"{f', nor have {len(empty) - 1} others' if len(empty) > 1 else ''}: add images, or remove the class"
        )
    if len(source.classes) < 2:
        raise GkdError(f"{source.name} has one class, {source.classes[0]!r}: a classifier needs two or more")
