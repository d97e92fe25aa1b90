"""history.csv, steps.csv and their like: written, and tables of numbers read back."""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gkd_core.errors import GkdError
from gkd_core.files import write_bytes

LARGEST_CSV = 1 << 29  # bytes; a million steps take some sixty million

DIGITS = 6  # decimals of a measurement: more than any test set resolves, fewer than the order of additions disturbs

Row = dict[str, float | None]


def write_table(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as CSV, under the union of their columns in order of appearance; None is an empty cell."""
    rows = list(rows)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(path, text.getvalue().encode())


def markdown_table(lines: Sequence[Sequence[str]]) -> list[str]:
    """Lines of Markdown.

    Args:
        lines: the headings, then the cells of each row.

    >>> markdown_table([["name", "size"], ["a|b", "1 MB"]])
    ['| name | size |', '|---|---|', '| a\\\\|b | 1 MB |']
    """
    headings, *rows = (f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
    return [headings, f"|{'---|' * len(lines[0])}", *rows]


def rounded(value: Any) -> Any:
    """A number, or those in nested objects, with `DIGITS` decimals; everything else as it is."""
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    return round(value, DIGITS) if isinstance(value, float) else value


def read_table(path: Path) -> list[Row]:
    """The rows of a CSV file of numbers, whole ones as int; None where a cell is empty.

    Raises:
        GkdError: it is missing, damaged, or holds what is no number.
    """
    try:
        if path.stat().st_size > LARGEST_CSV:
            raise ValueError("it is far larger than any that gkd writes")
        with path.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream, strict=True))
        if any(None in row for row in rows):
            raise ValueError("a row has more cells than the first line has names")
        return [{key: _number(cell) for key, cell in row.items()} for row in rows]
    except (OSError, ValueError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise GkdError(f"{path} cannot be read ({reason}): run the step that makes it again") from None


def _number(cell: str | None) -> float | None:
    if not cell:
        return None
    if not math.isfinite(value := float(cell)):
        raise ValueError(f"{cell[:40]} is no finite number")
    return int(cell) if cell.isdecimal() else value
