"""The serve image: small, without torch, and it answers the protocol's own client as any user on a read-only root."""

import json
import time

import numpy as np
import onnxruntime
import pytest
from tritonclient import http

from gkd_core.data.prepared import PreparedData
from tests.docker.containers import USER, docker, image_facts

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


LARGE = ("--max-batch", "4096", "--queue", "4096")


@pytest.fixture(scope="module")
def server(serve_image, pipeline_run):
    """A container that serves what the pipeline exported; the address of its port on this machine."""
    options = ["--detach", "--read-only", "--tmpfs", "/tmp", "--user", USER, "--publish", "127.0.0.1::8080"]
    options += ["--volume", f"{pipeline_run / 'deploy'}:/model:ro"]
    name = docker("run", *options, serve_image, "/model", "--name", "student", *LARGE).stdout.strip()
    try:
        for _ in range(240):
            state = json.loads(docker("inspect", name).stdout)[0]["State"]
            if not state["Running"] or state["Health"]["Status"] != "starting":
                break
            time.sleep(0.5)
        if not state["Running"] or state["Health"]["Status"] != "healthy":
            logs = docker("logs", name)
            pytest.fail(f"{state}\n{logs.stdout}\n{logs.stderr}")
        yield docker("port", name, "8080").stdout.strip()
    finally:
        docker("rm", "--force", name)


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
