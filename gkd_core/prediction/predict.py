"""Pictures from anywhere → a table with a row for each, in order, whatever stops it in between.

Processes decode, one onnxruntime session answers in batches, and what is answered is kept beside the output
(`journal.py`) until all of it is there. Only some pictures are in memory at a time, however many there are.
"""

import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from gkd_core import __version__
from gkd_core.cores import pool_size
from gkd_core.data.progress import progress
from gkd_core.data.sources.address import local_path
from gkd_core.errors import GkdError
from gkd_core.files import json_digest
from gkd_core.prediction.entries import Entries
from gkd_core.prediction.journal import Journal, Row
from gkd_core.prediction.reading import Decoded, Entry, PictureFormat, Readers
from gkd_core.prediction.sorting import OPTION, Sorted, refuse_sorting
from gkd_core.prediction.table import check_output, columns, flat, write_rows
from gkd_core.serving.classify import NO_PICTURES, answers
from gkd_core.serving.model import Model

NOT_FINITE = "the model answers to it with NaN or infinity"
BATCH = 32  # pictures that go through the model together, if they are small
BATCH_BYTES = 1 << 23  # of their pixels: activations take some hundred times as much


def predict_to_table(
    model: Model,
    places: Sequence[str],
    out: Path,
    *,
    top: int = 3,
    processes: int | None = None,
    sort_into: Path | None = None,
    copy: bool = False,
) -> dict[str, Any]:
    """Classify pictures and write what comes out; `out` appears whole, and a run that was stopped is gone on with.

    Args:
        model: it answers as for `gkd predict` of one picture.
        places: pictures, folders (all pictures at any depth), lists (a row each) and addresses, in any number.
        out: .csv, .parquet or .jsonl.
        top: classes for each picture.
        processes: that decode; None is as many as there are cores for this one.
        sort_into: a new folder to link the pictures into, by class.
        copy: copies instead of links.
    Returns:
        `out`, `pictures`, `unreadable` (each has its reason in the column `error`), `unsure` (none of the classes,
        where the model decides), `left_out` (files that are no pictures), `resumed_from` (rows that were there of an
        earlier run), `sorted_into`.
    Raises:
        GkdError: the model takes no pictures, a place cannot be read or has no pictures, the output cannot be written,
            or pictures behind addresses are to be linked.
    """
    if model.picture is None:
        raise GkdError(NO_PICTURES)
    check_output(out, places)
    folders = [path for place in places if (path := local_path(place)) is not None and path.is_dir()]
    if sort_into is not None:
        refuse_sorting(sort_into, folders)
    form = PictureFormat(*model.picture, model.crop)
    batch = max(1, min(BATCH, BATCH_BYTES // (form.side**2 * form.channels)))
    top = min(top, len(model.classes))
    entries = Entries(places)
    if sort_into is not None and entries.addresses and not copy:
        raise GkdError(f"{OPTION} makes links, and none leads to an address: give --copy, which fetches the pictures")
    work = {"gkd": __version__, "model": model.sha256, "classes": list(model.classes), "top": top, "batch": batch}
    key = json_digest(work | {"entries": entries.digest})
    out.parent.mkdir(parents=True, exist_ok=True)
    with Journal(out, key, total=entries.count, batch=batch) as journal:
        if journal.discarded:
            print(
                f"gkd: the progress of {out} belongs to other pictures, options or another model: starting over",
                file=sys.stderr,
            )
        started = journal.done
        into = None
        if sort_into is not None:
            into = Sorted(sort_into, model.classes, key=key, sources=folders, copy=copy)
        with (
            Readers(form, processes or pool_size()) as readers,
            progress("predict", entries.count, unit="pictures") as advance,
        ):
            advance(journal.done)
            found = readers.read(entries.since(journal.done))
            while group := list(islice(found, batch)):
                journal.add(_predict_batch(model, group, top))
                advance(len(group))
        unreadable = sum("error" in row for row in journal.rows())
        unsure = sum(row.get("unsure", False) for row in journal.rows())
        if into is not None:
            _sort(into, journal.rows(), entries.since(0))
        write_rows(out, journal.rows(), columns(top, decides=model.decision is not None))
        if into is not None:
            into.finish()
        journal.remove()
        if into is not None:
            into.remove_mark()
    entries.close()
    return {
        "out": str(out),
        "pictures": entries.count,
        "unreadable": unreadable,
        **({} if model.decision is None else {"unsure": unsure}),
        "left_out": entries.left_out,
        "resumed_from": started,
        "sorted_into": None if sort_into is None else str(sort_into),
    }


def _predict_batch(model: Model, group: list[tuple[Entry, Decoded]], top: int) -> list[Row]:
    """The rows of some pictures, which go through the model together."""
    pictures = [picture for _, picture in group if not isinstance(picture, str)]
    said: Iterator[Row] = iter(())
    if pictures:
        found = model.answer(model.from_pictures(np.stack(pictures)))
        finite = np.isfinite(found[model.output.name])
        said = (
            flat(answer) if good.all() else {"error": NOT_FINITE}
            for answer, good in zip(answers(model, found, top), finite, strict=True)
        )
    return [
        {"path": entry.name} | ({"error": picture} if isinstance(picture, str) else next(said))
        for entry, picture in group
    ]


def _sort(into: Sorted, rows: Iterator[Row], entries: Iterator[Entry]) -> None:
    into.begin()
    for row, entry in zip(rows, entries, strict=True):
        if "error" not in row:
            name = None if row.get("unsure") else row["class"]
            if entry.kind == "address":
                into.add_address(entry.place, name)
            else:
                into.add(Path(entry.place), name)
    into.fetch()
