"""The sweep: what it trains, how many at a time, and one small one run here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from gkd_core.config import load_params, params_of_sections, parse_params
from gkd_core.errors import GkdError
from pipelines.kubeflow.grid import lay_out

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("given", "limit"), [(None, 4), (1, 1), (16, 16)])
def test_trainings_run_side_by_side_but_only_so_many(compiled, parts_of, given, limit):
    spec, pods = parts_of(compiled("gpu", "sweep", given))
    tasks = spec["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    loops = {name: task for name, task in tasks.items() if "parameterIterator" in task}
    assert len(loops) == 2
    assert all(task["iteratorPolicy"] == {"parallelismLimit": limit} for task in loops.values())
    inner = {
        name: set(spec["components"][task["componentRef"]["name"]]["dag"]["tasks"]) for name, task in loops.items()
    }
    assert sorted(map(sorted, inner.values())) == [["run-trial"], ["teacher"]]
    trials = next(name for name, tasks in inner.items() if "run-trial" in tasks)
    assert tasks["compare"]["dependentTasks"] == [trials]
    assert "gather" in tasks[trials]["dependentTasks"]
    assert pods["exec-run-trial"]["pvcMount"][0]["constant"] == "gkd-work"
    assert spec["deploymentSpec"]["executors"]["exec-run-trial"]["container"]["resources"]["accelerator"]


def test_each_teacher_is_trained_once_and_every_pair_meets_every_method_and_seed():
    params = load_params(ROOT / "params.yaml")
    pairs = [["resnet20", "resnet8"], ["resnet20", "resnet14"], ["resnet32", "resnet8"]]
    prepare, teachers, trials = lay_out(params, ["ce", "gompertz"], pairs, [0.0, 1.0], "kd")
    assert set(json.loads(prepare)) == {"data"}
    assert [params_of_sections(json.loads(text)).teacher.name for text in teachers] == ["resnet20", "resnet32"]
    found = [json.loads(text) for text in trials]
    assert len(found) == 3 * 3 * 2 == len(set(trials))
    assert {(it["teacher"], it["sections"]["student"]["name"]) for it in found} == {
        (0, "resnet8"), (0, "resnet14"), (1, "resnet8"),
    }  # fmt: skip
    assert {it["method"] for it in found} == {"kd", "ce", "gompertz"}
    assert {it["seed"] for it in found} == {0, 1}


def test_without_pairs_and_methods_it_is_the_parameters_own_and_all_methods():
    from gkd_core.methods import METHODS

    _, teachers, trials = lay_out(load_params(ROOT / "params.yaml"), [], [], [0, 1, 2], "kd")
    assert len(teachers) == 1
    assert len(trials) == 3 * len(METHODS)


@pytest.mark.parametrize(
    ("change", "methods", "pairs", "seeds", "parts"),
    [
        ({}, ["kdd"], [], [0], ["'kdd'", "did you mean"]),
        ({}, [], [["resnet20"]], [0], ["['resnet20']", "[teacher, student]"]),
        ({}, [], [["resnet20", "resnett8"]], [0], ["pairs: the student 'resnett8'", "'resnet8'"]),
        ({}, [], [], [0.5], ["0.5", "whole numbers"]),
        ({}, [], [], [1, 1], ["different seeds"]),
        ({"teacher": {"source": "t"}}, [], [["resnet8", "resnet8"], ["vgg8", "resnet8"]], [0], ["teacher.source is t"]),
    ],
)
def test_what_cannot_be_compared_is_refused_by_the_first_task(change, methods, pairs, seeds, parts):
    with pytest.raises(GkdError) as caught:
        lay_out(parse_params(change), methods, pairs, seeds, "kd")
    for part in parts:
        assert part in str(caught.value)


def test_an_unknown_metric_is_refused_by_the_first_task():
    with pytest.raises(GkdError, match="metric 'f1' is unknown"):
        lay_out(parse_params({}), [], [], [0], "kd", "f1")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_small_one_run_here(tmp_path):
    small = {"epochs": 1, "device": "cpu"}
    content = {
        "data": {"train_images": 100},
        "teacher": {"name": "resnet8", "train": small},
        "train": small,
        "evaluate": {"device": "cpu"},
    }
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", "pipeline", "run", "--pipeline", "sweep", "--out", "made",
         "--argument", "methods=[ce]", "--argument", "seeds=[1]"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=1500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "made" / "comparison" / "comparison.json").read_text())
    (rows,) = found["pairs"].values()
    assert {row["method"]: len(row["seeds"]) for row in rows} == {"ce": 1, "kd": 1}
    assert list(found["pairs"]) == ["resnet8 → resnet8"]
    assert done.stderr.count("run-trial …") == 2
