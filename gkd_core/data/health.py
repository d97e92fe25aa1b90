"""What is wrong with a data set before anything is trained on it: `gkd check`, and part of every prepare of files.

Every picture is decoded once at reduced scale and looked at as 64 × 64 pixels: its size, whether it shows anything, and
whether it is there twice. A finding names its files. What `gkd prepare` refuses is an error, all else a warning.
"""

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gkd_core.cores import pool_size
from gkd_core.data.duplicates import BITS, SIDE, alike, groups_of, near_pairs, perceptual_hash, small_grey
from gkd_core.data.images import Unreadable, decoded, in_mode, not_opened, opened
from gkd_core.data.progress import progress
from gkd_core.data.sources.base import SPLITS, Source, SplitName
from gkd_core.errors import GkdError
from gkd_core.files import write_bytes

HASHED_FROM = 32  # shorter side in pixels below which a perceptual hash tells too little
DARK = 64  # of 255: brighter is at most one pixel in a hundred
BLANK = 3.0  # of 255: standard deviation of every channel
FEW = 20  # training images of a class

Verdict = Literal["refuse", "allow"]
KINDS = {
    "splits": "Train, validation and test cannot be made of these images.",
    "unreadable": "Files that cannot be decoded.",
    "leakage": "The same picture in two splits: a test that holds it measures memory.",
    "conflicting_labels": "The same picture in two classes: at most one of them is right.",
    "exact_duplicates": "The same file, byte by byte, more than once in a class.",
    "near_duplicates": "The same picture to the eye, more than once in a class: scaled, saved again, a frame later.",
    "label_issues": "Labels that a classifier which never saw the picture holds for wrong.",
    "blank": "Pictures of one colour.",
    "dark": f"Pictures in which 99 % of the pixels are darker than {DARK} of 255.",
    "small": "Pictures whose shorter side is less than half of data.image_size: they are enlarged more than twice.",
    "few_images": f"Classes with fewer than {FEW} training images.",
}
TWICE = ("leakage", "conflicting_labels", "exact_duplicates", "near_duplicates")


