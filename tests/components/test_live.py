"""Trainings followed in MLflow while they run: each metric once a step, in one run, whatever happens to either side."""

import os
import signal
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from components import distill, live, mlflow_store, register
from components.live import Live
from gkd_core.config import parse_params
from gkd_core.files import folder_digest, read_json
from tests import forked
from tests.mlflow_server import MlflowServer, free_port

EPOCHS = 3


@pytest.fixture(autouse=True)
def _nothing_from_outside(monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", *live.BRIEF):
        monkeypatch.delenv(name, raising=False)


def content(uri: str | None, **tracking) -> dict:
    tracking = {"system_metrics": False, **tracking}
    return {
        "student": {"name": "resnet8"},
        "train": {"epochs": EPOCHS, "device": "cpu", "threads": 1},
        "references": {"kd": False},
        "tracking": {"uri": uri, **tracking},
    }


def train(folder: Path, data: Path, uri: str | None, **tracking) -> Path:
    params = parse_params(content(uri, **tracking))
    where = {"data": data, "teacher": None, "out": folder / "baseline", "work": folder / "work"}
    distill.run(**where, params=params, reference="baseline")
    return folder / "baseline"


def runs_of(uri: str) -> list:
    client = MlflowClient(uri)
    return client.search_runs([found.experiment_id for found in client.search_experiments()])


def steps_of(uri: str, run_id: str) -> dict[str, list[int]]:
    """The steps of each metric, as often as they are there."""
    client = MlflowClient(uri)
    names = client.get_run(run_id).data.metrics
    return {name: sorted(metric.step for metric in client.get_metric_history(run_id, name)) for name in names}


def test_every_epoch_is_there_while_the_training_runs_and_changes_no_bit(
    tmp_path, few_digits, store_uri, monkeypatch, capfd
):
    plain = train(tmp_path / "plain", few_digits, store_uri, live=False)
    assert runs_of(store_uri) == []
    epoch, seen = Live.epoch, []

    def look(self, row, images_per_second):
        epoch(self, row, images_per_second)
        self._sender.wait(60)
        [run] = runs_of(store_uri)
        seen.append((run.info.status, run.data.metrics["train_loss"] == row["train_loss"], run.data.params["seed"]))

    monkeypatch.setattr(Live, "epoch", look)
    capfd.readouterr()
    baseline = train(tmp_path / "followed", few_digits, store_uri)
    assert "live" not in capfd.readouterr().err
    assert seen == [("RUNNING", True, "0")] * EPOCHS
    assert folder_digest(baseline) == folder_digest(plain)
    [run] = runs_of(store_uri)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "baseline resnet8")
    steps = steps_of(store_uri, run.info.run_id)
    assert steps.keys() >= {"learning_rate", "beta", "train_loss", "train_top1", "validation_top1", "images_per_second"}
    assert all(found == [1, 2, 3] for found in steps.values()), steps
    assert read_json(baseline / "run.json", "")["mlflow"]["run_id"] == run.info.run_id
    assert run.data.tags["gkd.digest"] == folder_digest(baseline)
    assert run.data.params["train.epochs"] == "3"


def test_register_goes_on_in_the_runs_that_grew(tmp_path, finish, store_uri):
    params = parse_params(content(store_uri))
    folders = finish(tmp_path / "run", params=params)
    with live.followed(params.tracking) as following:  # what a training of this student would have told
        following.begin("student resnet8 (gompertz)", read_json(folders.student / "training.json", ""), None, [])
        rows = [{"epoch": n, "train_loss": 1.0 / n, "images_per_second": 7.0} for n in (1, 2)]
        for row in rows:
            following.epoch(row, 7.0)
        following.end(rows)
        following.saved(folders.student)
    [grown] = runs_of(store_uri)
    for again in range(2):
        summary = register.run(**folders._asdict(), out=tmp_path / f"out{again}", params=params)
        assert summary["runs"]["student"] == [grown.info.run_id]
        assert len(runs_of(store_uri)) == 3, "teacher, baseline, student"
    run = MlflowClient(store_uri).get_run(grown.info.run_id)
    assert (run.info.status, run.data.tags["gkd.complete"]) == ("FINISHED", "true")
    assert run.data.metrics["onnx_top1"] > 0
    for name, steps in steps_of(store_uri, grown.info.run_id).items():
        assert len(steps) == len(set(steps)), (name, steps)
        assert name != "train_loss" or steps == [1, 2, 3], "what the history has more"


def kills_itself(nth: str, sent: str, *arguments: str) -> None:
    """`gkd`, which kills itself at the end of the n-th epoch, when MLflow has it or before."""
    epoch, told = Live.epoch, 0

    def epoch_or_die(self, row, images_per_second):
        nonlocal told
        told += 1
        if told == int(nth) and sent == "unsent":
            os.kill(os.getpid(), signal.SIGKILL)
        epoch(self, row, images_per_second)
        self._sender.wait(60)
        if told == int(nth):
            os.kill(os.getpid(), signal.SIGKILL)

    Live.epoch = epoch_or_die
    forked.command(*arguments)


