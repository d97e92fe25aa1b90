"""The serve image: small, without torch, and it answers the protocol's own client as any user on a read-only root."""

import contextlib
import json
import os
import time
from collections.abc import Iterator

import numpy as np
import onnxruntime
import pytest
from tritonclient import http

from gkd_core.data.prepared import PreparedData
from gkd_core.files import file_digest
from tests import forked
from tests.docker.containers import EPOCHS, SHORT, USER, docker, image_facts
from tests.mlflow_server import MlflowServer

pytestmark = pytest.mark.docker


def test_small_and_without_what_trains(serve_image):
    assert image_facts(serve_image)["Size"] < 600e6
    names = ("torch", "kfp", "dvc", "pip", "mlflow", "gkd_core")
    probe = f"import importlib.util as u; print([name for name in {names} if u.find_spec(name)])"
    found = docker("run", "--rm", "--user", USER, "--entrypoint", "python3", serve_image, "-c", probe).stdout
    assert found.strip() == "['mlflow', 'gkd_core']"
    probe = "import mlflow.version as v; print(v.IS_MLFLOW_SKINNY)"
    found = docker("run", "--rm", "--user", USER, "--entrypoint", "python3", serve_image, "-c", probe).stdout
    assert found.strip() == "True"


def test_it_measures_a_model_where_it_will_run(serve_image, pipeline_run):
    folder = ("--volume", f"{pipeline_run / 'deploy'}:/work/deploy:ro")
    options = ("--rm", "--read-only", "--tmpfs", "/tmp", "--user", USER, *folder, "--entrypoint", "gkd")
    told = docker("run", *options, serve_image, "bench", "deploy", "--runs", "10", "--out", "/tmp/bench.json").stdout
    content = json.loads(told.splitlines()[-1])
    assert content["model"]["sha256"] == file_digest(pipeline_run / "deploy" / "model.onnx")
    assert [case["batch"] for case in content["cases"]] == [1, 8, 32]


INPUTS = ("teacher", "baseline", "kd", "student", "deploy", "report")
LARGE = ("--max-batch", "4096", "--queue", "4096")


@contextlib.contextmanager
def running(*options: str) -> Iterator[str]:
    """A container as nobody in particular, on a root that cannot be written; its name, once it is healthy."""
    fixed = ["--detach", "--read-only", "--tmpfs", "/tmp", "--user", USER]
    name = docker("run", *fixed, *options).stdout.strip()
    try:
        for _ in range(240):
            state = json.loads(docker("inspect", name).stdout)[0]["State"]
            if not state["Running"] or state["Health"]["Status"] != "starting":
                break
            time.sleep(0.5)
        if not state["Running"] or state["Health"]["Status"] != "healthy":
            logs = docker("logs", name)
            pytest.fail(f"{state}\n{logs.stdout}\n{logs.stderr}")
        yield name
    finally:
        docker("rm", "--force", name)


@pytest.fixture(scope="module")
def server(serve_image, pipeline_run) -> Iterator[str]:
    """A container that serves what the pipeline exported; the address of its port on this machine."""
    folder = ("--volume", f"{pipeline_run / 'deploy'}:/model:ro")
    with running("--publish", "127.0.0.1::8080", *folder, serve_image, "/model", "--name", "student", *LARGE) as name:
        yield docker("port", name, "8080").stdout.strip()


def test_the_champion_of_a_tracking_server_is_served(serve_image, pipeline_run, tmp_path):
    """By mlflow-skinny, from a server that hands artifacts on; the container sees nothing of this machine's folders."""
    registry = MlflowServer(tmp_path)
    registry.start()
    try:
        folders = [word for name in INPUTS for word in (f"--{name}", str(pipeline_run / name))]
        (tmp_path / "params.yaml").write_text("{}")
        address = f"tracking.uri={registry.uri}"
        settings = [word for given in (*SHORT, *EPOCHS, address) for word in ("--set", given)]
        done = forked.gkd("register", *folders, *settings, cwd=tmp_path, env=without_mlflow())
        assert done.returncode == 0, done.stderr
        options = ("--network", "host", serve_image)
        with running(*options, "models:/gkd-student@champion", "--tracking-uri", registry.uri) as name:
            facts = http.InferenceServerClient("127.0.0.1:8080").get_model_metadata("gkd-student")
            docker("stop", name)  # SIGTERM
            assert json.loads(docker("inspect", name).stdout)[0]["State"]["ExitCode"] == 0
    finally:
        registry.kill()
    manifest = json.loads((pipeline_run / "deploy" / "manifest.json").read_text())
    assert facts["versions"] == ["1"]
    assert facts["parameters"]["model_sha256"] == manifest["model"]["sha256"]


def without_mlflow() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}


@pytest.mark.parametrize("count", [16, 4096], ids=["a few", "more JSON than is read in the server itself"])
def test_answers_the_client_as_onnxruntime_does_here(server, pipeline_run, count):
    manifest = json.loads((pipeline_run / "deploy" / "manifest.json").read_text())
    images = PreparedData.open(pipeline_run / "data").split("test").images
    images = np.ascontiguousarray(np.resize(images, (count, *images.shape[1:])))
    session = onnxruntime.InferenceSession(pipeline_run / "deploy" / "model.onnx")
    (entry,) = session.get_inputs()
    expected = dict(zip((o.name for o in session.get_outputs()), session.run(None, {entry.name: images}), strict=True))
    client = http.InferenceServerClient(server)
    assert client.is_server_ready()
    asked = http.InferInput(entry.name, list(images.shape), "UINT8")
    asked.set_data_from_numpy(images, binary_data=False)
    answer = client.infer("student", [asked])
    for name, values in expected.items():
        np.testing.assert_allclose(answer.as_numpy(name), values, rtol=1e-5, atol=1e-5)
    assert client.get_model_metadata("student")["parameters"]["model_sha256"] == manifest["model"]["sha256"]