@dataclass(frozen=True)
class Look:
    """What one picture showed at a glance.

    Attributes:
        name: its file, or "train/12" where there are no files.
        split: of the source.
        label: position in the classes; −1 where it has none.
        position: in its split.
        unreadable: why it could not be decoded; the fields below are then empty.
        size: width and height in pixels, upright.
        mode: Pillow's: RGB, L, CMYK, …
        format: JPEG, PNG, …; "" where there are no files.
        digest: sha256 of the file, or of the pixels.
        hash: perceptual hash [256]; None where the picture is blank or too small for one.
        small: grey values uint8 [16, 16]; None where there is no hash.
        brightness: which 99 % of the pixels do not exceed, of 255.
        spread: largest standard deviation of a channel, of 255.
    """

    name: str
    split: SplitName
    label: int
    position: int
    unreadable: str = ""
    size: tuple[int, int] = (0, 0)
    mode: str = ""
    format: str = ""
    digest: str = ""
    hash: NDArray[np.bool_] | None = None
    small: NDArray[np.uint8] | None = None
    brightness: float = 0.0
    spread: float = 0.0

    @property
    def blank(self) -> bool:
        """One colour, so that nothing can be told of it."""
        return self.spread < BLANK


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: a picture, a group of the same pictures, or a class.

    Attributes:
        kind: one of `KINDS`.
        looks: the pictures.
        detail: what exactly, in a phrase.
        error: `gkd prepare` refuses it.
    """

    kind: str
    looks: tuple[Look, ...]
    detail: str
    error: bool = False


@dataclass(frozen=True)
class Health:
    """A source, all that was seen of it, and what was found."""

    source: Source
    looks: tuple[Look, ...]
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> tuple[Finding, ...]:
        """What `gkd prepare` refuses."""
        return tuple(finding for finding in self.findings if finding.error)

    def by_kind(self) -> dict[str, list[Finding]]:
        """The findings under their kind, in the order of `KINDS`."""
        return {kind: found for kind in KINDS if (found := [each for each in self.findings if each.kind == kind])}


def look_at(source: Source) -> tuple[Look, ...]:
    """Look at every picture of a source once, in its order; what cannot be read says why."""
    places = [(name, position) for name in SPLITS for position in range(_count(source, name))]
    looks = []
    parallel = all(examples.parallel for examples in source.splits.values())
    with (
        progress(f"check {source.name}", len(places), unit="images") as advance,
        ThreadPoolExecutor(pool_size() if parallel else 1) as pool,
    ):
        for look in pool.map(lambda place: _look(source, *place), places):
            looks.append(look)
            advance(1)
    return tuple(looks)


def _count(source: Source, name: SplitName) -> int:
    return len(source.splits[name].labels) if name in source.splits else 0


def _look(source: Source, name: SplitName, position: int) -> Look:
    examples = source.splits[name]
    shown = examples.names[position] if examples.names else f"{name}/{position}"
    look = Look(shown, name, int(examples.labels[position]), position)
    try:
        if examples.open is None:
            pixels = examples.read(position)
            digest = hashlib.sha256(pixels.tobytes()).hexdigest()
            image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
            return _seen(replace(look, size=image.size, mode=image.mode, digest=digest), image)
        with examples.open(position) as stream:
            content = stream.read()
        with opened(io.BytesIO(content)) as image:
            (width, height), mode, form = image.size, image.mode, image.format or ""
            upright = decoded(image, SIDE)
            if (width - height) * (upright.width - upright.height) < 0:  # it was on its side
                width, height = height, width
            digest = hashlib.sha256(content).hexdigest()
            return _seen(replace(look, size=(width, height), mode=mode, format=form, digest=digest), upright)
    except Unreadable as error:
        return replace(look, unreadable=str(error))
    except OSError as error:  # no permission, a link that leads nowhere
        return replace(look, unreadable=not_opened(error))


def _seen(look: Look, image: Image.Image) -> Look:
    pixels = np.asarray(in_mode(image, "RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR, reducing_gap=2.0))
    spread = float(pixels.std((0, 1)).max())
    brightness = float(np.percentile(pixels @ np.array([0.299, 0.587, 0.114]), 99))
    look = replace(look, brightness=brightness, spread=spread)
    if min(look.size) < HASHED_FROM or spread < BLANK:
        return look
    return replace(look, hash=perceptual_hash(pixels), small=small_grey(pixels))


def same_pictures(looks: Sequence[Look]) -> list[tuple[Look, ...]]:
    """Groups of two or more that are the same file or the same to the eye; blank pictures are in none."""
    hashed = [row for row, look in enumerate(looks) if look.hash is not None]
    hashes = np.array([looks[row].hash for row in hashed], dtype=np.bool_).reshape(len(hashed), BITS)
    small = np.array([looks[row].small for row in hashed], dtype=np.uint8).reshape(len(hashed), 16, 16)
    pairs = np.array(hashed, dtype=np.int64)[alike(near_pairs(hashes), small)].tolist()
    first: dict[str, int] = {}
    for row, look in enumerate(looks):
        if not look.unreadable and not look.blank and first.setdefault(look.digest, row) != row:
            pairs.append([first[look.digest], row])
    groups: dict[int, list[Look]] = {}
    numbers = groups_of(len(looks), np.array(pairs, dtype=np.int64).reshape(-1, 2))
    for row in sorted({row for pair in pairs for row in pair}):
        groups.setdefault(int(numbers[row]), []).append(looks[row])
    return [tuple(group) for group in groups.values()]


def examine(
    source: Source,
    looks: Sequence[Look],
    *,
    unreadable: Literal["refuse", "drop"] = "refuse",
    leakage: Verdict = "refuse",
    suspected: Iterable[Finding] = (),
) -> Health:
    """All that is wrong with a source.

    Args:
        looks: of `look_at`.
        unreadable, leakage: as in the section `data`: what is refused is an error.
        suspected: wrong labels (`gkd_core.evaluation.label_issues`).
    """
    found = [
        *(Finding("unreadable", (look,), look.unreadable, unreadable == "refuse") for look in looks if look.unreadable),
        *(_twice(group, source.classes, leakage) for group in same_pictures(looks)),
        *suspected,
        *_plain_to_see(source, looks),
        *_few(source, looks),
    ]
    order = list(KINDS)
    found.sort(key=lambda finding: order.index(finding.kind))  # stable: by name within a kind
    return Health(source, tuple(looks), tuple(found))


def _twice(group: tuple[Look, ...], classes: tuple[str, ...], leakage: Verdict) -> Finding:
    splits = [name for name in SPLITS if any(look.split == name for look in group)]
    labels = sorted({look.label for look in group if look.label >= 0})
    files = "the same file" if len({look.digest for look in group}) == 1 else "the same picture"
    between = f"{files} in the classes {' and '.join(repr(classes[label]) for label in labels)}"
    if len(splits) > 1:
        detail = f"{files} in {' and '.join(splits)}" if len(labels) < 2 else f"{between}, in {' and '.join(splits)}"
        return Finding("leakage", group, detail, leakage == "refuse")
    if len(labels) > 1:
        return Finding("conflicting_labels", group, between)
    kind = "exact_duplicates" if files == "the same file" else "near_duplicates"
    return Finding(kind, group, f"{files} {len(group)} times")


def _plain_to_see(source: Source, looks: Sequence[Look]) -> Iterator[Finding]:
    for look in looks:
        if look.unreadable:
            continue
        width, height = look.size
        if look.blank:
            yield Finding("blank", (look,), "one colour")
        elif look.brightness < DARK:
            yield Finding("dark", (look,), f"brightness {look.brightness:.0f} of 255")
        if 2 * min(width, height) < source.image_size:
            yield Finding("small", (look,), f"shorter side {min(width, height)} pixels")


def _few(source: Source, looks: Sequence[Look]) -> Iterator[Finding]:
    for label, name in enumerate(source.classes):
        members = tuple(look for look in looks if look.label == label and look.split == "train" and not look.unreadable)
        if len(members) < FEW:
            yield Finding("few_images", members, f"{name!r} has {len(members)}")


def copies_in_train(health: Health) -> list[list[int]]:
    """Positions in the source's train, copy by copy, that a split must not part."""
    groups = [
        [look.position for look in found.looks if look.split == "train"]
        for found in health.findings
        if found.kind in TWICE
    ]
    return [group for group in groups if len(group) > 1]


