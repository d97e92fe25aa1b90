"""A real `gkd serve` for tests, started on a free port, asked, put under load, stopped by its process id; and compiled
pipelines, with a way to whoever takes them.
"""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import yaml

from gkd_core.errors import GkdError
from tests.conftest import GKD

INFER = "/v2/models/gkd-student/infer"
SECRET = "s3cr3t-t0k3n"


def body(images: np.ndarray, **changed: Any) -> bytes:
    entry = {"name": "image", "datatype": "UINT8", "shape": list(images.shape), "data": images.ravel().tolist()}
    return json.dumps({"inputs": [entry | changed]}).encode()


def expected(model: Path, images: np.ndarray) -> np.ndarray:
    """What onnxruntime alone answers."""
    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {"image": images})[0]


def logits(content: bytes) -> np.ndarray:
    output = json.loads(content)["outputs"][0]
    return np.array(output["data"], np.float32).reshape(output["shape"])


@contextmanager
def says(*parts: str):
    """The block is refused in one sentence with these parts in it, and no secret."""
    with pytest.raises(GkdError) as raised:
        yield
    told = str(raised.value)
    assert "\n" not in told
    assert raised.value.exit_code == 2
    for secret in (SECRET, "hunter2"):
        assert secret not in told
    for part in parts:
        assert part in told


def cached(spec: dict) -> list[str]:
    """Tasks that may be taken from the cluster's cache."""
    dags = [part["dag"] for part in [spec["root"], *spec["components"].values()] if "dag" in part]
    return [
        name for dag in dags for name, task in dag["tasks"].items() if task.get("cachingOptions", {}).get("enableCache")
    ]


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    content: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.content)

    @property
    def logits(self) -> np.ndarray:
        return logits(self.content)


@dataclass
class Server:
    """A running `gkd serve`."""

    process: subprocess.Popen
    url: str
    log: Path
    told: dict[str, Any] = field(default_factory=dict)

    @property
    def address(self) -> str:
        return self.url.removeprefix("http://")

    def connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self.address, timeout=60)

    def ask(self, method: str, path: str, content: bytes | None = None, **headers: str) -> Reply:
        connection = self.connection()
        try:
            connection.request(method, path, content, {name.replace("_", "-"): text for name, text in headers.items()})
            reply = connection.getresponse()
            return Reply(reply.status, {k.lower(): v for k, v in reply.getheaders()}, reply.read())
        finally:
            connection.close()

    def infer(self, images: np.ndarray) -> Reply:
        return self.ask("POST", INFER, body(images))

    def metric(self, line: str) -> float:
        text = self.ask("GET", "/metrics").content.decode()
        values = [row.rpartition(" ")[2] for row in text.splitlines() if row.startswith(line + " ")]
        return float(values[0]) if values else 0.0

    def socket(self) -> socket.socket:
        host, _, port = self.address.partition(":")
        return socket.create_connection((host, int(port)), timeout=60)

    def stop(self) -> dict[str, Any]:
        """SIGTERM, and what it says last."""
        self.process.send_signal(signal.SIGTERM)
        return self.ended()

    def ended(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        rest = self.process.stdout.read()
        assert self.process.wait(60) == 0, self.log.read_text()
        return json.loads(rest.splitlines()[-1])

    def events(self, name: str) -> list[dict[str, Any]]:
        return [line for line in map(json.loads, self.log.read_text().splitlines()) if line["event"] == name]


@pytest.fixture(scope="session", name="until")
def _until() -> Callable[..., None]:
    """A function that waits until a condition holds, and fails when it never does."""
    return until


def until(condition: Callable[[], Any], what: str) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, f"never happened: {what}"
        time.sleep(0.02)


@pytest.fixture(scope="session")
def load_on() -> type["Load"]:
    """A block with clients that keep asking a server; see `Load`."""
    return Load


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Iterator[Callable[..., Server]]:
    """A function that starts a server on a free port and waits until it listens; all are stopped in the end."""
    started: list[Server] = []

    def begin(model: Path | str, *options: str, **environment: str) -> Server:
        log = tmp_path_factory.mktemp("served") / "log"
        command = [*GKD, "serve", str(model), "--port", "0", "--threads", "1", *options]
        surroundings = {name: text for name, text in os.environ.items() if not name.startswith(("MLFLOW_", "GKD_"))}
        with log.open("w") as stream:
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=stream, text=True, env=surroundings | environment
            )
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, log.read_text()
        told = json.loads(line)
        started.append(Server(process, told["url"], log, told))
        return started[-1]

    yield begin
    for server in started:
        server.process.kill()
        server.process.wait()
        if server.process.stdout is not None:
            server.process.stdout.close()


