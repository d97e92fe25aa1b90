"""The pipeline through kfp's DockerRunner. Its status is not looked at, which is sometimes wrong: what it left is."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from mlflow import MlflowClient

from gkd_core.data.prepared import PreparedData
from gkd_core.files import file_digest, folder_digest
from gkd_core.models.network import load_network
from tests.docker.containers import ROOT, SHORT

pytestmark = pytest.mark.docker

FOLDERS = {
    "data": "dataset.json",
    "teacher": "teacher.json",
    "baseline": "model.safetensors",
    "kd": "model.safetensors",
    "student": "model.safetensors",
    "deploy": "model.onnx",
    "report": "metrics.json",
    "registration": "gate.json",
}


def content(file: Path) -> dict:
    return json.loads(file.read_text())


def test_every_step_left_its_folder_as_that_user(pipeline_run, digits):
    for name, file in FOLDERS.items():  # handing over adds a list of digests, as whoever runs the pipeline
        assert (pipeline_run / name / file).stat().st_uid == 54321, name
    prepared = PreparedData.open(pipeline_run / "data")
    assert prepared.digest() == PreparedData.open(digits).info.sha256


def test_each_step_got_what_the_one_before_it_made(pipeline_run):
    data = content(pipeline_run / "data" / "dataset.json")["sha256"]
    teacher, student = (folder_digest(pipeline_run / name) for name in ("teacher", "student"))
    manifest = content(pipeline_run / "deploy" / "manifest.json")
    assert manifest["data_sha256"] == data
    assert manifest["teacher_digest"] == teacher
    assert manifest["student_digest"] == student
    assert manifest["model"]["sha256"] == file_digest(pipeline_run / "deploy" / "model.onnx")
    for role in ("baseline", "kd", "student"):
        facts = content(pipeline_run / role / "training.json")
        assert facts["data_sha256"] == data
        assert facts["teacher_digest"] == ("" if role == "baseline" else teacher)
        assert load_network(pipeline_run / role, PreparedData.open(pipeline_run / "data").info.classes)


def test_the_onnx_file_is_as_good_here_as_the_report_says(pipeline_run):
    split = PreparedData.open(pipeline_run / "data").split("test")
    session = onnxruntime.InferenceSession(pipeline_run / "deploy" / "model.onnx")
    first = session.run(None, {session.get_inputs()[0].name: np.ascontiguousarray(split.images)})[0]
    accuracy = float((first.argmax(axis=1) == split.labels).mean())
    assert accuracy == pytest.approx(content(pipeline_run / "report" / "metrics.json")["onnx"]["top1"], abs=1e-6)


def test_the_version_is_registered_as_champion(pipeline_run, store):
    gate = content(pipeline_run / "registration" / "gate.json")
    version = content(pipeline_run / "registration" / "version.json")
    assert gate["champion_after"] == gate["challenger"] == int(version["version"]) == 1
    assert champion(store) == 1


def champion(store: str) -> int:
    return int(MlflowClient(store).get_model_version_by_alias("gkd-student", "champion").version)


SMALL = (*SHORT, "data.train_images=200", "teacher.train.epochs=1", "train.epochs=1")


def test_a_gate_that_says_no_leaves_the_champion_and_the_run_is_green(pipeline, pipeline_run, store, tmp_path):
    done = pipeline(tmp_path / "out", *SMALL, "gate.max_size_mb=0.001", f"tracking.uri={store}")
    assert done.returncode == 0, done.stderr
    assert "ended …" in done.stderr  # see below
    gate = content(tmp_path / "out" / "registration" / "gate.json")
    assert not gate["passed"]
    assert (gate["champion_before"], gate["champion_after"], gate["challenger"]) == (1, 1, 2)
    assert json.loads(done.stdout.splitlines()[-1])["gate"]["passed"] is False
    assert champion(store) == 1


def test_a_failing_step_fails_the_run_with_its_own_sentence(pipeline, tmp_path, store):
    images = tmp_path / "images" / "cat"
    images.mkdir(parents=True)
    (images / "1.png").write_bytes(b"no picture")
    given = (*SMALL, "data.source=folder", f"data.root={images.parent}", f"tracking.uri={store}")
    done = pipeline(tmp_path / "out", *given)
    assert done.returncode == 2
    assert "ended …" in done.stderr  # its own words may be lost: kfp removes a container that was quick unread
    assert "Traceback" not in done.stderr
    overrides = [word for text in given for word in ("--set", text)]
    alone = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", "prepare", "--params", ROOT / "params.yaml", *overrides],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert alone.returncode == 2
    assert done.stderr.strip().splitlines()[-1] == alone.stderr.strip().replace("gkd: ", "gkd: prepare: ")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"work", "pipeline.log"}
