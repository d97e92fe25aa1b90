"""`python -m benchmarks.serving --model deploy`: requests a second and latency of `gkd serve` under load by wrk.

One image a request, on the loopback, everything on the same cores: the server, the clients (wrk, `apt-get install wrk`)
and, in turn, what it is compared with: onnxruntime in a bare loop, the ceiling; MLServer with a runtime of ten lines
(`--peer PYTHON`: an interpreter that has mlserver and onnxruntime). Prints Markdown; ends with 1 if a request was lost
or answered with another error than 503.

Two versions beside each other: run it once in each checkout, by that checkout's Python (its server is the one that
answers), with the same `--model`, on a machine that does nothing else, in turns: A, B, A, B. Each checkout's benchmark
knows its own server, so nothing is copied. `--quick` makes a row 2 seconds long and leaves out all but the first
server: enough to see that it runs.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from gkd_core.cores import usable_cores
from gkd_core.export.manifest import read_manifest
from gkd_core.export.session import session

CLIENTS = (1, 8, 64)
NAME = "gkd-student"

PEER = """
import numpy, onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse

class Onnx(MLModel):
    async def load(self):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = {threads}
        self.session = onnxruntime.InferenceSession(self.settings.parameters.uri, options)
        return True

    async def predict(self, payload):
        images = NumpyCodec.decode_input(payload.inputs[0])
        logits = self.session.run(["logits"], {{"image": images.astype(numpy.uint8)}})[0]
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("logits", logits)])
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("deploy"), help="folder of `gkd export`")
    parser.add_argument("--seconds", type=int, default=10, help="of each measurement")
    parser.add_argument("--quick", action="store_true", help="two seconds each, the first server alone")
    parser.add_argument("--threads", type=int, default=None, help="within the model; else what `gkd serve` takes")
    parser.add_argument("--peer", type=Path, help="a Python that has mlserver and onnxruntime")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seconds = 2
    if shutil.which("wrk") is None:
        sys.exit("wrk is not there: apt-get install wrk")
    sound = True
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shape = read_manifest(arguments.model)["model"]["input_shape"]
        bodies = write_bodies(folder, shape)
        cores = usable_cores()
        threads = arguments.threads or max(1, cores - 1)
        print(f"{platform.processor() or platform.machine()}, {cores} cores, one image of {shape}\n")
        print(f"| onnxruntime in a bare loop, {threads} threads | images/s |\n|---|---|")
        for batch in CLIENTS:
            print(f"| batches of {batch} | {ceiling(arguments.model, shape, batch, threads, arguments.seconds):,.0f} |")
        print(
            "\n| server | body | clients | requests/s | p50 ms | p99 ms | 503 | lost |\n" + "|---" * 8 + "|",
        )
        runs: list[tuple[str, Any, tuple[str, ...]]] = [
            ("gkd serve", ours(arguments.model, threads), ("binary", "json")),
            ("gkd serve --no-batching", ours(arguments.model, threads, "--no-batching"), ("binary", "json")),
            ("gkd serve --queue 16", ours(arguments.model, threads, "--queue", "16", "--max-batch", "16"), ("binary",)),
        ]
        if arguments.quick:
            del runs[1:]
        elif arguments.peer is not None:
            runs += [
                ("mlserver", peer(folder, arguments.peer, arguments.model, threads), ("json",)),
                (
                    "mlserver, batching",
                    peer(folder, arguments.peer, arguments.model, threads, batching=True),
                    ("json",),
                ),
            ]
        for label, running, kinds in runs:
            with running as address:
                for kind in kinds:
                    for clients in CLIENTS:
                        load(address, bodies[kind], clients, 2)  # warm-up
                        found = load(address, bodies[kind], clients, arguments.seconds)
                        rate = (found["ok"] + found["busy"]) / found["seconds"]
                        print(
                            f"| {label} | {kind} | {clients} | {rate:,.0f} | {found['p50_ms']:.2f} | "
                            f"{found['p99_ms']:.2f} | {found['busy']} | {found['lost'] + found['other']} |",
                            flush=True,
                        )
                        if label.startswith("gkd"):
                            sound &= found["lost"] == found["other"] == 0
    sys.exit(0 if sound else 1)


