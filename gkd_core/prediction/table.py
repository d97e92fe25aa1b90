"""The table that comes out, as CSV, Parquet or JSON lines: the same columns, written row by row."""

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from gkd_core.data.sources.address import local_path
from gkd_core.decision import WORDS
from gkd_core.errors import GkdError
from gkd_core.files import kind_of, whole_file
from gkd_core.prediction.journal import Row

ENDINGS = (".csv", ".parquet", ".jsonl")
GROUP = 10_000  # rows of Parquet that are held and packed together


def columns(top: int, *, decides: bool = False) -> dict[str, type]:
    """Names and types of the columns, in order.

    Args:
        top: classes of each picture, the likeliest first: `class`, then `class_2`, `class_3`, …
        decides: the model says too when a picture is none of the classes.

    >>> list(columns(2))
    ['path', 'class', 'probability', 'class_2', 'probability_2', 'error']
    """
    named: dict[str, type] = {"path": str}
    if decides:
        named |= {"decision": str, "unsure": bool, "score": float}
    for rank in range(1, top + 1):
        ending = "" if rank == 1 else f"_{rank}"
        named |= {f"class{ending}": str, f"probability{ending}": float}
    return named | {"error": str}


def check_output(out: Path, places: Sequence[str] = (), option: str = "-o") -> None:
    """See that a table can be written there, before anything is done for it.

    Args:
        places: what is read.
    Raises:
        GkdError: its ending is none of `ENDINGS`, a package lacks, it is a folder or one of the places, or it would
            change a finished folder.
    """
    if out.suffix.lower() not in ENDINGS:
        raise GkdError(f"{option} {out} ends with none of {', '.join(ENDINGS)}: name a file that does")
    if out.suffix.lower() == ".parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError as error:
            raise GkdError(
                f"{option} {out} needs the package pyarrow: pip install 'gkd[tables]', or write a .csv ({error})"
            ) from None
    if out.is_dir():
        raise GkdError(f"{option} {out} is a folder: name a file")
    if any((read := local_path(place)) is not None and read.resolve() == out.resolve() for place in places):
        raise GkdError(f"{option} {out} would replace what is read: name another file")
    for above in out.absolute().parents:
        if kind_of(above) is not None:
            raise GkdError(f"{option} {out} lies in {above}, which gkd wrote and would be another then: name another")


def write_rows(out: Path, rows: Iterable[Row], named: dict[str, type]) -> None:
    """Write a table; `out` appears whole or not at all.

    Args:
        rows: what a row lacks of the columns is empty.
        named: the columns.
    """
    write = {".csv": _csv, ".parquet": _parquet, ".jsonl": _json_lines}[out.suffix.lower()]
    with whole_file(out) as stream:
        write(stream, ({name: row.get(name) for name in named} for row in rows), named)


def _csv(stream: BinaryIO, rows: Iterator[Row], named: dict[str, type]) -> None:
    text = io.TextIOWrapper(stream, encoding="utf-8", newline="", write_through=True)
    writer = csv.DictWriter(text, list(named), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: str(value).lower() if isinstance(value, bool) else value for key, value in row.items()})
    text.detach()


def _json_lines(stream: BinaryIO, rows: Iterator[Row], named: dict[str, type]) -> None:
    for row in rows:
        stream.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")


def _parquet(stream: BinaryIO, rows: Iterator[Row], named: dict[str, type]) -> None:
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    kinds: dict[type, Any] = {str: pyarrow.string(), float: pyarrow.float64(), bool: pyarrow.bool_()}
    schema = pyarrow.schema([(name, kinds[kind]) for name, kind in named.items()])
    with ParquetWriter(stream, schema) as writer:
        while group := list(islice(rows, GROUP)):
            writer.write_table(pyarrow.Table.from_pylist(group, schema))


def flat(answer: Mapping[str, Any]) -> Row:
    """The columns of what `gkd_core.serving.classify.answers` says of one picture."""
    row: Row = {}
    if "decision" in answer:
        named, score = answer["decision"], answer["score"]
        row = {"decision": WORDS if named is None else named, "unsure": named is None}
        row["score"] = score if math.isfinite(score) else None
    for rank, each in enumerate(answer["predictions"], start=1):
        ending = "" if rank == 1 else f"_{rank}"
        row |= {f"{name}{ending}": value for name, value in each.items()}
    return row
