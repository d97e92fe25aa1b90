"""A list of images: a table with a row for each, its file and its label, and perhaps its split and its group.

CSV as spreadsheets and programs write it (UTF-8 with or without a byte-order mark; comma, semicolon, tab or bar; quotes
as in RFC 4180), or Parquet. Paths are relative to the list, absolute, or addresses. Every row that cannot be is named
with its line, all at once.
"""

import csv
import io
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gkd_core.data.images import read_image
from gkd_core.data.sources.address import below, is_address, without_secrets
from gkd_core.data.sources.archive import TemporaryFolder
from gkd_core.data.sources.base import SPLITS, Examples, Source, SplitName
from gkd_core.data.sources.class_names import FAULT, doubtful_names, is_line
from gkd_core.data.sources.folder import USUAL as USUAL_SPLITS
from gkd_core.data.sources.folder import split_of
from gkd_core.errors import GkdError

ENDINGS = (".csv", ".tsv", ".parquet")
# What the columns are usually called; data.columns and data.group name others.
USUAL = {
    "image": ("path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path"),
    "label": ("label", "class", "class_name", "category", "target"),
    "split": ("split", "subset"),
    "group": ("group",),
}
NAMED_IN_SENTENCE = 3
LONGEST_NAME = 120  # characters of one


@dataclass(frozen=True)
class Row:
    """One row, its values without space around them; "" where there is none."""

    line: int
    image: str
    label: str
    split: str
    group: str

    @property
    def name(self) -> str:
        """The image as it may be printed and kept."""
        return without_secrets(self.image) if is_address(self.image) else self.image

    @property
    def brief(self) -> str:
        """The same for a sentence."""
        name = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in self.name)
        return name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}…"


def listing(
    file: Path,
    image_size: int | None,
    channels: int | None,
    temporary: TemporaryFolder,
    *,
    columns: Mapping[str, str] | None = None,
    group: str | None = None,
    base: str | None = None,
    foreign: bool = False,
    option: str = "data.root",
) -> Source:
    """The images that a list names; nothing is decoded yet, but what lies behind addresses is fetched.

    Args:
        file: the list, or a folder with one list in it.
        image_size: side in pixels; null is 64.
        channels: 1 or 3; null is 3.
        temporary: where images are put that are fetched.
        columns: names of the columns "image", "label" and "split", where they are none of the usual.
        group: name of the column of groups.
        base: where the list came from, if that is an address: paths are relative to it.
        foreign: the list came from elsewhere with its images, and may not name others of this machine.
        option: what named the list, for the errors.
    Raises:
        GkdError: no such list, no such columns, rows that are wrong, or addresses that cannot be had.
    """
    file = _only_list(file, option)
    where = f"{option} {file}"
    rows = list(_rows(file, dict(columns or {}) | ({"group": group} if group else {}), where))
    if not rows:
        raise GkdError(f"{where} is empty: give it a row for each image, below its first line")
    wrong: dict[int, str] = {}
    splits: dict[SplitName, list[Row]] = {}
    seen: dict[str, int] = {}
    for row in rows:
        split = split_of(row.split) if row.split else "train"
        if not row.image or not row.label:
            wrong[row.line] = f"has no {'label' if row.image else 'file'}"
        elif split is None:
            wrong[row.line] = f"has the split {row.split!r}, which is none of {USUAL_SPLITS}"
        elif not is_line(row.label):
            wrong[row.line] = f"has the label {row.label!r}, which {FAULT}"
        elif row.image in seen:
            wrong[row.line] = f"names {row.brief} again, as line {seen[row.image]}"
        else:
            seen[row.image] = row.line
            splits.setdefault(split, []).append(row)
    listed = [row for each in splits.values() for row in each]
    places = _places(listed, file, temporary, base, foreign, option, wrong)
    if wrong:
        named = "; ".join(f"line {line} {wrong[line]}" for line in sorted(wrong)[:NAMED_IN_SENTENCE])
        more = "; …" if len(wrong) > NAMED_IN_SENTENCE else ""
        raise GkdError(f"{len(wrong)} of {len(rows)} rows of {where} are wrong: {named}{more} — correct or remove them")
    if "train" not in splits:
        raise GkdError(f"{where} has no row to train on: give it some (split train)")
    classes = _classes({row.label for row in splits["train"]})
    size, depth = image_size or 64, channels or 3
    examples = {
        name: _examples(splits[name], places, classes, size, depth, f"the {name} split of {where}")
        for name in SPLITS
        if name in splits
    }
    warnings = tuple(doubtful_names(classes, where))
    return Source("list", classes, size, depth, examples, flip=True, warnings=warnings)


