"""The endpoints: Open Inference Protocol v2, /classify, /metrics, and a page to try it.

Bodies are read raw, whatever their content type says, and every error is one sentence in `{"error": …}`.
"""

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from functools import partial
from html import escape
from math import prod
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Lifespan

from gkd_core import __version__
from gkd_core.data.images import Unreadable, read_image
from gkd_core.errors import unknown
from gkd_core.export.manifest import PIXELS_SUFFIX
from gkd_core.serving.batching import Batcher
from gkd_core.serving.bodies import Bodies
from gkd_core.serving.classify import answers
from gkd_core.serving.front import error_response
from gkd_core.serving.limits import Limits, Overloaded
from gkd_core.serving.metrics import Metrics
from gkd_core.serving.model import Model
from gkd_core.serving.protocol import encode_response, json_length, largest_body, parse_request
from gkd_core.serving.reload import Served
from gkd_core.serving.tensors import Array, ProtocolError
from gkd_core.serving.workers import Workers

HEADER_LENGTH = "inference-header-content-length"
LONG_JSON = 256 << 10  # bytes of JSON from which it is read in a process: some milliseconds of work
PAGE = Path(__file__).with_name("page")
PAGES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/view.js": ("view.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
PAGE_HEADERS = {
    # The page loads nothing from elsewhere, and a browser is told to allow nothing else.
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


class Serving:
    """The endpoints, and what they share."""

    def __init__(self, name: str, served: Served, limits: Limits, metrics: Metrics, batcher: Batcher) -> None:
        self.name = name
        self.served = served
        self.leaving = False
        self._limits = limits
        self._metrics = metrics
        self._batcher = batcher
        self._bodies = Bodies(limits)
        self._workers = Workers()
        self._pictures = 0

    def app(self, lifespan: Lifespan[Starlette]) -> Starlette:
        """The ASGI application; `Front` goes around it."""
        routes = []
        packed = [Middleware(GZipMiddleware, minimum_size=1024, compresslevel=1, exclude_content_types=())]
        for path in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
            routes += [
                Route(f"{path}/infer", self.infer, methods=["POST"], middleware=packed),
                Route(path, self.model_metadata),
                Route(f"{path}/ready", self.ready),
            ]
        routes += [
            Route("/classify", self.classify, methods=["POST"]),
            Route("/v2/health/live", self.live),
            Route("/v2/health/ready", self.ready),
            Route("/v2", self.server_metadata),
            Route("/metrics", self.metrics),
            *(Route(path, self.page) for path in PAGES),
        ]
        handlers = {HTTPException: _not_offered, ProtocolError: self._refused}
        app = Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan)
        app.router.redirect_slashes = False
        return app

    def close(self) -> None:
        """Once nothing is at work any more."""
        self._workers.close()
        self._batcher.close()

    async def infer(self, request: Request) -> Response:
        """POST …/infer: tensors in, tensors out."""
        model = self._model(request)
        header_length, of_pictures = request.headers.get(HEADER_LENGTH), model.input.of_any_size
        limits = {"max_batch": self._limits.max_batch, "max_pixels": self._limits.pixels}
        largest = largest_body(model.input, **limits)
        async with self._bodies.read(request, largest, of_pictures=of_pictures) as body, self._in_time():
            parse = partial(parse_request, body, header_length, input=model.input, outputs=model.outputs, **limits)
            long = json_length(header_length, body) > LONG_JSON
            parsed = await self._workers.run(parse) if long else parse()
            most = max(1, self._limits.pixels // prod(parsed.images.shape[1:3])) if of_pictures else None
            found = await self._batcher.submit(model, parsed.images, most=most)
        reply, json_size = encode_response(
            found, model.outputs, parsed, model_name=request.path_params["name"], model_version=model.version
        )
        if json_size is None:
            return Response(reply, media_type="application/json")
        return Response(reply, headers={HEADER_LENGTH: str(json_size)}, media_type="application/octet-stream")

    async def classify(self, request: Request) -> Response:
        """POST /classify?top=N: the bytes of one picture in, class names, probabilities and the decision out."""
        model = self.served.model
        top = request.query_params.get("top", "5")
        if not (top.isascii() and top.isdigit() and len(top) <= 6 and int(top) > 0):
            raise ProtocolError("`top` is no number of classes")
        async with self._bodies.read(request) as body, self._in_time():
            found = await self._batcher.submit(model, await self._decoded(body, model))
        return JSONResponse(
            {"model_name": self.name, "model_version": model.version, **answers(model, found, int(top))[0]}
        )

    async def live(self, request: Request) -> Response:
        """GET /v2/health/live."""
        return JSONResponse({"live": True})

    async def ready(self, request: Request) -> Response:
        """GET /v2/health/ready and …/ready of the model: 503 once the server is shutting down."""
        if "name" in request.path_params:
            self._model(request)
        if self.leaving:
            return JSONResponse({"ready": False, "error": "the server is shutting down"}, 503)
        return JSONResponse({"name": request.path_params.get("name", self.name), "ready": True})

    async def server_metadata(self, request: Request) -> Response:
        """GET /v2."""
        return JSONResponse({"name": "gkd", "version": __version__, "extensions": ["binary_tensor_data"]})

    async def model_metadata(self, request: Request) -> Response:
        """GET /v2/models/NAME[/versions/V]: tensors, class names and lineage."""
        model = self._model(request)
        return JSONResponse(
            {
                "name": request.path_params["name"],
                "versions": [model.version],
                "platform": "onnxruntime_onnx",
                "inputs": [asdict(model.input)],
                "outputs": [asdict(output) for output in model.outputs],
                "parameters": model.facts,
            }
        )

    async def metrics(self, request: Request) -> Response:
        """GET /metrics."""
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def page(self, request: Request) -> Response:
        """GET / and the files of the page."""
        file, kind = PAGES[request.url.path]
        text = (PAGE / file).read_text(encoding="utf-8")
        if file == "index.html":
            text = text.replace("{{name}}", escape(self.name))
        return Response(text, headers=PAGE_HEADERS, media_type=kind)

    def _model(self, request: Request) -> Model:
        """The model a request's path names.

        Raises:
            ProtocolError: another name or version is served.
        """
        name, version = request.path_params["name"], request.path_params.get("version")
        model = self.served.model
        offered = {self.name: model} | ({} if model.pixels is None else {f"{self.name}{PIXELS_SUFFIX}": model.pixels})
        if name not in offered:
            raise ProtocolError(unknown("model", name[:100], list(offered)), 404)
        if version not in (None, model.version):
            raise ProtocolError(f"{name} is served in version {model.version}, not {version[:100]!r}", 404)
        return offered[name]

    @asynccontextmanager
    async def _in_time(self) -> AsyncIterator[None]:
        """What answers a request; the clock starts once its body is there.

        Raises:
            Overloaded: it took too long.
        """
        try:
            async with asyncio.timeout(self._limits.timeout):
                yield
        except TimeoutError:
            raise Overloaded("time", f"there was no answer within {self._limits.timeout:g} seconds") from None

    async def _decoded(self, body: bytes, model: Model) -> Array:
        """A picture's bytes as a batch of one input.

        Raises:
            Overloaded: too many pictures wait to be decoded.
            ProtocolError: it is no picture, or the model takes none.
        """
        if model.picture is None:
            raise ProtocolError(f"{self.name} does not take square grey or colour images: use the infer endpoint")
        if self._pictures >= self._limits.pictures:
            raise Overloaded("pictures", f"{self._pictures} pictures are waiting to be decoded already")
        side, channels = model.picture
        limit = self._limits.pixels
        decode = partial(read_image, io.BytesIO(body), side, channels, max_pixels=limit, crop=model.crop)
        self._pictures += 1
        try:
            return model.from_pictures((await self._workers.run(decode))[None])
        except Unreadable as error:
            raise ProtocolError(f"the body is no picture that can be read: {error}") from None
        finally:
            self._pictures -= 1

    async def _refused(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, ProtocolError)
        if not isinstance(error, Overloaded):
            return error_response(error.status, str(error))
        self._metrics.refused.labels(error.reason).inc()
        return error_response(error.status, str(error), {"retry-after": "1"})


async def _not_offered(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    sentence = f"{request.method} {request.url.path[:200]} is not offered here"
    return error_response(error.status_code, sentence, dict(error.headers or {}))
