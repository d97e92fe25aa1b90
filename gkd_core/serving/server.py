"""One process that serves one model: uvicorn, and a shutdown that finishes what was accepted."""

import asyncio
import math
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import uvicorn
from starlette.applications import Starlette

from gkd_core.errors import GkdError
from gkd_core.serving.app import Serving
from gkd_core.serving.authorisation import Token
from gkd_core.serving.batching import Batcher
from gkd_core.serving.front import Front
from gkd_core.serving.limits import Limits
from gkd_core.serving.logs import log
from gkd_core.serving.metrics import Metrics
from gkd_core.serving.reload import Served, Source

UNFIT_IN_PATHS = "/\\%?#"


@dataclass(frozen=True)
class Settings:
    """How to serve.

    Attributes:
        name: of the model, in paths: a part of one.
        host, port: where to listen; port 0 takes a free one.
        limits: what clients may take.
        max_delay: seconds an incomplete batch waits for more requests.
        batching: False sends every request through the model alone.
        threads: within an operator of the model; None takes what this process may (`thread_limit`).
        poll_seconds: between two polls of the source.
        drain_seconds: from a SIGTERM, in which the server says it is not ready and still takes requests.
        token: what clients must send; None admits everybody.
        log_requests: a line for every request, not for failures only.
    """

    name: str
    host: str = "127.0.0.1"
    port: int = 8080
    limits: Limits = field(default_factory=Limits)
    max_delay: float = 0.0
    batching: bool = True
    threads: int | None = None
    poll_seconds: float = 10.0
    drain_seconds: float = 1.0
    token: Token | None = None
    log_requests: bool = False

    def __post_init__(self) -> None:
        """Check the name.

        Raises:
            GkdError: no path could have it, or only in writing that clients differ about.
        """
        name = self.name
        dots = not name.strip(".")  # what paths leave out
        if dots or len(name) > 200 or not name.isprintable() or name != name.strip() or set(name) & set(UNFIT_IN_PATHS):
            raise GkdError(
                f"the model cannot be served by the name {name[:200]!r}, which is a part of paths: choose another with "
                f"--name, of up to 200 printable characters and none of {' '.join(UNFIT_IN_PATHS)}"
            )


def serve(source: Source, settings: Settings, *, started: Callable[[str, Serving], None]) -> dict[str, int]:
    """Serve until SIGTERM or SIGINT, then finish what was accepted.

    Args:
        started: told the address once requests are taken.
    Returns:
        accepted, answered: numbers of requests, as `Front` counts them.
    Raises:
        GkdError: there is no model to serve, or the address cannot be listened on.
    """
    limits, metrics = settings.limits, Metrics()
    listening = _listen(settings.host, settings.port)
    try:
        served = Served(source, metrics, threads=settings.threads)
        batcher = Batcher(
            max_batch=limits.max_batch,
            max_delay=settings.max_delay,
            queue=limits.queue,
            batching=settings.batching,
            observe=metrics.batch,
        )
        serving = Serving(settings.name, served, limits, metrics, batcher)
        host, port = listening.getsockname()[:2]
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"

        @asynccontextmanager
        async def lifespan(app: Starlette) -> AsyncIterator[None]:
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):  # instead of uvicorn's, which stop listening at once
                loop.add_signal_handler(number, leave, number)
            watching = asyncio.create_task(served.watch(settings.poll_seconds))
            started(url, serving)
            yield
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching
            serving.close()

        def leave(number: signal.Signals) -> None:
            if front.leaving:  # asked twice: do not wait for others to notice
                server.should_exit = True
                return
            serving.leaving = front.leaving = True
            log.info("leaving", extra={"signal": number.name, "waiting": batcher.waiting_images})
            asyncio.get_running_loop().call_later(settings.drain_seconds, setattr, server, "should_exit", True)

        app = serving.app(lifespan)
        front = Front(app, metrics, token=settings.token, log_requests=settings.log_requests)
        server = uvicorn.Server(
            uvicorn.Config(
                front,
                http="httptools",
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                limit_concurrency=limits.connections + 1,
                timeout_keep_alive=limits.idle_seconds,
                timeout_graceful_shutdown=math.ceil(limits.timeout) + 1,
            )
        )
        metrics.watch(queue=lambda: batcher.waiting_images, connections=lambda: len(server.server_state.connections))
        log.info("starting", extra={"url": url, "model": settings.name, "version": served.model.version})
        server.run(sockets=[listening])
    finally:
        listening.close()
    counts = {"accepted": front.accepted, "answered": front.answered}
    log.info("stopped", extra=counts)
    return counts


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, number, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, number)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(2048)  # now, so that who is told the address finds it open
    except (OSError, OverflowError, UnicodeError) as error:  # the last for a name that is none
        reason = getattr(error, "strerror", None) or error
        raise GkdError(f"{host}:{port} cannot be listened on ({reason}): choose another --host or --port") from None
    return listening
