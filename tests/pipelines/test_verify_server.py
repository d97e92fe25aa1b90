"""`gkd verify --server` against a real `gkd serve`: what the one says, the other walks."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from gkd_core.export.manifest import build_manifest, kept_file, write_manifest
from gkd_core.export.onnx import write_onnx
from gkd_core.export.quantise import quantise
from gkd_core.files import whole_folder
from gkd_core.models.network import Network, NetworkSpec
from tests import forked

CLASSES = tuple(f"digit {i}" for i in range(10))
LINEAGE = {key: key[0] * 64 for key in ("data_sha256", "teacher_digest", "student_digest", "config_digest")}


def deploy_folder(out: Path, seed: int) -> Path:
    """What `gkd export` leaves of an untrained student."""
    torch.manual_seed(seed)
    network = Network(NetworkSpec("resnet8", "auto", CLASSES, 1, 8, (0.3,), (0.2,)))
    facts = LINEAGE | {"method": "kd", "network": "resnet8"}
    images = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 1), dtype=np.uint8)
    with whole_folder(out) as folder:
        model, small = folder / "model.onnx", folder / "model_int8.onnx"
        write_onnx(network, model, classes=CLASSES, channels=1, image_size=8, metadata=facts)
        quantise(model, small, images)
        manifest = build_manifest(
            model, input="uint8_nhwc", input_shape=(8, 8, 1), opset=18, classes=CLASSES, lineage=LINEAGE, method="kd",
            network="resnet8", preprocessing={}, parity={"max_abs": 0.0}, smaller={"int8": kept_file(small, {})},
        )  # fmt: skip
        write_manifest(folder, manifest)
    return out


@pytest.fixture(scope="module")
def deploy(tmp_path_factory) -> Path:
    return deploy_folder(tmp_path_factory.mktemp("run") / "deploy", seed=0)


@pytest.fixture(scope="module")
def server(start, deploy):
    """Wants a token, since one may be had."""
    return start(deploy, GKD_TOKEN="sesame")


def verify(folder: Path, *options: str, token: str | None = "sesame") -> subprocess.CompletedProcess[str]:
    kept = {name: text for name, text in os.environ.items() if not name.startswith(("MLFLOW_", "GKD_"))}
    environment = kept | ({} if token is None else {"GKD_TOKEN": token})
    return forked.gkd("verify", str(folder), *options, cwd=folder.parent, env=environment)


def test_the_server_of_this_very_folder_is_the_last_link(deploy, server):
    result = verify(deploy, "--server", server.url)
    assert result.returncode == 0, result.stderr
    links = {link["link"]: link["found"] for link in json.loads(result.stdout.splitlines()[-1])["links"]}
    sha256 = json.loads((deploy / "manifest.json").read_text())["model"]["sha256"]
    assert links["deploy → server"].startswith(f"{sha256[:12]} (fp32) answers at {server.url}/v2/models/")
    assert server.told["model_sha256"] == sha256


@pytest.mark.parametrize("token", [None, "open"])
def test_without_its_token_the_server_says_nothing(token, deploy, server):
    result = verify(deploy, "--server", server.url, token=token)
    assert result.returncode == 1
    assert "set GKD_TOKEN" in result.stderr.splitlines()[-1]


def test_a_server_of_another_student_is_named(server, tmp_path):
    result = verify(deploy_folder(tmp_path / "deploy", seed=1), "--server", server.url)
    assert result.returncode == 1
    assert f"{server.url}/v2/models/gkd-student serves another model: its model_sha256 is" in result.stderr


def test_int8_under_another_name(deploy, start, tmp_path):
    bundle = shutil.copytree(deploy, tmp_path / "deploy")
    server = start(bundle, "--precision", "int8", "--name", "birds")
    result = verify(bundle, "--server", server.url, token=None)
    assert result.returncode == 1
    assert "is it served under another name? pass --name" in result.stderr.splitlines()[-1]
    result = verify(bundle, "--server", server.url, "--name", "birds", token=None)
    assert result.returncode == 0, result.stderr
    assert "(int8) answers at" in result.stdout
