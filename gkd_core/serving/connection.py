"""A connection with deadlines: uvicorn's own waits for ever for a client that sends or reads slowly.

A client has so many seconds for the headers, so many for the whole body, so many to take an answer; headers have a
limit in bytes, since the parser underneath has none. What HTTP does not allow is answered in JSON as well.

No request is an upgrade here, and one that asks for it is answered as if it had not (RFC 9110, 7.8). The parser would
take what follows such a head for another protocol: uvicorn then loses the body, or reads a request out of it.
"""

import asyncio
import json
from http import HTTPStatus
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from gkd_core.serving.limits import Limits
from gkd_core.serving.metrics import Metrics

HEADER_BYTES = 32 << 10
AHEAD = 16  # requests a client may send before the first of them is answered; uvicorn would keep any number
# In a request's state: there are more connections than are allowed; it is gone, and nobody hears the answer.
SURPLUS = "gkd.surplus"
GONE = "gkd.gone"


def raw_reply(status: int, sentence: str) -> bytes:
    """A whole HTTP/1.1 answer, after which the connection closes."""
    body = json.dumps({"error": sentence}).encode()
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body


class Connection(HttpToolsProtocol):
    """One client's connection. `connection_class` makes a class with limits and metrics."""

    limits: Limits
    metrics: Metrics

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._deadline: asyncio.TimerHandle | None = None
        self._taking: asyncio.TimerHandle | None = None
        self._receiving = "nothing"
        self._header_bytes = 0  # came since the last request's headers were complete
        self._kept_bytes = 0  # of them, in whole headers
        self._refusal = (400, "this is not HTTP/1.1")
        self._running: RequestResponseCycle | None = None  # `cycle` is the one that was read last
        self._upgrade: bytes | None = None  # the head of a request that asked for one, without the asking

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._surplus = len(self.connections) > self.limits.connections
        self._expect("nothing", self.limits.header_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect(None)
        if self._taking is not None:
            self._taking.cancel()
        if (running := self._running) is not None and not running.response_complete:
            running.scope["state"][GONE] = True
            running.disconnected = True  # uvicorn tells only the one that was read last
            running.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._receiving != "body":
            self._header_bytes += len(data)
        self._unset_keepalive_if_required()
        try:
            self._parse(data)
        except httptools.HttpParserError:
            self.logger.warning("Invalid HTTP request received.")
            self.send_400_response("")
            return
        if self._receiving == "headers" and self._header_bytes > HEADER_BYTES and not self.transport.is_closing():
            self._refuse_headers()
            self.send_400_response("")

    def _parse(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            try:
                self.parser.feed_data(rest)
                return
            except httptools.HttpParserUpgrade as stopped:  # it has read the head, and nothing behind it
                assert self._upgrade is not None
                rest = rest[stopped.args[0] :]
                head, self._upgrade = self._upgrade, None
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's own
                self.parser.feed_data(head)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._kept_bytes = 0
        self._expect("headers", self.limits.header_seconds)

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._kept_bytes += len(name) + len(value) + 4  # the colon and the end of the line are bytes too
        if self._kept_bytes + len(self.url) > HEADER_BYTES:
            self._refuse_headers()
            raise ValueError("headers too large")

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            self._upgrade = self._head_without_upgrade()
            return
        if len(self.pipeline) >= AHEAD:
            raise ValueError("too many requests ahead")
        self._header_bytes = 0
        if self._surplus:
            self.scope["state"][SURPLUS] = True
        self._expect("body", self.limits.body_seconds)
        super().on_headers_complete()

    def _head_without_upgrade(self) -> bytes:
        method = self.parser.get_method()
        if method == b"CONNECT":  # no header makes it one: it always is
            self._refusal = (400, "this server is no proxy: CONNECT is not offered here")
            raise ValueError("CONNECT")
        lines = [b"%s %s HTTP/%s" % (method, self.url, self.parser.get_http_version().encode())]
        lines += [b"%s: %s" % header for header in self.headers if header[0] != b"upgrade"]
        return b"\r\n".join([*lines, b"", b""])

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def on_message_complete(self) -> None:
        if self._upgrade is not None:
            return
        self._expect(None)
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._await_taking()  # close() alone would wait for ever for a client that does not read

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._await_taking()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._await_taking()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._taking is not None:
            self._taking.cancel()
            self._taking = None
        if self.transport.is_closing():
            self._await_taking()

    def send_400_response(self, msg: str) -> None:
        if (running := self._running) is not None and not running.response_complete and not running.more_body:
            # What came before the nonsense is answered, and nothing after it.
            self.metrics.cut.labels("not-http").inc()
            self._expect(None)
            self.pipeline.clear()
            running.keep_alive = False
            self.flow.pause_reading()
            return
        status, sentence = self._refusal
        self._cut(status, sentence, "not-http" if status == 400 else "headers-too-large")

    def _refuse_headers(self) -> None:
        self._refusal = (431, f"the request's headers are larger than {HEADER_BYTES} bytes")

    def _expect(self, what: str | None, seconds: float = 0.0) -> None:
        """From now on `what` has to come whole within so many seconds."""
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self._receiving = what or "complete"
        if what is not None:
            self._deadline = self.loop.call_later(seconds, self._overdue, seconds)

    def _overdue(self, seconds: float) -> None:
        if self.flow.read_paused:  # it is we who do not read
            self._deadline = self.loop.call_later(seconds, self._overdue, seconds)
            return
        what = self._receiving
        sentence = f"the request's {what} did not come whole within {seconds:g} seconds"
        self._cut(408 if what in ("headers", "body") else None, sentence, f"slow-{what}")

    def _cut(self, status: int | None, sentence: str, reason: str) -> None:
        self.metrics.cut.labels(reason).inc()
        if status is not None and self._may_speak() and not self.transport.is_closing():
            self.transport.write(raw_reply(status, sentence))
        self.transport.close()
        self._await_taking()

    def _may_speak(self) -> bool:
        """Whether nothing else is being said on this connection."""
        if (running := self._running) is None or running.response_complete:
            return True
        return self._receiving == "body" and running is self.cycle and not running.response_started

    def _await_taking(self) -> None:
        if self._taking is None:
            self._taking = self.loop.call_later(self.limits.write_seconds, self._not_taken)

    def _not_taken(self) -> None:
        self._taking = None
        self.metrics.cut.labels("slow-reader").inc()
        self.transport.abort()


def connection_class(limits: Limits, metrics: Metrics) -> type[Connection]:
    """A class as uvicorn wants it: it makes the connections itself."""
    return type("BoundConnection", (Connection,), {"limits": limits, "metrics": metrics})
