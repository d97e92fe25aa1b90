"""What every request passes before its endpoint: the count, the door when there are too many, the token, the clock.

Plain ASGI, since it must know when the body has come whole: an answer given before that (too large, not admitted) is
sent at once, and the rest of the body is read and thrown away for a moment. A connection closed on a client that is
still sending would lose the answer on its way.
"""

import asyncio
import json
import time
from collections.abc import MutableMapping
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gkd_core.serving.authorisation import Token
from gkd_core.serving.connection import GONE, SURPLUS
from gkd_core.serving.logs import log
from gkd_core.serving.metrics import Metrics

OPEN = frozenset({"/", "/page.css", "/page.js", "/icon.svg", "/v2/health/live", "/v2/health/ready"})
LINGER_SECONDS = 5.0
LINGER_BYTES = 64 << 20
SMALL = 1 << 20  # a body whose rest is worth reading to keep the connection
LEFT = 499  # for the counts: the client left before the answer


class Front:
    """ASGI application around another.

    Attributes:
        accepted, answered, left: requests that came; whose answer was sent to its end; whose client was gone first.
            The rest were cancelled, or are at work.
        leaving: set while shutting down: every answer then asks its client to connect anew, elsewhere.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, *, token: Token | None = None, log_requests: bool = False):
        self._app = app
        self._metrics = metrics
        self._token = token
        self._log_requests = log_requests
        self.accepted = 0
        self.answered = 0
        self.left = 0
        self.leaving = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; other kinds of events go through untouched."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        self.accepted += 1
        start = time.perf_counter()
        exchange = _Exchange(scope, receive, send, self)
        try:
            if scope["state"].pop(SURPLUS, False):
                exchange.closing = True
                self._metrics.refused.labels("connections").inc()
                await exchange.refuse(503, "too many connections are open: try again in a moment", ("retry-after", "1"))
            elif not self._admitted(scope, exchange.headers):
                await exchange.refuse(
                    401,
                    "this server wants its token: send it as `Authorization: Bearer …`",
                    ("www-authenticate", "Bearer"),
                )
            else:
                await self._app(scope, exchange.receive, exchange.send)
        finally:
            if scope["state"].get(GONE, False):
                self.left += 1
            elif exchange.sent:
                self.answered += 1
            self._note(scope, exchange.status, time.perf_counter() - start)

    def _admitted(self, scope: Scope, headers: Headers) -> bool:
        if self._token is None or scope["path"] in OPEN:
            return True
        given = headers.get("authorization")
        return self._token.admits(None if given is None else given.encode("latin-1"))

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        endpoint = getattr(scope.get("endpoint"), "__name__", "none")
        self._metrics.requests.labels(endpoint, str(status)).inc()
        self._metrics.seconds.labels(endpoint).observe(seconds)
        if self._log_requests or status >= 500:
            log.info(
                "request",
                extra={
                    "method": scope["method"],
                    "path": scope["path"][:200],
                    "status": status,
                    "milliseconds": round(1000 * seconds, 3),
                    "client": scope["client"][0] if scope.get("client") else None,
                },
            )


class _Exchange:
    """One request and its answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, front: Front) -> None:
        self.headers = Headers(scope=scope)
        self._receive = receive
        self._send = send
        self._front = front
        length = self.headers.get("content-length", "0")
        chunked = "transfer-encoding" in self.headers
        self._whole = not chunked and length in ("0", "")
        self._small = not chunked and length.isdigit() and int(length) <= SMALL
        self.closing = False
        self.status = LEFT
        self.sent = False

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self._whole = True
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self.closing or self._front.leaving or not (self._whole or self._small):
                message = _with_header(message, b"connection", b"close")
            await self._send(message)
        elif message.get("more_body", False):
            await self._send(message)
        else:
            if not self._whole:
                await self._send({**message, "more_body": True})
                await self._linger()
                message = {"type": "http.response.body", "body": b"", "more_body": False}
            await self._send(message)
            self.sent = True

    async def refuse(self, status: int, sentence: str, header: tuple[str, str]) -> None:
        body = json.dumps({"error": sentence}).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (header[0].encode(), header[1].encode()),
        ]
        await self.send({"type": "http.response.start", "status": status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body, "more_body": False})

    async def _linger(self) -> None:
        """Throw away what is still being sent, for a while."""
        left = LINGER_BYTES
        try:
            async with asyncio.timeout(LINGER_SECONDS):
                while not self._whole and left > 0:
                    left -= len((await self.receive()).get("body", b""))
        except TimeoutError:
            pass


def _with_header(message: MutableMapping[str, Any], name: bytes, value: bytes) -> Message:
    return {**message, "headers": [*message.get("headers", []), (name, value)]}
