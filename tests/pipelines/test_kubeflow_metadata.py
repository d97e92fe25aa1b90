"""What the components write into their artifacts' metadata: all that Kubeflow takes, and the revision of the data."""

import json
import signal
import sys
from pathlib import Path

import pytest
from kfp import dsl

from gkd_core.errors import GkdError
from gkd_core.files import whole_folder, write_json
from pipelines.kubeflow import components as steps
from pipelines.kubeflow import metadata, task
from tests.conftest import small


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    """A task names itself in sys.argv."""
    monkeypatch.setattr(sys, "argv", list(sys.argv))


def nulls(content: object) -> bool:
    if isinstance(content, dict):
        return any(map(nulls, content.values()))
    return any(map(nulls, content)) if isinstance(content, list) else content is None


def artifact(kind: type, place: Path):
    """As kfp's executor makes one for a local path."""
    return kind(name=place.name, uri=str(place), metadata={})


@pytest.fixture
def folder(tmp_path) -> Path:
    """Every file that metadata is read from, with null wherever a step may write it."""
    digest = "0" * 64
    write_json(
        tmp_path / "dataset.json",
        {"sha256": digest, "source": "x", "counts": {"train": 3, "test": None}, "image_size": None, "channels": 1,
         "classes": ["a", "b"]},
    )  # fmt: skip
    write_json(tmp_path / "teacher.json", {"networks": ["a", None], "imported": None, "data_sha256": digest})
    write_json(tmp_path / "training.json", {"role": "kd", "network": None, "seed": None, "trained": False})
    write_json(
        tmp_path / "manifest.json",
        {"model": {"sha256": digest, "size_bytes": None}, "teacher_digest": None, "data_sha256": digest},
    )
    write_json(tmp_path / "metrics.json", {"digests": {"data": digest, "teacher": None}})
    write_json(
        tmp_path / "version.json",
        {"name": "gkd-student", "version": 2, "alias": None, "manifest": digest, "run_id": "r"},
    )
    write_json(tmp_path / "gate.json", {"passed": True, "sentence": "promoted"})
    return tmp_path


@pytest.mark.parametrize(
    "function", ["of_data", "of_teacher", "of_student", "of_deployment", "of_report", "of_registration"]
)
def test_no_metadata_has_a_null_which_kubeflow_refuses(folder, function):
    more = [{"rev": "1", "asked": None}] if function == "of_data" else []
    found = getattr(metadata, function)(str(folder), *more)
    assert found
    assert not nulls(found)


def test_a_version_without_an_alias_is_registered_all_the_same(folder):
    found = metadata.of_registration(str(folder))
    assert "alias" not in found
    assert (found["version"], found["passed"]) == (2, True)


@pytest.mark.parametrize("classes", [2, 200, 201, 1000])
def test_a_confusion_matrix_is_shown_while_it_fits(tmp_path, monkeypatch, classes):
    names = [f"class {number}" for number in range(classes)]

    def measured(*, out: Path, **_: object) -> None:
        (out / "plots").mkdir(parents=True)
        (out / "report.html").write_text("<html>")
        write_json(
            out / "metrics.json",
            {"digests": {}, "differences": {}, "student": {"top1": 1.0, "parameters": 1},
             "onnx": {"top1": 1.0, "onnx_bytes": 1}},
        )  # fmt: skip
        write_json(out / "timings.json", {"onnx": {"latency_ms_p50": 1.0}})
        (out / "plots" / "confusion.csv").write_text("actual,predicted\nclass 0,class 1\nclass 1,class 1\n")

    monkeypatch.setattr("components.evaluate.run", measured)
    (tmp_path / "data").mkdir()
    write_json(tmp_path / "data" / "dataset.json", {"classes": names})
    kinds = {
        "data": dsl.Dataset, "teacher": dsl.Model, "baseline": dsl.Model, "kd": dsl.Model, "student": dsl.Model,
        "deploy": dsl.Model, "report": dsl.Artifact, "page": dsl.HTML, "metrics": dsl.Metrics,
        "confusion": dsl.ClassificationMetrics,
    }  # fmt: skip
    made = {name: artifact(kind, tmp_path / name) for name, kind in kinds.items()}
    steps.evaluate.python_func(settings="{}", **made)
    shown = made["confusion"].metadata
    assert ("confusionMatrix" in shown) is (classes <= 200)
    assert len(json.dumps(shown)) < 4_000_000
    content = json.loads((tmp_path / "confusion").read_text())
    assert content["classes"] == names
    assert [row[:2] for row in content["matrix"][:2]] == [[0, 1], [0, 1]]


