"""The sweep: what it trains, how many at a time, and one small one run here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from gkd_core.config import load_params, params_of_sections, parse_params
from gkd_core.config.contenders import Contender, line_up, parse_contenders
from gkd_core.errors import GkdError
from pipelines.kubeflow.compile import compile_pipeline
from pipelines.kubeflow.grid import lay_out, refuse_missing_starts
from pipelines.kubeflow.package import Work, check

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
    assert sorted(tasks["compare"]["dependentTasks"]) == sorted([trials, "plan"])  # which says who the reference is
    assert "gather" in tasks[trials]["dependentTasks"]
    assert pods["exec-run-trial"]["pvcMount"][0]["constant"] == "gkd-work"
    assert spec["deploymentSpec"]["executors"]["exec-run-trial"]["container"]["resources"]["accelerator"]


def test_each_teacher_is_trained_once_and_every_pair_meets_every_method_and_seed():
    params = load_params(ROOT / "params.yaml")
    pairs = [["resnet20", "resnet8"], ["resnet20", "resnet14"], ["resnet32", "resnet8"]]
    prepare, teachers, trials, reference = lay_out(params, ["ce", "gompertz"], pairs, [0.0, 1.0])
    assert reference == "kd"
    assert set(json.loads(prepare)) == {"data"}
    assert [params_of_sections(json.loads(text)).teacher.name for text in teachers] == ["resnet20", "resnet32"]
    found = [json.loads(text) for text in trials]
    assert len(found) == 3 * 3 * 2 == len(set(trials))
    assert {(it["teacher"], it["sections"]["student"]["name"]) for it in found} == {
        (0, "resnet8"), (0, "resnet14"), (1, "resnet8"),
    }  # fmt: skip
    assert {it["sections"]["distill"]["method"] for it in found} == {"kd", "ce", "gompertz"}
    assert all(it["name"] == it["sections"]["distill"]["method"] for it in found)
    assert {it["sections"]["train"]["seed"] for it in found} == {0, 1}


def test_without_pairs_and_methods_it_is_the_parameters_own_and_all_methods():
    from gkd_core.methods import METHODS

    plan = lay_out(load_params(ROOT / "params.yaml"))
    assert len(plan.teachers) == 1
    assert len(plan.trials) == 3 * len(METHODS)


CONTENDERS = """
- name: plain   # the first is the reference
  distill: {method: kd, schedule: null}
- name: larger steps
  distill: {method: kd}
  train: {learning_rate: 0.2}
- name: larger student
  distill: {method: kd}
  student: {name: resnet14}
