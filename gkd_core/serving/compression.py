"""gzip and deflate, bounded: a small body that unpacks to a huge one is refused before it has."""

import gzip
import zlib

from gkd_core.serving.tensors import ProtocolError

WORTH = 1024  # bytes below which a reply is sent as it is
LEVEL = 1  # replies are numbers: more effort makes them hardly smaller
WINDOW = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}  # HTTP's "deflate" is the zlib format


def decompress(body: bytes, encoding: str | None, limit: int) -> bytes:
    """The body without its Content-Encoding.

    Args:
        encoding: the header's value; None is identity.
        limit: bytes that the result may have.
    Raises:
        ProtocolError: an encoding other than gzip, deflate, identity; damaged; more than `limit` bytes.
    """
    name = (encoding or "identity").strip().lower()
    name = {"x-gzip": "gzip", "": "identity"}.get(name, name)
    if name == "identity":
        return body
    if name not in WINDOW:
        raise ProtocolError("the body's Content-Encoding is not one of gzip, deflate, identity", 415)
    unpacker = zlib.decompressobj(WINDOW[name])
    try:
        content = unpacker.decompress(body, limit + 1)
    except zlib.error:
        raise ProtocolError(f"the body is not the {name} that its Content-Encoding says") from None
    if len(content) > limit:
        raise ProtocolError(f"the body unpacks to more than the {limit} bytes that are allowed", 413)
    if not unpacker.eof:
        raise ProtocolError(f"the {name} body is cut short")
    if unpacker.unused_data:
        raise ProtocolError(f"bytes follow the end of the {name} body")
    return content


def choose(accepted: str | None) -> str | None:
    """gzip or deflate, whichever the Accept-Encoding header likes; None for a reply as it is."""
    for part in (accepted or "").lower().split(","):
        name, _, quality = part.partition(";")
        if name.strip() in WINDOW and quality.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000"):
            return name.strip()
    return None


def compress(body: bytes, encoding: str) -> bytes:
    """The body in gzip or deflate."""
    return gzip.compress(body, LEVEL, mtime=0) if encoding == "gzip" else zlib.compress(body, LEVEL)