def summary(health: Health) -> dict[str, Any]:
    """health.json: counts, sizes and every finding with its files. Nothing in it tells of the machine."""
    readable = [look for look in health.looks if not look.unreadable]
    classes: dict[str, dict[str, int]] = {name: {} for name in health.source.classes}
    for (label, split), count in Counter((look.label, look.split) for look in health.looks if look.label >= 0).items():
        classes[health.source.classes[label]][split] = count
    sides = np.array([look.size for look in readable] or [(0, 0)])
    return {
        "format": 1,
        "source": health.source.name,
        "images": len(health.looks),
        "classes": classes,
        "width": _spread(sides[:, 0]),
        "height": _spread(sides[:, 1]),
        "modes": dict(sorted(Counter(look.mode for look in readable).items())),
        "formats": dict(sorted(Counter(look.format for look in readable if look.format).items())),
        "left_out": dict(sorted(Counter(each.reason for each in health.source.left_out).items())),
        "findings": {
            kind: [
                {"files": [look.name for look in each.looks], "detail": each.detail, "error": each.error}
                for each in found
            ]
            for kind, found in health.by_kind().items()
        },
    }


def _spread(values: NDArray[np.int64]) -> dict[str, int]:
    return {"min": int(values.min()), "median": int(np.median(values)), "max": int(values.max())}


def removals(health: Health) -> dict[str, str]:
    """What to remove, by name, and why: unreadable and blank pictures, and of the same pictures all but one.

    Of the same pictures one in the test split stays, else one in the validation split, so that what is measured is
    measured on the same images as before; then the one with most pixels, then the shortest name (`a.jpg` before
    `a (1).jpg`), then the first by name. Of a picture in two classes none stays: which of them is right, nobody told.
    """
    reasons: dict[str, str] = {}
    for finding in health.findings:
        if finding.kind in TWICE:
            labels = {look.label for look in finding.looks if look.label >= 0}
            kept = min(finding.looks, key=_to_keep) if len(labels) < 2 else None
            why = finding.detail if kept is None else f"{finding.detail}; {kept.name} stays"
            reasons |= {look.name: why for look in finding.looks if look is not kept}
        elif finding.kind in ("unreadable", "blank"):
            reasons |= {look.name: f"{finding.kind}: {finding.detail}" for look in finding.looks}
    return dict(sorted(reasons.items()))


def _to_keep(look: Look) -> tuple[int, int, int, str]:
    return -SPLITS.index(look.split), -look.size[0] * look.size[1], len(look.name), look.name


def write_fix_list(path: Path, reasons: Mapping[str, str]) -> None:
    """A CSV with the columns path, relative to the data's root, and reason."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([("path", "reason"), *reasons.items()])
    write_bytes(path, text.getvalue().encode())


def refuse_leakage(health: Health) -> None:
    """Raises: GkdError: the same picture is in two splits, and that is an error."""
    found = [finding for finding in health.errors if finding.kind == "leakage"]
    if found:
        named = " and ".join(look.name for look in found[0].looks[:2])
        more = f", and {len(found) - 1} more are" if len(found) > 1 else ""
        raise GkdError(
            f"{named} are {found[0].detail}{more}, so the one would tell of the other: remove one of them (`gkd check "
            "--fix-list FILE` lists what to remove), or set data.leakage to allow"
        )
