"""Addresses of data as text: what is one, how it may be shown, and what lies beside it."""

import re
from pathlib import Path
from urllib.parse import quote

from gkd_core.redact import redact

WEB = ("http", "https")
_QUERY = re.compile(r"(://[^\s?'\"]+)\?[^\s'\"]*")


def is_address(place: object) -> bool:
    """Whether a place is an address rather than a path."""
    return isinstance(place, str) and re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", place) is not None


def local_path(place: str | Path | None) -> Path | None:
    """The place as a path here; None where it is none, or an address."""
    return None if place is None or is_address(place) else Path(place).expanduser()


def scheme(address: str) -> str:
    """What stands before `://`."""
    return address.partition("://")[0].lower()


def without_secrets(text: str) -> str:
    """The text as it may be printed: addresses without passwords, and without a query, which may be a signature.

    >>> without_secrets("https://me:pw@example.org/set.zip?X-Amz-Signature=1f")
    'https://me:***@example.org/set.zip'
    """
    return redact(_QUERY.sub(r"\1", text))


def below(base: str, name: str) -> str:
    """The address of a file by its path from the folder of another address.

    >>> below("https://example.org/set/list.csv?signature=x", "cats/no. #1.jpg")
    'https://example.org/set/cats/no.%20%231.jpg'
    """
    folder = base.partition("?")[0].rpartition("/")[0]
    return f"{folder}/{quote(name) if scheme(base) in WEB else name}"
