"""What every request passes before its endpoint: the counts, the token, the log.

Plain ASGI around the application.
"""

import time

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gkd_core.serving.authorisation import Token
from gkd_core.serving.logs import log
from gkd_core.serving.metrics import Metrics

OPEN = frozenset({"/", "/page.css", "/page.js", "/view.js", "/icon.svg", "/v2/health/live", "/v2/health/ready"})
UNANSWERED = 499  # the status, in counts and logs, of a request without an answer


def error_response(status: int, sentence: str, headers: dict[str, str] | None = None) -> Response:
    """The only form of error that clients of the protocol read."""
    return JSONResponse({"error": sentence}, status, headers)


class Front:
    """ASGI application around another.

    Attributes:
        accepted, answered: requests that came, and whose answer was handed over whole; the rest were cut off, or are at
            work. One whose client left before its body had come is in neither.
        leaving: set while shutting down: every answer then asks its client to connect anew, elsewhere.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        *,
        token: Token | None = None,
        log_requests: bool = False,
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._token = token
        self._log_requests = log_requests
        self.accepted = 0
        self.answered = 0
        self.leaving = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; other kinds of events go through untouched."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        self.accepted += 1
        start, status = time.perf_counter(), UNANSWERED
        headers = Headers(scope=scope)
        refusal = self._refusal(scope, headers)
        # After a request for an upgrade the HTTP parser is in no state to read another one.
        closing = "upgrade" in headers

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if closing or self.leaving:
                    message = {**message, "headers": [*message.get("headers", []), (b"connection", b"close")]}
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                self.answered += 1

        try:
            try:
                await (refusal or self._app)(scope, receive, send_on)
            except ClientDisconnect:
                self.accepted -= 1
            except Exception:
                log.exception("failed", extra={"endpoint": _endpoint(scope)})
                if status != UNANSWERED:
                    raise
                failure = error_response(500, "the server failed on this request; its log says more")
                await failure(scope, receive, send_on)
        finally:
            self._note(scope, status, time.perf_counter() - start)

    def _refusal(self, scope: Scope, headers: Headers) -> Response | None:
        if self._token is not None and scope["path"] not in OPEN:
            given = headers.get("authorization", "")
            if not self._token.admits(given.encode("latin-1")):
                sentence = "this server wants its token: send it as `Authorization: Bearer …`"
                return error_response(401, sentence, {"www-authenticate": "Bearer"})
        if "upgrade" in headers and (
            "transfer-encoding" in headers or headers.get("content-length", "0") not in ("0", "")
        ):
            # uvicorn's parser takes the body for another protocol and drops it (Kludex/uvicorn#2722).
            return error_response(
                400,
                "a request with a body cannot ask for an upgrade here: send it as HTTP/1.1 without Upgrade "
                "(curl --http1.1, Java's HttpClient.Version.HTTP_1_1), or through a proxy",
            )
        return None

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        endpoint = _endpoint(scope)
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


def _endpoint(scope: Scope) -> str:
    return getattr(scope.get("endpoint"), "__name__", "none")