@pytest.mark.parametrize("sent", ["sent", "unsent"])
def test_a_training_that_is_killed_goes_on_in_the_same_run(sent, tmp_path, few_digits, store_uri):
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content(store_uri)))
    step = ["distill", "--reference=baseline", f"--data={few_digits}", "--out=baseline", "--work=work"]
    killed = forked.run(kills_itself, "2", sent, *step, cwd=tmp_path)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    [run] = runs_of(store_uri)
    assert run.info.status == "RUNNING"
    assert steps_of(store_uri, run.info.run_id)["train_loss"] == ([1, 2] if sent == "sent" else [1])
    done = forked.gkd(*step, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    [again] = runs_of(store_uri)
    assert (again.info.run_id, again.info.status) == (run.info.run_id, "FINISHED")
    steps = steps_of(store_uri, run.info.run_id)
    unmeasured = {"images_per_second": [1, 3]} if sent == "unsent" else {}  # nobody saw how fast the second was
    assert steps == {name: [1, 2, 3] for name in steps} | unmeasured


def test_an_answer_that_is_lost_doubles_nothing_and_is_told_once(tmp_path, few_digits, store_uri, monkeypatch, capfd):
    """The store has what it was sent, and nobody hears of it."""
    log_rows, epoch, lost = mlflow_store.Store.log_rows, Live.epoch, []

    def log_and_lose(self, run_id, rows, known):
        log_rows(self, run_id, rows, known)
        if rows and len(lost) < 2:
            lost.append(rows)
            raise ConnectionError("the line is dead")

    def epoch_by_epoch(self, row, images_per_second):
        epoch(self, row, images_per_second)
        self._sender.wait(60)

    monkeypatch.setattr(mlflow_store.Store, "log_rows", log_and_lose)
    monkeypatch.setattr(Live, "epoch", epoch_by_epoch)
    capfd.readouterr()
    train(tmp_path, few_digits, store_uri)
    assert capfd.readouterr().err.count("gkd: no live metrics: ") == 1
    assert len(lost) == 2
    [run] = runs_of(store_uri)
    steps = steps_of(store_uri, run.info.run_id)
    assert steps == {name: [1, 2, 3] for name in steps}


def test_a_server_that_never_answers_costs_a_training_nothing(tmp_path, few_digits, capfd):
    plain = train(tmp_path / "plain", few_digits, None)
    assert "mlflow" not in read_json(plain / "run.json", ""), "nobody named a place"
    capfd.readouterr()
    baseline = train(tmp_path / "followed", few_digits, f"http://127.0.0.1:{free_port()}")
    told = [line for line in capfd.readouterr().err.splitlines() if line.startswith("gkd: ")]
    assert len(told) == 2, told
    assert told[0].startswith("gkd: no live metrics: the tracking store http://127.0.0.1:")
    assert "the training goes on" in told[0]
    assert told[1] == "gkd: not all metrics of baseline resnet8 are in MLflow: `gkd register` sends the others"
    assert folder_digest(baseline) == folder_digest(plain)
    assert read_json(baseline / "run.json", "")["mlflow"].keys() == {"token"}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_real_server_that_goes_away_in_the_middle_has_everything_in_the_end(
    tmp_path, few_digits, empty_store, monkeypatch
):
    (tmp_path / "mlflow.db").write_bytes(empty_store.read_bytes())
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    server, epoch, told = MlflowServer(tmp_path), Live.epoch, []
    server.start()
    parent = MlflowClient(server.uri).create_run(MlflowClient(server.uri).create_experiment("pipeline"))
    monkeypatch.setenv("MLFLOW_RUN_ID", parent.info.run_id)

    def epoch_with_events(self, row, images_per_second):
        told.append(row)
        if len(told) == 2:
            server.kill()
        if len(told) == 3:
            server.start()
        epoch(self, row, images_per_second)
        self._sender.wait(60)
        while len(told) == 1 and "system/cpu_utilization_percentage" not in runs_of(server.uri)[0].data.metrics:
            pass

    monkeypatch.setattr(Live, "epoch", epoch_with_events)
    try:
        baseline = train(tmp_path / "run", few_digits, server.uri, system_metrics=True)
        run_id = read_json(baseline / "run.json", "")["mlflow"]["run_id"]
        run = MlflowClient(server.uri).get_run(run_id)
        assert run.info.status == "FINISHED"
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.info.experiment_id == parent.info.experiment_id
        steps = {n: found for n, found in steps_of(server.uri, run_id).items() if not n.startswith("system/")}
        assert steps == {name: [1, 2, 3] for name in steps}
    finally:
        server.kill()
