"""The bodies of requests: bounded one by one and all together, for as long as somebody holds them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import Request

from gkd_core.serving.limits import Budget, Limits
from gkd_core.serving.parsing import Parser
from gkd_core.serving.tensors import ProtocolError


class Body:
    """What came, and who holds it.

    Attributes:
        content: the bytes, without their compression.
    """

    def __init__(self, budget: Budget) -> None:
        self.content = b""
        self._budget = budget
        self._taken = 0
        self._works: list[asyncio.Future[Any]] = []

    def take(self, size: int) -> None:
        """Reserve room.

        Raises:
            Overloaded: others hold too much.
        """
        self._budget.take(size)
        self._taken += size

    def begun(self, work: "asyncio.Future[Any]") -> None:
        """Note work that holds the bytes until it is done, even when nobody waits for it any more."""
        self._works.append(work)

    def leave(self) -> None:
        """Give the room back, once no work holds the bytes."""
        self._works = [work for work in self._works if not work.done()]
        if self._works:
            self._works[0].add_done_callback(lambda _: self.leave())
        else:
            self._budget.give_back(self._taken)


@asynccontextmanager
async def whole_body(
    request: Request, limits: Limits, budget: Budget, parser: Parser, largest: int | None = None
) -> AsyncIterator[Body]:
    """The body; its bytes count against the budget until the block ends, and what was begun in it.

    Args:
        largest: bytes it can need, packed or unpacked, where that is known; the server's own limit holds besides.
    Raises:
        ProtocolError: it is too large or damaged, or there is no room for it.
        ClientDisconnect: it never came whole.
    """
    limit = limits.max_request_bytes if largest is None else min(limits.max_request_bytes, largest)
    declared = request.headers.get("content-length", "")
    body = Body(budget)
    try:
        if declared.isdigit():
            _fits(int(declared[:20]), limit)
        parts, size = [], 0
        async for part in request.stream():
            size += len(part)
            _fits(size, limit)
            body.take(len(part))  # as they come: who only announces bytes takes no room from others
            parts.append(part)
        packed = b"".join(parts)
        encoding = request.headers.get("content-encoding")
        if encoding is None:
            body.content = packed
        else:
            body.content = await parser.decompress(packed, encoding, limit, begun=body.begun)
        if body.content is not packed:
            body.take(len(body.content))
        yield body
    finally:
        body.leave()


def _fits(size: int, limit: int) -> None:
    if size > limit:
        raise ProtocolError(f"the body is larger than the {limit} bytes that are allowed: send fewer images", 413)
