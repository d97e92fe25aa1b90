"""`gkd verify --server` against a real `gkd serve`: what the one says, the other walks."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from gkd_core.export.manifest import kept_file, read_manifest, write_manifest
from gkd_core.export.quantise import quantise
from tests import forked


@pytest.fixture(scope="module")
def deploy(tmp_path_factory, make_deploy) -> Path:
    """With an int8 model beside float32."""
    folder = make_deploy(tmp_path_factory.mktemp("run") / "deploy")
    small = folder / "model_int8.onnx"
    quantise(folder / "model.onnx", small, np.random.default_rng(0).integers(0, 256, (16, 8, 8, 1), dtype=np.uint8))
    write_manifest(folder, read_manifest(folder) | {"int8": kept_file(small, {})})
    return folder


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


def test_a_server_of_another_student_is_named(server, make_deploy, tmp_path):
    result = verify(make_deploy(tmp_path / "deploy", seed=1), "--server", server.url)
    assert result.returncode == 1
    assert f"{server.url}/v2/models/gkd-student serves another model: its data_sha256 is" in result.stderr


def test_int8_under_another_name(deploy, start, tmp_path):
    bundle = shutil.copytree(deploy, tmp_path / "deploy")
    server = start(bundle, "--precision", "int8", "--name", "birds")
    result = verify(bundle, "--server", server.url, token=None)
    assert result.returncode == 1
    assert "is it served under another name? pass --name" in result.stderr.splitlines()[-1]
    result = verify(bundle, "--server", server.url, "--name", "birds", token=None)
    assert result.returncode == 0, result.stderr
    assert "(int8) answers at" in result.stdout