def write_bodies(folder: Path, shape: list[int]) -> dict[str, tuple[Path, str]]:
    """One image as JSON and as raw bytes: the file, and the length of its JSON where bytes follow it."""
    image = np.random.default_rng(0).integers(0, 256, (1, *shape), dtype=np.uint8)
    entry = {"name": "image", "datatype": "UINT8", "shape": list(image.shape)}
    (folder / "json").write_text(json.dumps({"inputs": [entry | {"data": image.ravel().tolist()}]}))
    raw = entry | {"parameters": {"binary_data_size": image.nbytes}}
    head = json.dumps({"inputs": [raw], "parameters": {"binary_data_output": True}}).encode()
    (folder / "binary").write_bytes(head + image.tobytes())
    return {"json": (folder / "json", ""), "binary": (folder / "binary", str(len(head)))}


def ceiling(deploy: Path, shape: list[int], batch: int, threads: int, seconds: int) -> float:
    """Images a second that onnxruntime alone gets through in batches."""
    model = session(deploy / "model.onnx", threads)
    images = np.random.default_rng(0).integers(0, 256, (batch, *shape), dtype=np.uint8)
    runs, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        model.run(["logits"], {"image": images})
        runs += 1
    return batch * runs / (time.perf_counter() - start)


def load(address: str, body: tuple[Path, str], clients: int, seconds: int) -> dict[str, Any]:
    """What wrk counted: ok, busy (503), other, lost; seconds; p50_ms and p99_ms."""
    command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds}s", "--timeout", "30s", "-s"]
    command += [str(Path(__file__).with_suffix(".lua")), f"{address}/v2/models/{NAME}/infer"]
    environment = os.environ | {"BODY": str(body[0]), "HEADER_LENGTH": body[1]}
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    found: dict[str, Any] = json.loads(told.strip().splitlines()[-1])
    return found


@contextmanager
def ours(deploy: Path, threads: int, *options: str) -> Iterator[str]:
    """`gkd serve` on a free port."""
    command = [sys.executable, "-m", "pipelines.cli", "serve", str(deploy), "--name", NAME, "--port", "0"]
    with subprocess.Popen(
        [*command, "--threads", str(threads), *options], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        assert server.stdout is not None
        try:
            yield json.loads(server.stdout.readline())["url"]
            server.send_signal(signal.SIGTERM)
            last = json.loads(server.stdout.read().splitlines()[-1])
            assert last["accepted"] == last["answered"], last
        finally:
            server.kill()


@contextmanager
def peer(folder: Path, python: Path, deploy: Path, threads: int, *, batching: bool = False) -> Iterator[str]:
    """MLServer in one process, as ours is, with its adaptive batching or without."""
    home = folder / f"mlserver-{batching}"
    home.mkdir()
    (home / "onnx_runtime.py").write_text(PEER.format(threads=threads))
    with socket.socket() as free, socket.socket() as other, socket.socket() as third:
        for one in (free, other, third):
            one.bind(("127.0.0.1", 0))
        ports = [one.getsockname()[1] for one in (free, other, third)]
    settings = {"host": "127.0.0.1", "parallel_workers": 0, "debug": False}
    settings |= dict(zip(("http_port", "grpc_port", "metrics_port"), ports, strict=True))
    model = {"name": NAME, "implementation": "onnx_runtime.Onnx"}
    model["parameters"] = {"uri": str((deploy / "model.onnx").absolute())}  # type: ignore[assignment]
    if batching:
        model |= {"max_batch_size": 64, "max_batch_time": 0.002}  # type: ignore[dict-item]
    (home / "settings.json").write_text(json.dumps(settings))
    (home / "model-settings.json").write_text(json.dumps(model))
    address = f"http://127.0.0.1:{ports[0]}"
    command = [str(python), "-c", "from mlserver.cli import main; main()", "start", str(home)]
    with (
        (home / "log").open("w") as log,
        subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"PYTHONPATH": str(home)}) as server,
    ):
        try:
            _await(f"{address}/v2/models/{NAME}/ready", server, home / "log")
            yield address
        finally:
            server.terminate()
            server.wait(30)


def _await(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(300):
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            if server.poll() is not None:
                break
            time.sleep(0.2)
    sys.exit(f"mlserver did not start: {log.read_text()[-2000:]}")


if __name__ == "__main__":
    main()
