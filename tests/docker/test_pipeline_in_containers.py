"""The pipeline through kfp's DockerRunner. Its status is not looked at, which is sometimes wrong: what it left is."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from mlflow import MlflowClient

from gkd_core.data.prepared import PreparedData
from gkd_core.files import file_digest, folder_digest
from gkd_core.models.network import load_network

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


def test_the_version_is_registered_as_champion(pipeline_run):
    gate = content(pipeline_run / "registration" / "gate.json")
    version = content(pipeline_run / "registration" / "version.json")
    assert gate["champion_after"] == gate["challenger"] == int(version["version"]) == 1
    assert champion(pipeline_run.parent / "store") == 1


def champion(store: Path) -> int:
    return int(
        MlflowClient(f"sqlite:///{store / 'mlflow.db'}").get_model_version_by_alias("gkd-student", "champion").version
    )


def test_a_gate_that_says_no_leaves_the_champion(pipeline_run, run, tmp_path):
    """Another student, trained and registered by containers, is refused: that is a result, and the run is green."""
    store = pipeline_run.parent / "store"
    (tmp_path / "params.yaml").write_text("{}\n")
    mounts = (f"{pipeline_run}:/run0:ro", f"{store}:{store}")

    def step(*command: str) -> dict:
        options = [f"{entry}={value}" for entry, value in SECOND.items()]
        overrides = [word for given in options for word in ("--set", given)]
        environment = {"MLFLOW_TRACKING_URI": f"sqlite:///{store / 'mlflow.db'}"}
        done = run("gkd", *command, *overrides, folder=tmp_path, mounts=mounts, **environment)
        return json.loads(done.stdout.splitlines()[-1])

    data, teacher = ("--data", "/run0/data"), ("--teacher", "/run0/teacher")
    references = ("--baseline", "/run0/baseline", "--kd", "/run0/kd")
    step("distill", *data, *teacher, "--out", "student")
    step("export", *data, *teacher, "--student", "student", "--out", "deploy")
    step("evaluate", *data, *teacher, *references, "--student", "student", "--deploy", "deploy", "--out", "report")
    step(
        "register", *teacher, *references, "--student", "student", "--deploy", "deploy", "--report", "report",
        "--out", "registration",
    )  # fmt: skip
    gate = content(tmp_path / "registration" / "gate.json")
    assert not gate["passed"]
    assert (gate["champion_before"], gate["champion_after"], gate["challenger"]) == (1, 1, 2)
    assert champion(store) == 1


SECOND = {
    "teacher.name": "resnet8",
    "train.epochs": 2,
    "train.device": "cpu",
    "distill.options.gompertz.preset": "tuned",
    "train.seed": 1,
    "evaluate.latency_runs": 10,
    "gate.max_size_mb": 0.001,
}
