"""The sources by name. What a source gives is in `base`."""

import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gkd_core.config.schema import FILES
from gkd_core.data.sources.address import WEB, is_address, local_path, scheme, without_secrets
from gkd_core.data.sources.base import LeftOut, Source
from gkd_core.errors import GkdError, unknown

if TYPE_CHECKING:
    from gkd_core.data.sources.archive import TemporaryFolder

log = logging.getLogger(__name__)

PACKED_OR_LIKE = (".zip", ".tar", ".tgz", ".gz", ".tbz2", ".bz2", ".txz", ".xz", ".rar", ".7z", ".zst")
KNOWN = ("digits", "cifar10", "cifar100", *FILES, "torchvision:NAME")


def open_source(
    name: str,
    root: str | Path | None = None,
    image_size: int | None = None,
    channels: int | None = None,
    *,
    columns: Mapping[Any, str] | None = None,
    group: str | None = None,
    option: str = "data.root",
) -> Source:
    """A source by the name `data.source` gives it.

    Args:
        root: folder the data is in, or is downloaded to; null is the cache. Of `folder`, `list` and `huggingface` also
            an archive of it, or the address of either.
        image_size: side of the pictures; null keeps the source's own.
        channels: 1 or 3; null keeps the source's own.
        columns: names of the columns "image", "label", "split" of a list or a Hugging Face data set.
        group: name of its column of groups; of a folder, a regular expression that finds the group in the path of a
            file below the root.
        option: what named the root, for the errors.
    Raises:
        GkdError: an unknown name, or data that is missing or damaged.
    """
    # Imported when asked for: each has heavy libraries of its own.
    if name == "digits":
        from gkd_core.data.sources.digits import digits

        return digits(image_size, channels)
    if name in FILES:
        if root is None:
            raise GkdError(f"data.source is {name} but data.root names none: set data.root to the {_ROOTS[name]}")
        return _from_files(name, root, image_size, channels, columns, group, option)
    if name in ("cifar10", "cifar100") or name.startswith("torchvision:"):
        from gkd_core.data.sources.torchvision_set import torchvision_set

        return torchvision_set(name, None if root is None else Path(root).expanduser(), image_size, channels)
    raise GkdError(unknown("data.source", name, KNOWN))


_ROOTS = {
    "folder": "folder of images",
    "list": "list of images, .csv or .parquet",
    "huggingface": "folder that save_to_disk wrote",
}


def files_of(root: str | Path) -> str:
    """Which of `FILES` a place most likely is, by its name and what lies there; nothing is fetched or unpacked."""
    from gkd_core.data.sources.archive import top_level
    from gkd_core.data.sources.huggingface import MARKS
    from gkd_core.data.sources.listing import ENDINGS

    if str(root).partition("?")[0].lower().endswith(ENDINGS):
        return "list"
    place = local_path(root)
    if place is None:
        return "folder"
    folders, files = top_level(place)
    if files & set(MARKS):
        return "huggingface"
    lists = [name for name in files if name.lower().endswith(ENDINGS)]
    return "list" if len(lists) == 1 and len(folders) < 2 else "folder"  # two classes or more are what it says


def _from_files(
    name: str,
    root: str | Path,
    image_size: int | None,
    channels: int | None,
    columns: Mapping[str, str] | None,
    group: str | None,
    option: str,
) -> Source:
    from gkd_core.data.sources.archive import TemporaryFolder
    from gkd_core.data.sources.folder import folder
    from gkd_core.data.sources.huggingface import huggingface
    from gkd_core.data.sources.listing import listing

    temporary = TemporaryFolder()
    called = without_secrets(str(root)) if is_address(root) else str(root)
    place = Path(root).expanduser()
    try:
        place, outside = _at_hand(name, root, called, option, temporary)
        if name == "list":
            base = str(root) if is_address(root) and place.is_file() else None
            foreign = not base and place != Path(root).expanduser()
            source = listing(
                place,
                image_size,
                channels,
                temporary,
                columns=columns,
                group=group,
                base=base,
                foreign=foreign,
                option=option,
            )
        elif name == "huggingface":
            source = huggingface(place, image_size, channels, columns=columns, group=group, option=option)
        else:
            source = folder(place, image_size, channels, option=option)
            source = source if group is None else _grouped(source, group)
    except BaseException as error:
        temporary.remove()
        if isinstance(error, GkdError):
            raise GkdError(str(error).replace(str(place), called)) from None
        raise
    warnings = tuple(sentence.replace(str(place), called) for sentence in source.warnings)
    return replace(source, keep=temporary, warnings=warnings, left_out=(*outside, *source.left_out))


def _at_hand(
    name: str, root: str | Path, called: str, option: str, temporary: "TemporaryFolder"
) -> tuple[Path, list[LeftOut]]:
    """A root as a file or folder here: fetched where it is an address, unpacked where it is an archive.

    Of an archive also what lies beside the folder that it was made of.
    """
    from gkd_core.data.sources.archive import PACKED, beside, innermost, is_archive, unpack

    place = Path(root).expanduser()
    if is_address(root):
        from gkd_core.data.sources.remote import fetch

        place = fetch(str(root), temporary.new(), option)
    if not place.is_file() or (name == "list" and not is_archive(place)):
        return place, []
    if not is_archive(place):
        raise GkdError(
            f"{option} {called} is not a folder, nor an archive that can be read ({', '.join(PACKED)}): "
            f"{_instead(root, place)}"
        )
    unpacked = temporary.new()
    unpack(place, unpacked, f"{option} {called}")
    if is_address(root):
        place.unlink()  # makes room
    inner = innermost(unpacked)
    return inner, beside(unpacked, inner)


def _instead(root: str | Path, place: Path) -> str:
    """What to do about a file that is no archive."""
    if files_of(root) == "list":
        return "set data.source to list"
    if place.suffix.lower() in PACKED_OR_LIKE:
        return "it is damaged, cut short or of another kind; pack it anew as one of these"
    if is_address(root) and scheme(str(root)) in WEB:
        return "a web server lists no folders, so name an archive or a list"
    return "name a folder of images"


def _grouped(source: Source, pattern: str) -> Source:
    """The source with a group for each file: what the pattern calls `group`, else its first group, else its match."""
    try:
        found = re.compile(pattern)
    except re.error as error:
        raise GkdError(f"data.group {pattern} is no regular expression ({error}): correct it") from None
    which = "group" if "group" in found.groupindex else min(found.groups, 1)
    splits = {}
    for name, examples in source.splits.items():
        matches = [found.search(each) for each in examples.names]
        splits[name] = replace(examples, groups=tuple((match and match[which]) or "" for match in matches))
    without = [
        each
        for examples in splits.values()
        for each, group in zip(examples.names, examples.groups, strict=True)
        if not group
    ]
    total = sum(len(examples.names) for examples in splits.values())
    if len(without) == total:
        raise GkdError(f"data.group {pattern} is found in no file, such as {without[0]}: correct the expression")
    if without:
        log.warning(
            "data.group is not found in %d of %d files, such as %s: each is on its own", len(without), total, without[0]
        )
    return replace(source, splits=splits)
