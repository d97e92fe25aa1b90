"""A rolling restart as a cluster does it: servers behind a proxy that learns late which of them are leaving.

The proxy is what kube-proxy is: connections, not requests, to the endpoints that it knows. The clients are
tritonclient's, some on connections that they keep, some on a new one each time. Nothing here goes by time: a server
drains until the test has seen what it waits for, and a second SIGTERM stands for the end of `--drain-seconds`.
"""

import asyncio
import itertools
import signal
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as triton

from tests.pipelines.conftest import Server, expected, until

IMAGES = np.random.default_rng(2).integers(0, 256, (2, 8, 8, 1), dtype=np.uint8)


class Proxy:
    """Connects each new client to one of the endpoints, in turn.

    Attributes:
        endpoints: addresses, to add to; `remove` takes one out.
        taken: connections that an endpoint took, by address; open: of them, those that are open.
        refused: those that it did not take.
    """

    def __init__(self) -> None:
        self.endpoints: list[str] = []
        self.taken: Counter[str] = Counter()
        self.open: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self._turn = itertools.count()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy")

    def __enter__(self) -> "Proxy":
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._connected, "127.0.0.1", 0), self._loop
        ).result()
        host, port = self._server.sockets[0].getsockname()
        self.address = f"{host}:{port}"
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._server.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    def remove(self, address: str) -> None:
        """No connection goes there any more; those that were on their way are counted as open."""

        async def remove() -> None:
            self.endpoints.remove(address)

        asyncio.run_coroutine_threadsafe(remove(), self._loop).result()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        endpoints = list(self.endpoints)
        address = endpoints[next(self._turn) % len(endpoints)]
        host, _, port = address.partition(":")
        self.open[address] += 1
        try:
            answers, requests = await asyncio.open_connection(host, int(port))
        except OSError:
            self.refused[address] += 1
            writer.close()
        else:
            self.taken[address] += 1
            await asyncio.gather(self._pass(reader, requests), self._pass(answers, writer))
        self.open[address] -= 1

    @staticmethod
    async def _pass(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        try:
            while content := await source.read(1 << 16):
                target.write(content)
                await target.drain()
        except OSError:
            pass
        finally:
            target.close()


class Clients:
    """Ask all the while; `answers` counts the right ones, `wrong` has what else was heard."""

    def __init__(self, address: str, answer: np.ndarray) -> None:
        self.answers, self.wrong = 0, []
        self._address, self._answer = address, answer
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._threads = [threading.Thread(target=self._run, args=(keeps,)) for keeps in (True, True, False, False)]

    def __enter__(self) -> "Clients":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, keeps: bool) -> None:
        client = self._client()
        tensor = triton.InferInput("image", IMAGES.shape, "UINT8")
        tensor.set_data_from_numpy(IMAGES)
        while not self._stop.wait(0.01):  # a pause, lest they take the cores that a new server starts on
            try:
                right = np.allclose(client.infer("gkd-student", [tensor]).as_numpy("logits"), self._answer, atol=1e-5)
                heard = "" if right else "another answer"
            except Exception as error:
                heard = repr(error)
            with self._lock:
                if heard:
                    self.wrong.append(heard)
                else:
                    self.answers += 1
            if heard or not keeps:
                client.close()
                client = self._client()
        client.close()

    def _client(self) -> triton.InferenceServerClient:
        return triton.InferenceServerClient(self._address, connection_timeout=60, network_timeout=60)


@pytest.fixture(scope="module")
def deploy(tmp_path_factory, make_deploy) -> Path:
    return make_deploy(tmp_path_factory.mktemp("rolled") / "deploy", seed=3)


def more(count: Callable[[], int], by: int) -> Callable[[], bool]:
    """A condition: so many more than now."""
    before = count()
    return lambda: count() >= before + by


def leave(proxy: Proxy, server: Server) -> None:
    """Stop a server as a cluster does: it is told before the proxy knows, and killed when no connection is left."""
    server.process.send_signal(signal.SIGTERM)
    until(lambda: server.events("leaving"), "the server is told")
    until(more(lambda: proxy.taken[server.address], 5), "the proxy still leads new connections there")
    proxy.remove(server.address)
    until(lambda: not proxy.open[server.address], "its last client is gone")
    told = server.stop()
    assert told["accepted"] == told["answered"] > 0


@pytest.mark.slow
def test_a_rolling_restart_refuses_nobody_and_a_server_that_does_not_drain_would(start, deploy):
    """The second half is the control: it shows that the proxy and the clients would have noticed."""
    old = [start(deploy, "--drain-seconds", "600") for _ in range(2)]
    with Proxy() as proxy:
        proxy.endpoints = [server.address for server in old]
        with Clients(proxy.address, expected(deploy / "model.onnx", IMAGES)) as clients:
            until(lambda: min(proxy.taken[server.address] for server in old) > 2, "both are asked")
            for server in old:
                new = start(deploy, "--drain-seconds", "0")
                proxy.endpoints.append(new.address)
                until(lambda address=new.address: proxy.taken[address], "the new one is asked")
                leave(proxy, server)
            until(more(lambda: clients.answers, 20), "they go on")
            assert clients.wrong == []
            assert not proxy.refused

            new.process.send_signal(signal.SIGTERM)
            until(lambda: proxy.refused[new.address], "one that stops at once is not there when the proxy comes")
            until(lambda: clients.wrong, "and its clients notice")
            proxy.remove(new.address)
