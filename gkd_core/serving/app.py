"""The endpoints: Open Inference Protocol v2, /classify, /metrics, and a page to try it.

Handlers are plain routes: bodies are read raw, whatever their content type says, and every error is one sentence in
`{"error": …}`, the only thing that clients of the protocol read.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from gkd_core import __version__
from gkd_core.data.images import Unreadable
from gkd_core.errors import unknown
from gkd_core.serving.batching import Batcher
from gkd_core.serving.bodies import Body, whole_body
from gkd_core.serving.classify import ranked
from gkd_core.serving.compression import WORTH, choose, compress
from gkd_core.serving.limits import Budget, Limits, Overloaded
from gkd_core.serving.logs import log
from gkd_core.serving.metrics import Metrics
from gkd_core.serving.model import Model
from gkd_core.serving.parsing import Parser
from gkd_core.serving.pictures import Decoder
from gkd_core.serving.protocol import encode_response, largest_body
from gkd_core.serving.reload import Served
from gkd_core.serving.tensors import Array, ProtocolError, TensorSpec

HEADER_LENGTH = "inference-header-content-length"
PAGE = Path(__file__).with_name("page")
# The page loads nothing from elsewhere, and a browser is told to allow nothing else.
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@dataclass
class Serving:
    """All that the endpoints share."""

    name: str
    served: Served
    limits: Limits
    metrics: Metrics
    batcher: Batcher
    poll_seconds: float
    ready: bool = True

    def __post_init__(self) -> None:
        self.budget = Budget(self.limits)
        self.decoder = Decoder(self.limits)
        self.parser = Parser()

    def model(self, request: Request) -> Model:
        """The model a request's path names.

        Raises:
            ProtocolError: another name or version is served.
        """
        name, version = request.path_params["name"], request.path_params.get("version")
        model = self.served.model
        if name != self.name:
            raise ProtocolError(unknown("model", name[:100], [self.name]), 404)
        if version not in (None, model.version):
            raise ProtocolError(f"{self.name} is served in version {model.version}, not {version[:100]!r}", 404)
        return model

    @asynccontextmanager
    async def in_time(self) -> AsyncIterator[None]:
        """What answers a request; the clock starts once its body is there.

        Raises:
            Overloaded: it took too long.
        """
        try:
            async with asyncio.timeout(self.limits.timeout):
                yield
        except TimeoutError:
            raise Overloaded("time", f"there was no answer within {self.limits.timeout:g} seconds") from None

    async def decoded(self, body: Body, model: Model) -> Array:
        """A picture's bytes as a batch of one input.

        Raises:
            Overloaded: too many pictures wait to be decoded.
            ProtocolError: it is no picture, or the model takes none.
        """
        if model.picture is None:
            raise ProtocolError(f"{self.name} does not take square grey or colour images: use the infer endpoint")
        side, channels = model.picture
        try:
            picture = await self.decoder.decode(body.content, side, channels, begun=body.begun)
        except Unreadable as error:
            raise ProtocolError(f"the body is no picture that can be read: {error}") from None
        return model.from_pictures(picture[None])

    def body(self, request: Request, largest: int | None = None) -> AbstractAsyncContextManager[Body]:
        """As `whole_body`."""
        return whole_body(request, self.limits, self.budget, self.parser, largest)


def _error(status: int, sentence: str, headers: dict[str, str] | None = None) -> Response:
    return _json({"error": sentence}, status, headers)


def _json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    body = json.dumps(content, separators=(",", ":")).encode()
    return Response(body, status, headers, media_type="application/json")


Handler = Callable[[Serving, Request], Awaitable[Response]]


async def infer(serving: Serving, request: Request) -> Response:
    """POST …/infer: tensors in, tensors out."""
    model = serving.model(request)
    header_length, max_batch = request.headers.get(HEADER_LENGTH), serving.limits.max_batch
    largest = largest_body(header_length, model.inputs, max_batch)
    async with serving.body(request, largest) as body, serving.in_time():
        parsed = await serving.parser.parse(
            body.content,
            header_length,
            inputs=model.inputs,
            outputs=model.outputs,
            max_batch=max_batch,
            begun=body.begun,
        )
        logits = await serving.batcher.submit(model, parsed.inputs[model.inputs[0].name])
    reply, json_size = encode_response(
        {model.outputs[0].name: logits},
        model.outputs,
        parsed,
        model_name=serving.name,
        model_version=model.version,
    )
    headers = {} if json_size is None else {HEADER_LENGTH: str(json_size)}
    encoding = choose(request.headers.get("accept-encoding"))
    if encoding is not None and len(reply) >= WORTH:
        reply = compress(reply, encoding)
        headers |= {"content-encoding": encoding, "vary": "accept-encoding"}
    kind = "application/json" if json_size is None else "application/octet-stream"
    return Response(reply, headers=headers, media_type=kind)


async def classify(serving: Serving, request: Request) -> Response:
    """POST /classify?top=N: the bytes of one picture in, class names and probabilities out."""
    model = serving.served.model
    top = request.query_params.get("top", "5")
    if not (top.isascii() and top.isdigit() and len(top) <= 6 and int(top) > 0):
        raise ProtocolError("`top` is no number of classes")
    async with serving.body(request) as body, serving.in_time():
        logits = await serving.batcher.submit(model, await serving.decoded(body, model))
    return _json(
        {
            "model_name": serving.name,
            "model_version": model.version,
            "predictions": ranked(logits, model.classes, int(top))[0],
        }
    )


async def live(serving: Serving, request: Request) -> Response:
    """GET /v2/health/live."""
    return _json({"live": True})


async def ready(serving: Serving, request: Request) -> Response:
    """GET /v2/health/ready and …/ready of the model: 503 once the server is shutting down."""
    if "name" in request.path_params:
        serving.model(request)
    if not serving.ready:
        return _json({"ready": False, "error": "the server is shutting down"}, 503)
    return _json({"name": serving.name, "ready": True})


async def server_metadata(serving: Serving, request: Request) -> Response:
    """GET /v2."""
    return _json({"name": "gkd", "version": __version__, "extensions": ["binary_tensor_data"]})


async def model_metadata(serving: Serving, request: Request) -> Response:
    """GET /v2/models/NAME[/versions/V]: tensors, class names and lineage."""
    model = serving.model(request)
    return _json(
        {
            "name": serving.name,
            "versions": [model.version],
            "platform": "onnxruntime_onnx",
            "inputs": [_described(spec) for spec in model.inputs],
            "outputs": [_described(spec) for spec in model.outputs],
            "parameters": model.facts,
        }
    )


def _described(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}


async def metrics(serving: Serving, request: Request) -> Response:
    """GET /metrics."""
    return Response(serving.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


_PAGES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}


async def page(serving: Serving, request: Request) -> Response:
    """GET / and the files of the page."""
    file, kind = _PAGES[request.url.path]
    text = (PAGE / file).read_text(encoding="utf-8")
    if file == "index.html":
        text = text.replace("{{name}}", escape(serving.name))
    headers = {
        "content-security-policy": PAGE_POLICY,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    }
    return Response(text, headers=headers, media_type=kind)


_MODEL = ("/v2/models/{name}", "/v2/models/{name}/versions/{version}")


def build_app(serving: Serving) -> FastAPI:
    """The ASGI application; `Front` goes around it."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        watching = asyncio.create_task(serving.served.watch(serving.poll_seconds))
        yield
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
        serving.batcher.close()
        serving.decoder.close()
        serving.parser.close()

    app = FastAPI(
        lifespan=lifespan,
        openapi_url=None,  # no generated documentation: its page would load scripts from elsewhere
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # /metrics is asked, nothing is sent
    )

    def route(path: str, handler: Handler, method: str = "GET") -> None:
        async def endpoint(request: Request) -> Response:
            return await _answered(serving, handler, request)

        endpoint.__name__ = handler.__name__
        app.add_route(path, endpoint, methods=[method])

    for place in _MODEL:
        route(f"{place}/infer", infer, "POST")
    route("/classify", classify, "POST")
    route("/v2/health/live", live)
    route("/v2/health/ready", ready)
    route("/v2", server_metadata)
    for place in _MODEL:
        route(place, model_metadata)
        route(f"{place}/ready", ready)
    route("/metrics", metrics)
    for path in _PAGES:
        route(path, page)
    app.add_exception_handler(HTTPException, _not_found)
    return app


async def _answered(serving: Serving, handler: Handler, request: Request) -> Response:
    """The handler's answer, or the sentence that stands for what went wrong."""
    try:
        return await handler(serving, request)
    except Overloaded as error:
        serving.metrics.refused.labels(error.reason).inc()
        return _error(error.status, str(error), {"retry-after": "1"})
    except ProtocolError as error:
        return _error(error.status, str(error))
    except ClientDisconnect:
        return Response(status_code=400)  # nobody is there to read it
    except Exception:
        log.exception("failed", extra={"endpoint": handler.__name__})
        return _error(500, "the server failed on this request; its log says more")


async def _not_found(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path[:200]
    sentence = f"{request.method} {path} is not offered here" if error.status_code in (404, 405) else str(error.detail)
    return _error(error.status_code, sentence, dict(error.headers or {}))
