"""The optional bearer token: read once, compared in constant time, never shown."""

import hmac
import os
from pathlib import Path

from gkd_core.errors import GkdError

VARIABLE = "GKD_TOKEN"


class Token:
    """A secret that clients must send; its text shows nothing of it."""

    def __init__(self, secret: str) -> None:
        self._expected = b"Bearer " + secret.encode()

    def admits(self, header: bytes | None) -> bool:
        """Whether the value of the Authorization header holds it."""
        given = header or b""
        # The scheme's name is case-insensitive, the token is not.
        return hmac.compare_digest(given[:7].title() + given[7:], self._expected)

    @property
    def header(self) -> str:
        """What a client that holds it sends as Authorization."""
        return self._expected.decode()

    def __repr__(self) -> str:
        return "Token(…)"


def read_token(file: Path | None) -> Token | None:
    """The token in a file, else in GKD_TOKEN; None when there is none.

    Raises:
        GkdError: the file cannot be read, or the token is empty or has characters that a header cannot carry.
    """
    if file is not None:
        try:
            secret, where = file.read_text(encoding="utf-8").strip(), f"the token file {file}"
        except (OSError, UnicodeDecodeError):
            raise GkdError(f"the token file {file} cannot be read: name a file with one line of text") from None
    elif VARIABLE in os.environ:
        secret, where = os.environ[VARIABLE].strip(), VARIABLE
    else:
        return None
    if not secret or not secret.isascii() or not secret.isprintable() or " " in secret:
        raise GkdError(f"{where} holds no token: it must be printable ASCII without spaces, not empty")
    return Token(secret)