def _only_list(place: Path, option: str) -> Path:
    if not place.is_dir():
        if not place.exists():
            raise GkdError(f"{option} {place} is not there: name a list of images, .csv or .parquet")
        return place
    lists = sorted(file for file in place.iterdir() if file.suffix.lower() in ENDINGS and file.name[0] != ".")
    if len(lists) != 1:
        found = f"has {lists[0].name} and {lists[1].name}" if lists else f"has no list ({', '.join(ENDINGS)})"
        raise GkdError(f"{option} {place} {found}: name the one list of its images, or leave one in the folder")
    return lists[0]


def listed_pictures(file: Path, option: str) -> Iterator[Row]:
    """The rows of a list of which the image alone is wanted, in order; whether it is there nobody has looked.

    Args:
        file: the list.
        option: what named the list, for the errors.
    Raises:
        GkdError: no such list, no such column, or a file that cannot be read.
    """
    yield from _rows(_only_list(file, option), {}, f"{option} {file}", needed=("image",))


def _rows(file: Path, columns: dict[str, str], where: str, needed: Sequence[str] = ("image", "label")) -> Iterator[Row]:
    parquet = file.suffix.lower() == ".parquet"
    header, rows = _parquet(file, columns, where, needed) if parquet else _csv(file, columns, where)
    if not header:
        names = " and ".join(USUAL[each][0] for each in needed)
        raise GkdError(f"{where} is empty: give it a first line of names, {names}, and a row for each image")
    at = _columns(header, columns, where, needed)
    for line, values in rows:
        if len(values) != len(header):
            raise GkdError(
                f"line {line} of {where} has {len(values)} values and its header has {len(header)} columns: put quotes "
                "around what holds the separator"
            )
        row = {name: values[position].strip() for name, position in at.items()}
        label = unicodedata.normalize("NFC", row.get("label", ""))
        yield Row(line, row["image"], label, row.get("split", ""), row.get("group", ""))


def _csv(file: Path, columns: Mapping[str, str], where: str) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """Header, and rows with the lines they end on."""
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = file.read_bytes()[: error.start].count(b"\n") + 1
        raise GkdError(f"line {line} of {where} is not UTF-8: save the list as CSV in UTF-8") from None
    first = next((line for line in text.splitlines() if line.strip()), "")
    # The separator is the one that parts the header into what is looked for.
    parted = {mark: next(csv.reader([first], delimiter=mark), []) for mark in ",;\t|"}
    mark = max(parted, key=lambda each: (_known(parted[each], columns), len(parted[each])))

    def rows() -> Iterator[tuple[int, list[str]]]:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True)
        try:
            filled = ((reader.line_num, row) for row in reader if any(value.strip() for value in row))
            next(filled, None)
            yield from filled
        except csv.Error as error:
            raise GkdError(f"line {reader.line_num} of {where} cannot be read ({error}): correct it") from None

    return parted[mark], rows()


def _parquet(
    file: Path, columns: Mapping[str, str], where: str, needed: Sequence[str]
) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """Header, and rows counted from 1."""
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise GkdError(f"{where} needs the package pyarrow: pip install pyarrow, or save it as CSV ({error})") from None
    try:
        table = ParquetFile(file)
        names = table.schema_arrow.names
        header = [names[position] for position in _columns(names, columns, where, needed).values()]
        values = [[_as_text(value, where) for value in column.to_pylist()] for column in table.read(header).columns]
    except (ArrowException, OSError, ValueError, OverflowError) as error:
        # ValueError: of text that is no UTF-8; OverflowError: of dates that Python has not.
        raise GkdError(f"{where} cannot be read as Parquet ({error}): write it again, or save it as CSV") from None
    return header, ((line, list(row)) for line, row in enumerate(zip(*values, strict=True), start=1))


def _as_text(value: Any, where: str) -> str:
    if isinstance(value, dict | list | bytes):
        raise GkdError(
            f"{where} holds pictures or lists where a path or a label is looked for: name other columns by "
            "data.columns, or keep it as a data set with `datasets` and take data.source huggingface"
        )
    return "" if value is None else str(value)