def test_the_prepare_task_tells_the_digest_of_its_data(tmp_path):
    data = artifact(dsl.Dataset, tmp_path / "data")
    settings = json.dumps({"data": small().data.model_dump(mode="json")})
    steps.prepare.python_func(settings=settings, dvc_repo="", dvc_path="", dvc_rev="", data=data)
    facts = json.loads((tmp_path / "data" / "dataset.json").read_text())
    assert data.metadata["sha256"] == facts["sha256"]
    assert data.metadata["classes"] == 10
    assert not [key for key in data.metadata if key.startswith("dvc_")]


@pytest.mark.parametrize("volume", [True, False])
def test_a_task_keeps_the_teacher_s_answers_in_the_volume_or_not_at_all(tmp_path, monkeypatch, volume):
    if volume:
        monkeypatch.setenv("GKD_WORK", str(tmp_path))
    else:
        monkeypatch.delenv("GKD_WORK", raising=False)
    settings = {"train": {"teacher_cache": True}, "teacher": {"train": {"teacher_cache": True}}}
    with task.running("distill", json.dumps(settings)) as given:
        assert given.params.train.teacher_cache is volume
        assert given.params.teacher.train.teacher_cache is volume
        assert (given.work == tmp_path) is volume


@pytest.mark.parametrize("in_a_pod", [True, False])
@pytest.mark.parametrize("error", [GkdError("the teacher has 100 classes"), OSError(28, "No space left", "/volume/a")])
def test_a_failed_task_leaves_its_sentence_where_kubernetes_shows_it(tmp_path, monkeypatch, capsys, in_a_pod, error):
    monkeypatch.setattr(task, "TERMINATION_LOG", tmp_path / "termination-log")
    if in_a_pod:
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    else:
        monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(SystemExit) as stopped, task.running("distill"):
        raise error
    assert stopped.value.code == 2
    (said,) = [
        line for line in capsys.readouterr().err.splitlines() if not line.startswith(("gkd: begins", "gkd: ends"))
    ]
    assert (tmp_path / "termination-log").exists() is in_a_pod
    if in_a_pod:
        assert (tmp_path / "termination-log").read_text() == said.replace("gkd: ", "distill: ")


def test_a_task_that_is_terminated_fails_with_a_sentence_and_its_code(tmp_path, monkeypatch, capsys):
    """Whatever it does: only a training looks at the signal first."""
    monkeypatch.setattr(task, "TERMINATION_LOG", tmp_path / "termination-log")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("GKD_TASKS", str(tmp_path))
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with pytest.raises(SystemExit) as stopped, task.running("evaluate"), whole_folder(tmp_path / "report"):
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert stopped.value.code == 143
    assert f"gkd: {task.STOPPED}" in capsys.readouterr().err
    assert (tmp_path / "termination-log").read_text() == f"evaluate: {task.STOPPED}"
    (record,) = tmp_path.glob("evaluate-*.json")
    assert json.loads(record.read_text())["state"] == "failed"
    assert {path.name for path in tmp_path.iterdir()} == {record.name, "termination-log"}, "half a report stays behind"


@pytest.mark.parametrize("place", ["/gkd/work/teacher", "/elsewhere"])
def test_a_volume_that_belongs_to_root_is_sent_to_its_paragraph(monkeypatch, capsys, place):
    monkeypatch.setenv("GKD_WORK", "/gkd/work")
    with pytest.raises(SystemExit), task.running("teacher"):
        raise PermissionError(13, "Permission denied", place)
    said = capsys.readouterr().err
    paragraph = "A fresh volume may belong to root"
    assert f"**{paragraph}.**" in (Path(__file__).parents[2] / "docs" / "kubernetes.md").read_text()
    assert f"gkd: {place}: Permission denied" in said
    assert (f"docs/kubernetes.md says ('{paragraph}')" in said) is (place != "/elsewhere")
