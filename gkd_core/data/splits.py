"""Which example goes to which split: decided on labels and groups alone, before anything is decoded."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split

from gkd_core.data.duplicates import groups_of
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
    together: Iterable[Sequence[int]] = (),
) -> dict[SplitName, Chosen]:
    """Train, validation and test: the source's own where it has them, else taken from train, stratified by class.

    The examples of one group (`Examples.groups`) are in one split. The same labels, groups, fractions and seed give the
    same splits; where there are no groups, or each has one example, they are those without.

    Args:
        excluded: positions to leave out, by the source's split.
        train_images: how many of the training split to keep, stratified by class; the others are in no split.
        together: positions of the source's train that stay in one split besides, such as copies of one picture.
    Raises:
        GkdError: a class without images, or with too few (or in too few groups) to be in every split taken from train;
            a group in two of the source's own splits; fewer training images than `train_images`.
    """
    chosen: dict[SplitName, Chosen] = {}
    for name, examples in source.splits.items():
        out = np.array(sorted((excluded or {}).get(name, ())), dtype=np.int64)
        chosen[name] = Chosen(name, np.setdiff1d(np.arange(len(examples.labels)), out, assume_unique=True))
        if not len(chosen[name].positions):
            raise GkdError(f"the {name} split of {source.name} has no images: add some, or remove the split")
    labels = source.splits["train"].labels
    _check_classes(source, labels[chosen["train"].positions])
    _refuse_leak(source, chosen)
    groups = _joined(source.splits["train"].groups, together, len(labels))
    fractions: tuple[tuple[SplitName, float], ...] = (("test", test_fraction), ("validation", validation_fraction))
    for name, fraction in fractions:
        if name not in chosen:
            kept, taken = _take(source, labels, groups, chosen["train"].positions, name, fraction, seed)
            chosen["train"], chosen[name] = Chosen("train", kept), Chosen("train", taken)
    if train_images is not None:
        origin, positions = chosen["train"]
        chosen["train"] = Chosen(origin, _some(source, labels, positions, train_images, seed))
    return {name: chosen[name] for name in SPLITS}


def _joined(groups: Sequence[str], together: Iterable[Sequence[int]], count: int) -> NDArray[np.str_]:
    """A group's name for each of `count` examples, "" where it has none: `groups`, joined where `together` has two."""
    linked = [(positions[0], position) for positions in together for position in positions[1:]]
    if not linked:
        return np.array(groups or ())
    first: dict[str, int] = {}
    linked += [(first.setdefault(name, position), position) for position, name in enumerate(groups) if name]
    numbers = groups_of(count, np.array(linked, dtype=np.int64))
    alone = np.bincount(numbers)[numbers] == 1
    return np.where(alone, "", numbers.astype(np.str_))


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
    parts = _stratified(labels, positions, seed, train_size=count)
    if parts is None or set(labels[parts[0]]) != set(labels[positions]):
        raise GkdError(
            f"data.train_images is {count}, too few for the {len(source.classes)} classes of {source.name} to be in it "
            "in proportion: raise it"
        )
    return parts[0]


def _take(
    source: Source,
    labels: NDArray[np.int64],
    groups: NDArray[np.str_],
    positions: NDArray[np.int64],
    name: str,
    fraction: float,
    seed: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions that stay and positions taken, each class in proportion and in both, no group in both."""
    named = groups[positions][groups[positions] != ""] if len(groups) else groups
    grouped = len(np.unique(named)) < len(named)
    parts = (
        _stratified_by_group(labels, groups, positions, fraction, seed)
        if grouped
        else _stratified(labels, positions, seed, test_size=fraction)
    )
    if parts is None or not set(labels[parts[0]]) == set(labels[parts[1]]) == set(labels[positions]):
        counts = np.bincount(labels[positions], minlength=len(source.classes))
        if grouped:
            missing = [c for c in np.unique(labels[positions]) if any(c not in labels[part] for part in parts or ())]
            scarce, groups_too = int(missing[0]), ", with those of a group together (as copies of one picture are)"
        else:
            scarce, groups_too = int(np.argmin(counts)), ""
        raise GkdError(
            f"class {source.classes[scarce]!r} of {source.name} has {counts[scarce]} "
            f"image{'' if counts[scarce] == 1 else 's'} to split{groups_too}, too few for a {name} split of "
            f"{fraction:g}: give it {int(np.ceil(1 / fraction))} or more{' groups' if grouped else ''}, remove the "
            f"class, or raise data.{name}_fraction"
        )
    return parts


def _stratified_by_group(
    labels: NDArray[np.int64], groups: NDArray[np.str_], positions: NDArray[np.int64], fraction: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Two parts of the positions, each class in proportion as far as whole groups allow.

    The rule of scikit-learn's StratifiedGroupKFold, for two parts of any size and in linear time: groups in random
    order, those of the most uneven classes first, each to the part in which its classes are further behind.
    """
    members: dict[str | int, list[int]] = defaultdict(list)
    for position in positions.tolist():
        members[str(groups[position]) or position].append(position)
    found = list(members.values())
    counts = [Counter(labels[group].tolist()) for group in found]
    order = np.random.default_rng(seed).permutation(len(found)).tolist()
    order.sort(key=lambda i: -max(counts[i].values()))
    totals = np.bincount(labels[positions]).tolist()
    parts: tuple[list[int], list[int]] = ([], [])
    ahead = [0.0] * len(totals)  # of each class: how much fuller the part that stays is than the part that is taken
    for i in order:
        share = {c: n / totals[c] for c, n in counts[i].items()}
        if_kept = sum((ahead[c] + n / (1 - fraction)) ** 2 for c, n in share.items())
        if_taken = sum((ahead[c] - n / fraction) ** 2 for c, n in share.items())
        parts[if_taken < if_kept].extend(found[i])
        for c, n in share.items():
            ahead[c] += -n / fraction if if_taken < if_kept else n / (1 - fraction)
    return np.sort(parts[0]), np.sort(parts[1])


def _stratified(
    labels: NDArray[np.int64], positions: NDArray[np.int64], seed: int, **size: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """Two parts of the positions, each class in proportion; None where one part has fewer images than classes."""
    try:
        kept, taken = train_test_split(positions, random_state=seed, stratify=labels[positions], **size)
    except ValueError:
        return None
    return np.sort(kept), np.sort(taken)


def _refuse_leak(source: Source, chosen: Mapping[SplitName, Chosen]) -> None:
    """Raises: GkdError: a group is in two of the source's own splits."""
    seen: dict[str, SplitName] = {}
    for name, (_, positions) in chosen.items():
        groups = source.splits[name].groups
        for group in {groups[position] for position in positions.tolist()} - {""} if groups else ():
            if seen.setdefault(group, name) != name:
                raise GkdError(
                    f"group {group!r} of {source.name} is in the {seen[group]} split and in the {name} split, so the "
                    "one would tell of the other: move its images into one of them"
                )


def _check_classes(source: Source, labels: NDArray[np.int64]) -> None:
    empty = [source.classes[i] for i in np.flatnonzero(np.bincount(labels, minlength=len(source.classes)) == 0)]
    if empty:
        raise GkdError(
            f"class {empty[0]!r} of {source.name} has no readable training image"
            f"{f', nor have {len(empty) - 1} others' if len(empty) > 1 else ''}: add images, or remove the class"
        )
    if len(source.classes) < 2:
        raise GkdError(f"{source.name} has one class, {source.classes[0]!r}: a classifier needs two or more")
