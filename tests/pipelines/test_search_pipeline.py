"""A search on Kubeflow: what its pods are given, what is refused before anything is sent, and a small one run here."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from gkd_core.config import load_params, parse_params
from gkd_core.errors import GkdError
from pipelines.kubeflow.compile import compile_pipeline
from pipelines.kubeflow.logs import memory_limit
from pipelines.kubeflow.package import Work, check
from pipelines.kubeflow.study import lay_out_search, read_plan
from pipelines.kubeflow.task import TRACKING

ROOT = Path(__file__).parents[2]
SPACE = "distill.method: {choices: [kd, dkd]}\ntrain.learning_rate: {low: 0.02, high: 0.5, log: true}\n"
DATABASE = "postgresql://db.example/gkd"


def test_workers_are_trainings_side_by_side_and_the_report_comes_after_them(compiled, parts_of):
    spec, pods = parts_of(compiled("gpu", "search"))
    tasks = spec["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    (loop,) = (name for name, task in tasks.items() if "parameterIterator" in task)
    inner = spec["components"][tasks[loop]["componentRef"]["name"]]["dag"]["tasks"]
    assert list(inner) == ["search-worker"]
    assert loop in tasks["search-report"]["dependentTasks"]
    assert {"prepare", "teacher", "trainings"} <= set(tasks[loop]["dependentTasks"])
    assert spec["deploymentSpec"]["executors"]["exec-search-worker"]["container"]["resources"]["accelerator"]
    assert pods["exec-search-worker"]["pvcMount"][0]["constant"] == "gkd-work"
    variables = spec["deploymentSpec"]["executors"]["exec-search-worker"]["container"]["env"]
    assert TRACKING in {one["name"] for one in variables}, "its trainings are followed as others are"
    assert memory_limit(spec, "search-worker") == ("32Gi", "training")
    for task in (inner["search-worker"], tasks["search-report"]):  # the database knows what is done, no cache does
        assert not task["cachingOptions"].get("enableCache")


def test_every_worker_has_the_same_plan(monkeypatch, tmp_path):
    params = parse_params({"distill": {"method": "kd"}, "train": {"epochs": 3}})
    layout = lay_out_search(params, space=SPACE, trials=5.0, seeds=[0.0, 1.0], each="distill.method", workers=3.0)
    given = [json.loads(text) for text in json.loads(layout.workers)]
    assert [each.pop("worker") for each in given] == [1, 2, 3]
    assert given == [json.loads(layout.search)] * 3
    monkeypatch.setenv("OPTUNA_STORAGE", DATABASE)
    plan, budget = read_plan(json.loads(layout.workers)[1], params, "data", "teacher", tmp_path)
    assert (budget.trials, budget.minutes, plan.seeds, plan.storage) == (5, None, [0, 1], DATABASE)
    assert [*plan.studies()] == ["kd, searched", "dkd, searched"]


@pytest.mark.parametrize("address", ["sqlite:////gkd/work/search.db", None])
def test_a_pod_does_not_search_in_a_database_of_its_own(address, monkeypatch, tmp_path):
    params = load_params(ROOT / "params.yaml")
    layout = lay_out_search(params, space=SPACE, storage=address or "")
    monkeypatch.delenv("OPTUNA_STORAGE", raising=False)
    read_plan(layout.search, params, "data", "teacher", tmp_path)  # here they share the machine
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    with pytest.raises(GkdError, match=r"pods do not share|all its pods reach"):
        read_plan(layout.search, params, "data", "teacher", tmp_path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "a search on a cluster needs a database that all its pods reach: give --argument storage="),
        ({"storage": "sqlite:///search.db"}, "storage is sqlite:///search.db, a file, which a cluster's pods do not"),
        ({"storage": "postgresql://me:secret@db/gkd"}, "holds a password"),
        ({"storage": DATABASE, "space": "train.epoch: {low: 1, high: 2}"}, "did you mean 'train.epochs'"),
        ({"storage": DATABASE, "space": ""}, "space is empty, so there is nothing to search: give --space FILE"),
        ({"storage": DATABASE, "workers": 0}, "workers is 0: give 1 or more"),
        ({"storage": DATABASE, "trials": 0}, "trials and minutes are both 0"),
        ({"storage": DATABASE, "seeds": [0.5]}, "0.5: give whole numbers"),
        ({"storage": DATABASE, "each": "distill.metod"}, "did you mean 'distill.method'"),
        ({"storage": DATABASE, "space": "student.weights: {choices: [./a.pth, pretrained]}"}, "student.weights is"),
    ],
)  # fmt: skip
def test_what_a_cluster_cannot_search_is_not_sent(arguments, words, compiled):
    with pytest.raises(GkdError) as caught:
        check(Work(compiled(which="search"), {"space": SPACE} | arguments, "name"), print)
    assert words in str(caught.value)
    assert "secret" not in str(caught.value) or "from a secret" in str(caught.value)


def test_a_secret_of_the_profile_is_a_database(tmp_path):
    secret = {"name": "gkd-search", "env": {"url": "OPTUNA_STORAGE"}, "steps": ["settings", "distill", "evaluate"]}
    (tmp_path / "profile.yaml").write_text(yaml.safe_dump({"secrets": [secret]}))
    (tmp_path / "space.yaml").write_text(SPACE)
    given = {"params": ROOT / "params.yaml", "profile": str(tmp_path / "profile.yaml"), "which": "search"}
    compile_pipeline(tmp_path / "search.yaml", **given, space=tmp_path / "space.yaml")
    check(Work(tmp_path / "search.yaml", {}, "name"), print)
    documents = list(yaml.safe_load_all((tmp_path / "search.yaml").read_text()))
    pods = documents[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    with_secret = {name for name, pod in pods.items() if pod.get("secretAsEnv")}
    assert {"exec-plan-search", "exec-search-worker", "exec-search-report"} <= with_secret
    assert not {"exec-prepare", "exec-teacher"} & with_secret


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"which": "search", "space": "train.learning_rate: {low: 2, high: 1}"}, "low (2) must be below high (1)"),
        ({"which": "sweep", "space": SPACE}, "--space says what a search draws from: add --pipeline search"),
        ({"which": "search", "parallelism": 3}, "write --argument workers=N"),
        ({"which": "search", "profile": "multi-gpu"}, "a search trains each trial in one process"),
    ],
)
def test_what_cannot_be_searched_is_not_compiled(options, words, tmp_path):
    if "space" in options:
        (tmp_path / "space.yaml").write_text(options["space"])
        options = options | {"space": tmp_path / "space.yaml"}
    with pytest.raises(GkdError) as caught:
        compile_pipeline(tmp_path / "p.yaml", params=ROOT / "params.yaml", **options)
    assert words in str(caught.value)
    assert not (tmp_path / "p.yaml").exists()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_small_one_run_here(tmp_path):
    small = {"epochs": 1, "device": "cpu"}
    content = {"data": {"train_images": 100}, "teacher": {"name": "resnet8", "train": small}, "train": small}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content | {"distill": {"method": "kd"}}))
    (tmp_path / "space.yaml").write_text("train.learning_rate: {low: 0.02, high: 0.5, log: true}")
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", "pipeline", "run", "--pipeline", "search", "--out", "made",
         "--space", "space.yaml", "--argument", "trials=3", "--argument", "workers=2"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=1500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("search-worker: worker") == 2
    rows = list(csv.DictReader((tmp_path / "made" / "search" / "trials.csv").open()))
    assert [row["trial"] for row in rows] == ["0", "1", "2"]
    best = load_params(tmp_path / "made" / "search" / "best.yaml")
    assert best.data.train_images == 100
    assert 0.02 <= best.train.learning_rate <= 0.5