def _columns(header: Sequence[str], columns: Mapping[str, str], where: str, needed: Sequence[str]) -> dict[str, int]:
    """The position of each column that is there; where only some are needed, no parameters name them."""
    found = {}
    for what, usual in USUAL.items():
        names = [name.strip().casefold() if what in columns else _usual(name) for name in header]
        wanted = (columns[what].strip().casefold(),) if what in columns else usual
        at = next((names.index(name) for name in wanted if name in names), None)
        if at is not None:
            found[what] = at
        elif what in columns:
            key = "data.group" if what == "group" else f"data.columns.{what}"
            raise GkdError(
                f"{key} is {columns[what]}, but {where} has the columns {', '.join(header)}: name one of them"
            )
        elif what in needed:
            way = f"say which one by data.columns.{what}" if "label" in needed else f"call one {usual[0]}"
            raise GkdError(
                f"{where} has the columns {', '.join(header) or '(none)'}, and none of {', '.join(usual)}: give its "
                f"first line names, or {way}"
            )
    return found


def _usual(name: str) -> str:
    """A column's name as `USUAL` writes it: `File Name` is file_name."""
    return re.sub(r"[\s_-]+", "_", name.strip().casefold())


def _known(header: Sequence[str], columns: Mapping[str, str]) -> int:
    wanted = {*columns.values(), *(name for usual in USUAL.values() for name in usual)}
    return len({_usual(name) for name in header} & {_usual(name) for name in wanted})


def _places(
    rows: Sequence[Row],
    file: Path,
    temporary: TemporaryFolder,
    base: str | None,
    foreign: bool,
    option: str,
    wrong: dict[int, str],
) -> dict[str, Path]:
    """Where each image is, once what lies elsewhere is fetched; `wrong` is told of those that are nowhere."""
    places: dict[str, Path] = {}
    remote: dict[str, Row] = {}
    home = file.parent.resolve()
    for row in rows:
        try:
            place = place_of(row, home, base, foreign)
        except NoPlace as reason:
            wrong[row.line] = str(reason)
            continue
        if isinstance(place, str):
            remote[place] = row
            continue
        places[row.image] = place
        if not _is_file(place):
            wrong[row.line] = f"names {row.brief}, which is not there"
    if wrong or not remote:
        return places
    from gkd_core.data.sources.remote import fetch_files

    folder = temporary.new()
    fetched = {address: folder / f"{n:08d}{Path(row.image).suffix}" for n, (address, row) in enumerate(remote.items())}
    for address in fetch_files(fetched, option):
        wrong[remote[address].line] = f"names {remote[address].brief}, which is not there"
    return places | {row.image: fetched[address] for address, row in remote.items()}


class NoPlace(Exception):
    """A row names no file; the message goes on after the row's line."""


def place_of(row: Row, home: Path, base: str | None = None, foreign: bool = False) -> Path | str:
    """Where a row's image lies: a path here, or an address. It need not be there.

    Args:
        home: the list's folder, without links in its path.
        base: where the list came from, if that is an address.
        foreign: the list came from elsewhere, and may not name files of this machine outside its folder.
    Raises:
        NoPlace: what it names can be neither.
    """
    if "\0" in row.image:
        raise NoPlace(f"names {row.brief}, which is no path")
    if is_address(row.image):
        if row.image.lower().startswith(("file:", "local:")) or "::" in row.image:
            raise NoPlace(f"names {row.brief}: write a path, or the address of one file")
        return row.image
    place = home / row.image
    if (base or foreign) and not place.resolve().is_relative_to(home):
        raise NoPlace(f"names {row.brief}, which leads outside the folder of the list")
    if base:
        return below(base, row.image)
    # Lists that were made under Windows.
    return place if _is_file(place) else home / row.image.replace("\\", "/")


def _is_file(place: Path) -> bool:
    try:
        return place.is_file()
    except OSError:  # the name is too long, a folder above it may not be looked into
        return False


def _classes(labels: set[str]) -> tuple[str, ...]:
    """Sorted by code point, whole numbers by value."""
    return tuple(sorted(labels, key=(lambda each: (int(each), each)) if all(map(str.isdecimal, labels)) else None))


def _examples(
    rows: Sequence[Row], places: Mapping[str, Path], classes: tuple[str, ...], size: int, channels: int, where: str
) -> Examples:
    position_of = {name: position for position, name in enumerate(classes)}
    if strangers := [row for row in rows if row.label not in position_of]:
        raise GkdError(
            f"class {strangers[0].label!r} is in {where} (line {strangers[0].line}) but in no row to train on: "
            "give it some, or remove it there"
        )
    paths = [places[row.image] for row in rows]

    def read(position: int) -> NDArray[np.uint8]:
        return read_image(paths[position], size, channels)

    groups = tuple(row.group for row in rows)
    return Examples(
        np.array([position_of[row.label] for row in rows], dtype=np.int64),
        read,
        tuple(row.name for row in rows),
        parallel=True,
        groups=groups if any(groups) else (),
        open=lambda position: paths[position].open("rb"),
    )
