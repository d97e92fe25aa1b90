"""What a class may be called, whatever kind of source it comes from."""

import re
import unicodedata
from collections.abc import Iterable

NOT_IN_A_LINE = ("Cc", "Zl", "Zp")  # Unicode's categories of control characters and line breaks
FAULT = "has a line break or a control character"


def is_line(name: str) -> bool:
    """Whether a name is one line of text: it is printed in tables, and a line of a file each."""
    return not any(unicodedata.category(character) in NOT_IN_A_LINE for character in name)


def folded(name: str) -> str:
    """What two names have in common that differ in case, spaces or signs that nobody sees."""
    seen = "".join(character for character in name if unicodedata.category(character) != "Cf")
    return re.sub(r"[\s_-]+", " ", seen).strip().casefold()


def doubtful_names(classes: Iterable[str], where: str) -> list[str]:
    """A sentence on each set of classes whose names nobody tells apart.

    Args:
        where: what they are of.
    """
    alike: dict[str, list[str]] = {}
    for name in classes:
        alike.setdefault(folded(name), []).append(name)
    return [
        f"classes {', '.join(map(repr, names))} of {where} differ in case or spaces only: if they are one, give them "
        "one name"
        for names in sorted(alike.values())
        if len(names) > 1
    ]
