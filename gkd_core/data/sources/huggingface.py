"""A Hugging Face data set on disk, as `datasets` keeps one by `save_to_disk`.

Image and label are found by the kinds of its columns: the one `Image`, the one `ClassLabel`. A `DatasetDict` has its
splits taken by their names. Rows without a label (−1) are left out, and so is a split in which all are.
"""

import io
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from gkd_core.data.images import Unreadable, read_image
from gkd_core.data.sources.base import SPLITS, Examples, LeftOut, Source, SplitName
from gkd_core.data.sources.class_names import FAULT, doubtful_names, is_line
from gkd_core.data.sources.folder import split_of
from gkd_core.data.sources.listing import USUAL
from gkd_core.errors import GkdError

MARKS = ("dataset_dict.json", "dataset_info.json")


def is_dataset(folder: Path) -> bool:
    """Whether a folder is what `save_to_disk` wrote."""
    return any((folder / mark).is_file() for mark in MARKS)


def huggingface(
    root: Path,
    image_size: int | None,
    channels: int | None,
    *,
    columns: Mapping[str, str] | None = None,
    group: str | None = None,
    option: str = "data.root",
) -> Source:
    """The images of a data set; nothing is decoded yet.

    Args:
        root: folder that `save_to_disk` wrote.
        image_size: side in pixels; null is 64.
        channels: 1 or 3; null is 3.
        columns: names of the columns "image" and "label", where they are not the only ones of their kind.
        group: name of the column of groups.
        option: what named the folder, for the errors.
    Raises:
        GkdError: the package is missing, it is no such folder or damaged, or has no such columns.
    """
    try:
        from datasets import Image
    except ImportError as error:
        raise GkdError(
            f"data.source huggingface needs the package datasets: pip install 'gkd[datasets]' ({error})"
        ) from None
    where = f"{option} {root}"
    splits = _splits(root, where)
    features = splits["train"].features
    image = _column(features, "image", "Image", columns, where)
    label = _column(features, "label", "ClassLabel", columns, where)
    if group is not None and group not in features:
        raise GkdError(f"data.group is {group}, but {where} has the columns {', '.join(features)}: name one of them")
    labels = {name: _labels(rows, label) for name, rows in splits.items()}
    present = set(labels["train"]) - {""}
    known_names = map(_composed, getattr(features[label], "names", sorted(present)))
    classes = tuple(dict.fromkeys(name for name in known_names if name in present))
    if unfit := [name for name in classes if not is_line(name)]:
        raise GkdError(f"the name of the class {unfit[0]!r} of {where} {FAULT}: rename it")
    size, depth = image_size or 64, channels or 3
    examples: dict[SplitName, Examples] = {}
    left_out: list[LeftOut] = []
    for name in SPLITS:
        if name not in splits or (name != "train" and not any(labels[name])):
            continue
        if strangers := sorted(set(labels[name]) - present - {""}):
            raise GkdError(f"class {strangers[0]!r} is in the {name} split of {where} but in no row to train on")
        known = [row for row, each in enumerate(labels[name]) if each]
        left_out += [LeftOut(f"{name}[{row}]", "it has no label") for row, each in enumerate(labels[name]) if not each]
        groups = list(splits[name][group]) if group is not None else []
        examples[name] = _examples(
            splits[name].select_columns([image]).cast_column(image, Image(decode=False)),
            name,
            known,
            [classes.index(labels[name][row]) for row in known],
            tuple("" if groups[row] is None else str(groups[row]) for row in known) if groups else (),
            size,
            depth,
        )
    warnings = tuple(doubtful_names(classes, where))
    return Source(
        *("huggingface", classes, size, depth, examples), flip=True, left_out=tuple(left_out), warnings=warnings
    )


def _splits(root: Path, where: str) -> dict[SplitName, Any]:
    from datasets import DatasetDict, load_from_disk

    if not is_dataset(root):
        raise GkdError(f"{where} is no folder that `save_to_disk` of the package datasets wrote: name one that is")
    try:
        loaded = load_from_disk(str(root))
    except Exception as error:  # pyarrow's, JSON's, datasets' own
        reason = " ".join(str(error).split())
        raise GkdError(f"{where} cannot be read ({reason}): write it again by save_to_disk") from None
    splits: dict[SplitName, Any] = {}
    for name, rows in loaded.items() if isinstance(loaded, DatasetDict) else [("train", loaded)]:
        split = split_of(name)
        if split is None or split in splits:
            raise GkdError(
                f"{where} has the split {name!r}, which is {'a second one' if split else 'none'} of train, validation "
                "and test: leave it out of the DatasetDict, or rename it"
            )
        splits[split] = rows
    if "train" not in splits:
        raise GkdError(f"{where} has no split to train on: name one of the DatasetDict train")
    return splits


def _column(features: Mapping[str, Any], what: str, kind: str, columns: Mapping[str, str] | None, where: str) -> str:
    """The column that is named, or the one of its kind, or the one with a usual name."""
    if columns and what in columns:
        found = [name for name in features if name == columns[what]]
    else:
        found = [name for name, feature in features.items() if type(feature).__name__ == kind]
        found = found or [name for name in features if what == "label" and name.lower() in USUAL["label"]]
    if len(found) != 1:
        kinds = ", ".join(f"{name} ({type(feature).__name__})" for name, feature in features.items())
        raise GkdError(f"{where} has the columns {kinds}: say which is the {what} by data.columns.{what}")
    return found[0]


def _labels(rows: Any, column: str) -> list[str]:
    """The class of each row by name; "" where there is none."""
    names = getattr(rows.features[column], "names", None)
    values = list(rows[column])
    if names is None:
        return ["" if value is None else _composed(str(value)) for value in values]
    return ["" if value is None or value < 0 else _composed(names[value]) for value in values]


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _examples(
    rows: Any,
    split: str,
    known: Sequence[int],
    labels: Sequence[int],
    groups: tuple[str, ...],
    size: int,
    channels: int,
) -> Examples:
    (column,) = rows.column_names

    def stream(position: int) -> IO[bytes]:
        image = rows[known[position]][column] or {}
        if not image.get("bytes"):
            # datasets keeps pictures inside unless told otherwise; a path in a file from elsewhere is not followed.
            raise Unreadable("its row holds no picture")
        return io.BytesIO(image["bytes"])

    def read(position: int) -> NDArray[np.uint8]:
        return read_image(stream(position), size, channels)

    names = tuple(f"{split}[{row}]" for row in known)
    return Examples(np.array(labels, dtype=np.int64), read, names, parallel=True, groups=groups, open=stream)
