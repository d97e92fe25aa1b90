"""MLflow and Kubeflow know of each other: what trainings are told, and what they leave for people to follow."""

import json

import pytest
from mlflow import MlflowClient

from components import mlflow_store
from gkd_core.config import TrackingConfig
from gkd_core.files import write_json
from pipelines.kubeflow import metadata
from pipelines.kubeflow.package import Work, as_sent
from pipelines.kubeflow.task import TRACKING, running

TRAININGS = ("teacher", "baseline", "kd", "distill")
PAGE = "https://kubeflow.example/#/runs/details/{run}"


def told(file, parts_of) -> dict[str, dict[str, str]]:
    """Plain variables by task."""
    executors = parts_of(file)[0]["deploymentSpec"]["executors"]
    return {
        name.removeprefix("exec-"): {one["name"]: one["value"] for one in executor["container"].get("env", [])}
        for name, executor in executors.items()
    }


def test_trainings_are_told_of_the_tracking_server_of_this_run(compiled, parts_of):
    file = compiled("gpu")
    variables = told(file, parts_of)
    assert {name for name, given in variables.items() if TRACKING in given} == set(TRAININGS)
    assert json.loads(variables["distill"][TRACKING])["uri"] is None
    before, given = file.read_bytes(), {"mlflow": "http://mlflow:5000", "overrides": ["tracking.experiment=birds"]}
    with as_sent(Work(file, given, "name"), PAGE) as sent:
        variables = told(sent.package, parts_of)
        assert all(parts_of(sent.package)[0]["components"][f"comp-{n}"] for n in TRAININGS)
    assert file.read_bytes() == before
    for name in TRAININGS:
        found = json.loads(variables[name][TRACKING])
        assert (found["uri"], found["experiment"]) == ("http://mlflow:5000", "birds")
        assert variables[name]["GKD_KFP_PAGE"] == PAGE
        assert variables[name]["GKD_WORK"] == "/gkd/work", "what was there stays"
    tasks = parts_of(file)[0]["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    assert "mlflow" not in json.dumps(tasks["distill"]), "no argument, so no part of the cache's key"
    fields = {name: pod.get("fieldPathAsEnv") for name, pod in parts_of(file)[1].items()}
    assert fields["exec-distill"] == [{"name": "GKD_KFP_RUN", "fieldPath": "metadata.labels['pipeline/runid']"}]
    assert fields["exec-export"] is None


@pytest.mark.parametrize("own", [False, True])
def test_a_task_reads_it_unless_its_settings_have_their_own(own, monkeypatch):
    monkeypatch.setenv(TRACKING, TrackingConfig(uri="http://told", live=False).model_dump_json())
    monkeypatch.setattr("sys.argv", ["x"])
    with running("teacher", json.dumps({"tracking": {"uri": "http://own"}} if own else {})) as task:
        assert task.params.tracking.uri == ("http://own" if own else "http://told")
        assert task.params.tracking.live is (None if own else False)


def test_each_side_leads_to_the_other(tmp_path, monkeypatch):
    monkeypatch.setenv("GKD_KFP_RUN", "0f3c")
    monkeypatch.setenv("GKD_KFP_PAGE", PAGE)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    with mlflow_store.connect(TrackingConfig(uri=uri), again="", create=True) as store:
        run_id = store.open_run("t", "teacher resnet8", {}, {})
        assert store.address(run_id) is None, "a database is no page"
        store.uri = "http://user:secret@mlflow.example/base/"
        address = store.address(run_id)
    tags = MlflowClient(uri).get_run(run_id).data.tags
    assert tags["gkd.kfp_run"] == "0f3c"
    assert tags["gkd.kfp_address"] == "https://kubeflow.example/#/runs/details/0f3c"
    assert address == f"http://mlflow.example/base/#/experiments/1/runs/{run_id}"

    facts = {"role": "student", "network": "resnet8", "networks": ["resnet8"], "imported": False, "data_sha256": "0"}
    for name in ("training.json", "teacher.json"):
        write_json(tmp_path / name, facts)
    (tmp_path / "resnet8").mkdir()
    assert "mlflow_run" not in metadata.of_student(str(tmp_path))
    for folder in (tmp_path, tmp_path / "resnet8"):
        write_json(folder / "run.json", {"mlflow": {"token": "t", "run_id": run_id, "address": address}})
    assert metadata.of_student(str(tmp_path))["mlflow_run"] == address
    assert metadata.of_teacher(str(tmp_path))["mlflow_runs"] == [address]
