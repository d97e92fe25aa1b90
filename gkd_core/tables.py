"""history.csv, steps.csv and their like: tables of numbers, read back."""

import csv
import math
from pathlib import Path

from gkd_core.errors import GkdError

LARGEST_CSV = 1 << 29  # bytes; a million steps take some sixty million

Row = dict[str, float | None]


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
