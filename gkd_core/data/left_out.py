"""What of a source is in no split: counted by reason and ending, as a warning, and as a file that names all of it."""

import csv
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from gkd_core.data.sources.base import LeftOut, Source
from gkd_core.data.sources.walk import LEADS_BACK, READ_ELSEWHERE, SYSTEM
from gkd_core.errors import GkdError

FILE = "left_out.csv"
FEW = 3  # that nobody needs to be told of
ENDINGS_NAMED = 5
NAMED_IN_SENTENCE = 3


def count_left_out(left_out: Iterable[LeftOut]) -> dict[str, dict[str, int]]:
    """{reason: {ending in small letters: how many}}, the most first."""
    by_reason: dict[str, Counter[str]] = {}
    for each in left_out:
        by_reason.setdefault(each.reason, Counter())[_ending(each.name)] += 1
    rows = sorted(by_reason.items(), key=lambda item: (-item[1].total(), item[0]))
    return {reason: dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))) for reason, counts in rows}


def unread(names: Mapping[str, str]) -> list[LeftOut]:
    """Pictures that could not be decoded, by name, and why."""
    return [LeftOut(name, f"cannot be read: {reason}") for name, reason in names.items()]


def refusal(reasons: Mapping[str, str], total: int, where: str = "") -> GkdError:
    """That pictures cannot be decoded, where `data.unreadable` is "refuse".

    Args:
        reasons: by name.
        total: how many pictures there are.
        where: what they are of, if that is not `data.root`.
    """
    named = "; ".join(f"{name} ({reasons[name]})" for name in sorted(reasons)[:NAMED_IN_SENTENCE])
    more = "; …" if len(reasons) > NAMED_IN_SENTENCE else ""
    return GkdError(
        f"{len(reasons)} of {total} images{where and f' of {where}'} cannot be read: {named}{more} — fix or delete "
        "them, or set data.unreadable to drop"
    )


def warnings_of(source: Source, root: str = "") -> list[str]:
    """Sentences on a source: its own, and one where more than a few files are left out or a link is not followed.

    Args:
        root: what to call the source; its name where that is empty.
    """
    told = {
        reason: counts
        for reason, counts in count_left_out(source.left_out).items()
        if reason != SYSTEM and (sum(counts.values()) > FEW or reason in (LEADS_BACK, READ_ELSEWHERE))
    }
    if not told:
        return list(source.warnings)
    named = "; ".join(f"{_listed(counts)} ({reason})" for reason, counts in told.items())
    used = sum(len(examples.labels) for examples in source.splits.values())
    left = sum(sum(counts.values()) for counts in told.values())
    return [*source.warnings, f"{left} of {used + left} files of {root or source.name} are left out: {named}"]


def write_left_out(folder: Path, left_out: Iterable[LeftOut]) -> None:
    """Write left_out.csv: every file and its reason, sorted by name."""
    with (folder / FILE).open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["file", "reason"])
        writer.writerows(sorted((each.name, each.reason) for each in left_out))


def _ending(name: str) -> str:
    return "a folder" if name.endswith("/") else PurePosixPath(name).suffix.lower() or "no ending"


def _listed(counts: dict[str, int]) -> str:
    named = [f"{number} × {ending}" for ending, number in list(counts.items())[:ENDINGS_NAMED]]
    more = sum(list(counts.values())[ENDINGS_NAMED:])
    return ", ".join([*named, *([f"{more} × other endings"] if more else [])])
