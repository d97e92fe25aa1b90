"""The bodies of requests: bounded one by one and all together, unpacked where they come packed."""

import asyncio
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import Request

from gkd_core.serving.limits import Limits, Overloaded
from gkd_core.serving.tensors import ProtocolError

_GZIP, _ZLIB = 16 + zlib.MAX_WBITS, zlib.MAX_WBITS
WINDOWS = {"gzip": _GZIP, "x-gzip": _GZIP, "deflate": _ZLIB}  # HTTP's "deflate" is the zlib format


class Bodies:
    """Reads bodies, and counts their bytes for as long as they are worked on."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._free = max(limits.memory_bytes, limits.max_request_bytes)

    @asynccontextmanager
    async def read(
        self, request: Request, largest: int | None = None, *, of_pictures: bool = False
    ) -> AsyncIterator[bytes]:
        """A body without its compression; its bytes count until the block ends.

        Args:
            largest: bytes it can need, packed or unpacked, where that is known; the server's own limit holds besides.
            of_pictures: that limit does not hold, for `largest` is what `Limits.pixels` need.
        Raises:
            Overloaded: all bodies together have too many bytes.
            ProtocolError: it is too large, or damaged.
            ClientDisconnect: it never came whole.
        """
        limit = largest or self._limits.max_request_bytes
        if not of_pictures:
            limit = min(limit, self._limits.max_request_bytes)
        declared = request.headers.get("content-length", "")
        if declared.isdigit():
            _fits(int(declared[:20]), limit)
        parts, size, taken = [], 0, 0
        try:
            async for part in request.stream():
                size += len(part)
                _fits(size, limit)
                taken += self._take(len(part))  # as they come: who only announces bytes takes no room from others
                parts.append(part)
            body = b"".join(parts)
            if (encoding := request.headers.get("content-encoding")) is not None:
                body = await asyncio.to_thread(decompress, body, encoding, limit)
                taken += self._take(len(body))
            yield body
        finally:
            self._free += taken

    def _take(self, size: int) -> int:
        if size > self._free:
            raise Overloaded("memory", "the requests of all clients together hold too many bytes")
        self._free -= size
        return size


def decompress(body: bytes, encoding: str, limit: int) -> bytes:
    """The body without its Content-Encoding; one that unpacks to too much is refused before it has.

    Raises:
        ProtocolError: an encoding other than gzip, deflate, identity; damaged; more than `limit` bytes.
    """
    name = encoding.strip().lower()
    if name in ("", "identity"):
        return body
    if name not in WINDOWS:
        raise ProtocolError("the body's Content-Encoding is not one of gzip, deflate, identity", 415)
    unpacker = zlib.decompressobj(WINDOWS[name])
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


def _fits(size: int, limit: int) -> None:
    if size > limit:
        raise ProtocolError(f"the body is larger than the {limit} bytes that are allowed: send fewer images", 413)