class Load:
    """Clients that ask again and again, each on a connection it keeps, and count what they hear."""

    def __init__(self, server: Server, images: np.ndarray, *answers: np.ndarray, clients: int = 4) -> None:
        self._server, self._content, self._answers = server, body(images), answers
        self._stop = threading.Event()
        self.heard: list[int] = [0] * len(answers)  # answers, by which model gave them
        self.others: list[str] = []  # anything but a right answer
        self.broken = 0  # connections that ended without one
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        connection = self._server.connection()
        while not self._stop.is_set():
            try:
                connection.request("POST", INFER, self._content)
                reply = connection.getresponse()
                got = Reply(reply.status, {}, reply.read())
            except (OSError, http.client.HTTPException):
                connection.close()
                with self._lock:
                    self.broken += 1
                time.sleep(0.01)
                continue
            with self._lock:
                right = [
                    number
                    for number, answer in enumerate(self._answers)
                    if got.status == 200 and np.allclose(got.logits, answer, atol=1e-5)
                ]
                if right:
                    self.heard[right[0]] += 1
                else:
                    self.others.append(f"{got.status}: {got.content[:200]!r}")


@pytest.fixture
def gkd_here(monkeypatch, capsys) -> Callable[..., tuple[int, str]]:
    """A function that runs the command line in this process: its exit code, and what it said on stderr."""
    from pipelines import cli

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["gkd", *arguments])
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            cli.main()
        except SystemExit as stopped:
            return int(stopped.code or 0), capsys.readouterr().err
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        return 0, capsys.readouterr().err

    return run


@pytest.fixture(scope="session", autouse=True)
def _callers_by_frame() -> Iterator[None]:
    """kfp reads the source of every frame below it, forty times a pipeline, for a name in one of its errors."""
    from kfp.dsl import pipeline_task

    def stack() -> list[Any]:
        return [None, (None, None, None, sys._getframe(2).f_code.co_name)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline_task, "inspect", SimpleNamespace(stack=stack))
        yield


@pytest.fixture(scope="session")
def compiled(tmp_path_factory) -> Callable[..., Path]:
    """A function that compiles a pipeline with the repository's params.yaml, each only once."""
    from pipelines.kubeflow.compile import compile_pipeline

    made: dict[tuple[Any, ...], Path] = {}

    def compiled(profile: str | None = None, which: str = "distillation", parallelism: int | None = None) -> Path:
        key = (profile, which, parallelism)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("compiled") / "pipeline.yaml"
            params = Path(__file__).parents[2] / "params.yaml"
            compile_pipeline(made[key], params=params, profile=profile, which=which, parallelism=parallelism)
        return made[key]

    return compiled


@pytest.fixture(scope="session")
def parts_of() -> Callable[[Path], tuple[Any, Any]]:
    """A function that reads a compiled file: the pipeline's spec, and the pods' by executor ({} without a profile)."""

    def parts_of(file: Path) -> tuple[Any, Any]:
        spec, *platform = yaml.load_all(file.read_text(), Loader=yaml.CSafeLoader)
        pods = platform[0]["platforms"]["kubernetes"]["deploymentSpec"]["executors"] if platform else {}
        return spec, pods

    return parts_of


@pytest.fixture(scope="session")
def whole(compiled) -> Path:
    """The pipeline itself, compiled for one accelerator a pod."""
    return compiled("gpu")


@pytest.fixture(scope="session")
def package(tmp_path_factory) -> Path:
    """A small compiled pipeline, with arguments that have a default and one that has none."""
    from kfp import compiler, dsl

    @dsl.component(base_image="registry.example/gkd:test", install_kfp_package=False)
    def work(params: dict, epochs: int) -> str:
        return str(params)

    @dsl.pipeline(name="tiny")
    def tiny(epochs: int, params: dict = {"train": {"epochs": 1}}, overrides: list = []):  # noqa: B006
        work(params=params, epochs=epochs)

    file = tmp_path_factory.mktemp("package") / "tiny.yaml"
    compiler.Compiler().compile(tiny, str(file))
    return file


@pytest.fixture
def work(package) -> Any:
    """That pipeline, to be sent."""
    from pipelines.kubeflow.package import Work

    return Work(package, {"epochs": 1}, "name")


@pytest.fixture
def connect(monkeypatch) -> Callable[..., Any]:
    """A function that connects to a server of Kubeflow Pipelines, as these options of a command would."""
    from pipelines.kubeflow import client

    for name in ("KF_PIPELINES_ENDPOINT", client.TOKEN_VARIABLE, client.COOKIE_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(client, "PAUSE_SECONDS", 0.001)
    return lambda **access: client.connect(client.Access(**access))
