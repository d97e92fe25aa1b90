"""From a source to the prepared format: splits decided on labels, then one picture after another into its row."""

import logging
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from gkd_core.data.health import copies_in_train, examine, look_at, refuse_leakage
from gkd_core.data.health_page import write_health
from gkd_core.data.images import PREPARATION, Unreadable
from gkd_core.data.prepared import AugmentDefaults, DatasetInfo, SplitWriter, content_digest, write_info
from gkd_core.data.progress import progress
from gkd_core.data.sources.base import Examples, Source, SplitName
from gkd_core.data.splits import Chosen, choose_splits
from gkd_core.errors import GkdError

CHUNK_BYTES = 1 << 22
NAMED_IN_SENTENCE = 3

log = logging.getLogger(__name__)
Result = TypeVar("Result")


def write_prepared(
    source: Source,
    folder: Path,
    *,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.2,
    train_images: int | None = None,
    seed: int = 0,
    unreadable: Literal["refuse", "drop"] = "refuse",
    leakage: Literal["refuse", "allow"] = "refuse",
) -> DatasetInfo:
    """Write a source's three splits and dataset.json into an existing, empty folder.

    Pictures that cannot be read are all logged, then refused or dropped. With files dropped everything is what it would
    be had they never been there: the splits are decided again without them.

    Where the pictures are files, they are looked at first (`gkd_core.data.health`), and health.json and health.html
    tell what was found. Copies of one picture stay together in the splits that are taken from train, and are refused
    where the source has them in two splits of its own; with `leakage` "allow" the splits are decided without regard to
    them. A published benchmark (digits, CIFAR, torchvision's) is taken as it is.

    Raises:
        GkdError: a class is empty or too small for the splits, files cannot be read and `unreadable` is "refuse", or
            the same picture is in two splits and `leakage` is "refuse".
    """
    health = None
    if all(examples.open is not None for examples in source.splits.values()):
        health = examine(source, look_at(source), unreadable=unreadable, leakage=leakage)
        refuse_leakage(health)
    together = copies_in_train(health) if health is not None and leakage == "refuse" else []
    failed: dict[SplitName, dict[int, str]] = {}
    while True:
        excluded = {name: set(positions) for name, positions in failed.items()}
        chosen = choose_splits(source, validation_fraction, test_fraction, seed, excluded, train_images, together)
        writers, found = _write(source, chosen, folder)
        if not found:
            break
        if unreadable == "refuse":
            raise _refusal(source, found)
        for name, reasons in found.items():
            failed.setdefault(name, {}).update(reasons)
    hashes = {name: writer.close() for name, writer in writers.items()}
    mean, std = writers["train"].statistics()
    info = DatasetInfo(
        source=source.name,
        classes=source.classes,
        image_size=source.image_size,
        channels=3 if source.channels == 3 else 1,
        mean=mean,
        std=std,
        counts={name: len(c.positions) for name, c in chosen.items()},
        sha256=content_digest(source.classes, source.image_size, source.channels, hashes),
        # An eighth of the side: CIFAR's 4 of 32, the digits' 1 of 8.
        augment=AugmentDefaults(crop_padding=source.image_size // 8, flip=source.flip),
        dropped=tuple(sorted(source.splits[name].names[i] for name, reasons in failed.items() for i in reasons)),
        preparation=PREPARATION,
    )
    write_info(folder, info)
    if health is not None:
        write_health(folder, health)
    return info


def _write(
    source: Source, chosen: dict[SplitName, Chosen], folder: Path
) -> tuple[dict[SplitName, SplitWriter], dict[SplitName, dict[int, str]]]:
    """Write all rows; also what could not be read, as {the source's split: {position: reason}}."""
    writers: dict[SplitName, SplitWriter] = {}
    failed: dict[SplitName, dict[int, str]] = {}
    total = sum(len(c.positions) for c in chosen.values())
    rows_at_once = max(16, CHUNK_BYTES // (source.image_size**2 * source.channels))
    with progress(f"prepare {source.name}", total, unit="images") as advance:
        for name, (origin, positions) in chosen.items():
            shutil.rmtree(folder / name, ignore_errors=True)
            (folder / name).mkdir()
            examples = source.splits[origin]
            writers[name] = SplitWriter(folder / name, examples.labels[positions], source.image_size, source.channels)
            for start in range(0, len(positions), rows_at_once):
                rows = positions[start : start + rows_at_once]
                images = _read(examples, rows, failed.setdefault(origin, {}))
                # After a failure the arrays will not be kept: the rest is only looked through for more failures.
                if not any(failed.values()):
                    writers[name].append(images)
                advance(len(rows))
    return writers, {name: reasons for name, reasons in failed.items() if reasons}


def _read(examples: Examples, positions: NDArray[np.int64], failed: dict[int, str]) -> list[NDArray[np.uint8]]:
    def attempt(position: int) -> NDArray[np.uint8] | Unreadable:
        try:
            return examples.read(position)
        except Unreadable as error:
            return error

    # Pillow decodes outside the interpreter lock; map keeps the order.
    results = _map(attempt, positions.tolist(), examples.parallel)
    for position, result in zip(positions.tolist(), results, strict=True):
        if isinstance(result, Unreadable):
            failed[position] = str(result)
            log.warning("cannot read %s: %s", examples.names[position], result)
    return [result for result in results if not isinstance(result, Unreadable)]


def _map(function: Callable[[int], Result], positions: list[int], parallel: bool) -> list[Result]:
    if not parallel:
        return [function(position) for position in positions]
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        return list(pool.map(function, positions))


def _refusal(source: Source, failed: dict[SplitName, dict[int, str]]) -> GkdError:
    reasons = {source.splits[name].names[i]: reason for name, found in failed.items() for i, reason in found.items()}
    total = sum(len(examples.labels) for examples in source.splits.values())
    named = "; ".join(f"{name} ({reasons[name]})" for name in sorted(reasons)[:NAMED_IN_SENTENCE])
    more = "; …" if len(reasons) > NAMED_IN_SENTENCE else ""
    return GkdError(
        f"{len(reasons)} of {total} images cannot be read: {named}{more} — "
        "fix or delete them, or set data.unreadable to drop"
    )
