"""What a question's answer looks like: a table with goals beside measurements, and its place in a page."""

import importlib.util
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path

from gkd_core.cores import usable_cores

ROOT = Path(__file__).parents[1]
BEGIN = "<!-- bench {name}: written by `make bench`, not by hand -->"
END = "<!-- bench {name}: end -->"


@dataclass(frozen=True)
class Goal:
    """A bound on a ratio: the largest one wanted, or the smallest."""

    bound: float
    smallest: bool = False

    def __str__(self) -> str:
        return f"{'≥' if self.smallest else '≤'} {self.bound:.2f}"

    def met(self, measured: float) -> bool:
        """By the two digits that a table shows."""
        shown = round(measured, 2)
        return shown >= self.bound if self.smallest else shown <= self.bound


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        cells: what was measured, and numbers of it.
        ratio: None where there is none.
        goal: of the ratio, where there is one.
    """

    cells: tuple[str, ...]
    ratio: float | None = None
    goal: Goal | None = None

    def judged(self) -> tuple[str, str]:
        """Ratio and goal, as a table shows them."""
        if self.ratio is None:
            return "", "" if self.goal is None else f"{self.goal}, not measured"
        if self.goal is None:
            return f"{self.ratio:.2f}", ""
        return f"{self.ratio:.2f}", f"{self.goal}, {'met' if self.goal.met(self.ratio) else '**missed**'}"


@dataclass(frozen=True)
class Table:
    """The answer to a question.

    Attributes:
        how: what was measured and how, in a sentence or two.
        headings: of the rows' cells.
        ratio: what the ratio is of.
        rows: the measurements.
        named: how many of the first cells are a row's name; numbers follow.
    """

    how: str
    headings: tuple[str, ...]
    ratio: str
    rows: Sequence[Row]
    named: int = 1

    def markdown(self) -> str:
        lines = [(*self.headings, self.ratio, "goal"), ("---",) * (len(self.headings) + 2)]
        lines += [(*row.cells, *row.judged()) for row in self.rows]
        return "\n".join([self.how, "", *(f"| {' | '.join(line)} |" for line in lines)]) + "\n"


def goals(tables: dict[str, Table]) -> Table:
    """Every goal of these tables beside what was measured."""
    judged = [
        Row((name, ", ".join(row.cells[: table.named])), row.ratio, row.goal)
        for name, table in tables.items()
        for row in table.rows
        if row.goal is not None
    ]
    met = sum(row.ratio is not None and row.goal is not None and row.goal.met(row.ratio) for row in judged)
    return Table(f"{met} of {len(judged)} goals are met.", ("question", "what"), "ratio", judged)


def installed(package: str) -> bool:
    """Whether a peer is there to be measured."""
    return importlib.util.find_spec(package) is not None


def absent(package: str) -> str:
    """What a row says in place of a peer that is not installed."""
    return f"not measured: {package} is not installed (extra `bench`)"


def conditions() -> str:
    """On what this is measured: processor, cores, torch, day, commit, and how busy the machine is."""
    names = re.findall(r"^model name\s*: (.*)$", _text(Path("/proc/cpuinfo")), re.MULTILINE)
    name = names[0] if names else platform.processor() or platform.machine()
    return (
        f"{name}, {usable_cores()} cores, load {os.getloadavg()[0]:.1f} before it began; torch {version('torch')}; "
        f"{date.today().isoformat()}, commit {commit()}"
    )


def commit() -> str:
    """Of this checkout, and whether its files, but for the documents, are another's."""
    changes = ["git", "status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs"]
    asked = [["git", "rev-parse", "--short", "HEAD"], changes]
    try:
        revision, changed = (
            subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
            for command in asked
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{revision} with changes" if changed else revision


def _text(file: Path) -> str:
    return file.read_text() if file.is_file() else ""


def written(page: str, name: str, content: str) -> str:
    """The page with this content between the marks of a question.

    Raises:
        LookupError: it has no such marks, or not one pair.
    """
    begin, end = BEGIN.format(name=name), END.format(name=name)
    parts = re.split(f"(?s){re.escape(begin)}\n.*?{re.escape(end)}\n", page)
    if len(parts) != 2:
        raise LookupError(f"the page has {len(parts) - 1} places for {name}: give it one, {begin} and {end}")
    return f"{parts[0]}{begin}\n{content.strip()}\n{end}\n{parts[1]}"