"""


class TestContenders:
    def test_what_one_starts_from_is_looked_for_before_anything_is_trained(self, tmp_path):
        params = parse_params({"decide": {"precision": 0.9, "unknown": "gone"}})  # which a sweep does not read
        (tmp_path / "own.pth").write_bytes(b"weights")

        def look(weights: Path) -> None:
            named = f"- kd\n- {{name: own, student: {{name: resnet8, weights: {weights}}}}}"
            refuse_missing_starts(params, [], [], "", named, made=lambda path: False)

        look(tmp_path / "own.pth")
        with pytest.raises(GkdError, match=r"^contender 'own': student\.weights is .*gone\.pth, but there is no file"):
            look(tmp_path / "gone.pth")

    def test_the_file_of_a_comparison_is_what_a_sweep_trains(self):
        params = load_params(ROOT / "params.yaml")
        plan = lay_out(params, seeds=[0.0, 1.0], contenders=CONTENDERS)
        assert plan.reference == "plain"
        lined = {each.name: each for each in line_up(params, contenders=parse_contenders(CONTENDERS, "c.yaml"))}
        assert len(plan.trials) == 6
        assert len(plan.teachers) == 1
        for it in map(json.loads, plan.trials):
            mine = Contender(it["name"], params_of_sections(it["sections"]))  # as the task has it
            wanted = lined[it["name"]]
            assert mine.settings == wanted.settings
            assert mine.params.digest("student", "train", "distill") == wanted.seeded(mine.params.train.seed).digest(
                "student", "train", "distill"
            )

    def test_they_meet_several_teachers_but_name_their_own_students(self):
        params = load_params(ROOT / "params.yaml")
        plan = lay_out(params, [], [["resnet20", "resnet8"], ["resnet32", "resnet8"]], [0], contenders=CONTENDERS)
        assert (len(plan.teachers), len(plan.trials)) == (2, 6)
        with pytest.raises(GkdError, match="pairs names several students, but contender 'larger student' has its own"):
            lay_out(params, [], [["resnet20", "resnet8"], ["resnet20", "resnet32"]], [0], contenders=CONTENDERS)

    def test_they_stand_in_the_compiled_file_as_they_were_written(self, tmp_path):
        (tmp_path / "contenders.yaml").write_text(CONTENDERS)
        file = tmp_path / "sweep.yaml"
        compile_pipeline(file, params=ROOT / "params.yaml", which="sweep", contenders=tmp_path / "contenders.yaml")
        spec = next(yaml.safe_load_all(file.read_text()))
        assert spec["root"]["inputDefinitions"]["parameters"]["contenders"]["defaultValue"] == CONTENDERS
        check(Work(file, {"seeds": [0]}, "name"), print)
        with pytest.raises(GkdError, match=r"contenders: 'a': .*'train.epoch'.* did you mean 'train.epochs'"):
            check(Work(file, {"contenders": "- {name: a, train: {epoch: 3}}"}, "name"), print)

    @pytest.mark.parametrize(
        ("text", "which", "words"),
        [
            ("- kdd", "sweep", "contenders: method 'kdd' is unknown; did you mean 'kd'"),
            ("- {name: a, train: {lr: 3}}", "sweep", "contenders: 'a': parameter 'train.lr' is unknown"),
            (
                "- {name: a, student: {weights: ./w.pth}}",
                "sweep",
                "contender 'a': student.weights is ./w.pth, a place",
            ),
            ("- {name: 'https://me:hunter2@x.example'}", "sweep", "holds a password"),
            ("kd", "sweep", "must hold a list of contenders"),
            ("- kd", "distillation", "--contenders names what a sweep trains: add --pipeline sweep"),
        ],
    )
    def test_what_cannot_be_trained_there_is_not_compiled(self, tmp_path, text, which, words):
        (tmp_path / "c.yaml").write_text(text)
        with pytest.raises(GkdError) as caught:
            compile_pipeline(
                tmp_path / "p.yaml", params=ROOT / "params.yaml", which=which, contenders=tmp_path / "c.yaml"
            )
        assert words in str(caught.value)
        assert "hunter2" not in str(caught.value)
        assert not (tmp_path / "p.yaml").exists()

    def test_the_option_belongs_to_sweeps(self, compiled):
        with pytest.raises(GkdError, match="--contenders names what a sweep trains: add --pipeline sweep"):
            check(Work(compiled(), {"contenders": CONTENDERS}, "name"), print)

    def test_weights_of_the_registry_bring_its_address_along(self):
        params = parse_params({"tracking": {"uri": "http://mlflow.example"}})
        text = "- {name: a, student: {weights: 'models:/students/1'}}\n- {name: b}"
        trials = [json.loads(trial)["sections"] for trial in lay_out(params, seeds=[0], contenders=text).trials]
        assert trials[0]["tracking"]["uri"] == "http://mlflow.example"
        assert "tracking" not in trials[1]


@pytest.mark.parametrize(
    ("change", "methods", "pairs", "seeds", "parts"),
    [
        ({}, ["kdd"], [], [0], ["'kdd'", "did you mean"]),
        ({}, [], [["resnet20"]], [0], ["['resnet20']", "[teacher, student]"]),
        ({}, [], [["resnet20", "resnet8"]] * 2, [0], ["pairs names resnet20 → resnet8 twice"]),
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
    (tmp_path / "contenders.yaml").write_text("- kd\n- {name: student alone, distill: {method: ce}}")
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", "pipeline", "run", "--pipeline", "sweep", "--out", "made",
         "--contenders", "contenders.yaml", "--argument", "seeds=[1]"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=1500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "made" / "comparison" / "comparison.json").read_text())
    (rows,) = found["pairs"].values()
    assert {row["name"]: len(row["seeds"]) for row in rows} == {"student alone": 1, "kd": 1}
    assert list(found["pairs"]) == ["resnet8 → resnet8"]
    assert done.stderr.count("run-trial: ") == 2
