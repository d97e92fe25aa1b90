"""Plugins where steps are chained: DVC, Kubeflow, several processes, the registry; and the example, installed."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from components.graph import STEP, STEPS, divide
from components.search_workers import run_workers
from gkd_core import plugins
from gkd_core.config import params_of_sections, parse_params
from gkd_core.errors import GkdError
from gkd_core.files import read_json
from pipelines import dvc
from pipelines.catalogue import method_rows, methods_markdown, plugin_rows
from pipelines.cli import app
from pipelines.kubeflow.checks import resolve
from pipelines.kubeflow.compile import compile_pipeline
from tests import forked
from tests.unit.plugin import SOURCE, add_to_path, write_methods, write_plugin

ROOT = Path(__file__).parents[2]
PARAMS = {
    "plugins": ["mine.things"],
    "data": {"train_images": 200},
    "teacher": {"name": "resnet8", "train": {"epochs": 1, "device": "cpu"}},
    "student": {"name": "tiny"},
    "distill": {"method": "gap", "options": {"gap": {"weight": 2}}},
    "references": {"kd": False},
    "train": {
        "epochs": 1,
        "device": "cpu",
        "devices": 2,
        "batch_size": 50,
        "augment": {"own": {"noise": {"strength": 0.2}}},
    },
    "evaluate": {"latency_runs": 10},
}


@pytest.fixture
def module(tmp_path, forget_plugins) -> str:
    add_to_path(tmp_path)
    return write_plugin(tmp_path, "mine")


def test_every_step_that_reads_a_network_is_told_of_the_plugins(module):
    told = divide(parse_params(PARAMS))
    assert {name for name, sections in told.items() if "plugins" in sections} == {*STEP} - {"prepare"}
    assert not any("plugins" in sections for sections in divide(parse_params({})).values())
    plugins.release(module)
    del sys.modules[module]
    assert params_of_sections(json.loads(json.dumps(told["baseline"]))).student.name == "tiny"


def test_an_installed_plugin_is_told_by_its_module(tmp_path, forget_plugins):
    add_to_path(tmp_path)
    module = write_plugin(tmp_path, "installed", installed=True)
    params = parse_params({"student": {"name": "tiny"}})
    assert divide(params)["export"]["plugins"] == [module]


def test_dvc_counts_a_plugins_files_where_a_step_uses_them(module, tmp_path):
    params = parse_params(PARAMS)
    files = {step.name: {path for path in dvc.sources_of(step, params) if ":" in path} for step in STEPS}
    both = {"mine:__init__.py", "mine:things.py"}
    used = {"baseline", "kd", "distill"}
    assert files == {name: both if name in used else set() for name in files}
    assert dvc.plugins_in(tmp_path, params) == ["mine/__init__.py", "mine/things.py"]
    stage = yaml.safe_load(dvc.dvc_yaml(plugins=dvc.plugins_in(tmp_path, params)))["stages"]["sources"]
    assert "mine/things.py" in stage["deps"]


def test_compiling_says_that_the_image_must_hold_it(module, tmp_path, capsys):
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(PARAMS | {"train": {"device": "cpu"}}))
    compile_pipeline(tmp_path / "pipeline.yaml", params=tmp_path / "params.yaml", warn=True)
    said = [line for line in capsys.readouterr().err.splitlines() if "plugin" in line]
    assert len(said) == 1
    assert "mine.things" in said[0]
    assert "image" in said[0]


def test_a_task_in_an_image_without_it_says_so(forget_plugins):
    with pytest.raises(GkdError, match=r"plugin mine\.things is not there.*image"):
        resolve(PARAMS)


def test_lists_have_them_and_the_page_made_from_the_code_does_not(module):
    parse_params(PARAMS)
    row = {row["name"]: row for row in method_rows()}["gap"]
    assert (row["summary"], row["plugin"], row["hyperparameters"]) == (
        "Mean gap of the logits.",
        module,
        {"weight": 1.0},
    )
    assert {(row["kind"], row["name"]) for row in plugin_rows()} == {("network", "tiny"), ("augmentation", "noise")}
    assert methods_markdown() == (ROOT / "docs" / "methods.md").read_text()


def test_gkd_methods_lists_the_plugins_of_a_file(module, tmp_path):
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"plugins": [module]}))
    listed = CliRunner().invoke(app, ["methods", "--json", "--params", str(tmp_path / "params.yaml")])
    rows = {row["name"]: row for row in json.loads(listed.stdout.splitlines()[-1])}
    assert rows["gap"]["plugin"] == rows["tiny"]["plugin"] == module
    shown = CliRunner().invoke(app, ["methods", "--params", str(tmp_path / "params.yaml")])
    assert "augmentation" in shown.stdout
    assert "strength" in shown.stdout


def test_a_method_that_fails_ends_the_command_in_a_sentence(tmp_path, digits, teacher):
    wrong = SOURCE.replace('"ce": self.cross_entropy(student.logits, labels), ', "")
    params = {"plugins": [write_plugin(tmp_path, "mine", wrong)], "student": {"name": "tiny"}}
    params |= {"distill": {"method": "gap"}, "train": {"epochs": 1, "device": "cpu"}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    done = forked.gkd("distill", "--data", str(digits), "--teacher", str(teacher), cwd=tmp_path)
    assert done.returncode == 2
    said = 'method gap of mine.things gives a dict without "ce", not a dict of scalar tensors with "ce": correct it'
    assert done.stderr.splitlines()[-1] == f"gkd: {said}"
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "student").exists()


@pytest.mark.slow
def test_a_searchs_workers_know_the_plugins_of_who_started_them(module, tmp_path):
    plugins.load([module])
    run_workers(write_methods, 1, tmp_path / "known")
    assert "gap" in (tmp_path / "known").read_text().split()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_whole_run_has_the_plugin_in_its_lineage(tmp_path):
    """Through kfp's local runner, its trainings in two processes each, from a module in the current folder."""
    write_plugin(tmp_path, "mine")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(PARAMS | {"tracking": {"uri": uri, "live": False}}))
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "GKD_"))}
    surroundings = kept | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = forked.gkd("pipeline", "run", "--out", "made", cwd=tmp_path, env=surroundings, timeout=1500)
    assert done.returncode == 0, done.stderr
    made = tmp_path / "made"
    wanted = read_json(made / "student" / "training.json", "the student")["plugins"]
    assert wanted.startswith("mine@sha256:")
    assert read_json(made / "student" / "training.json", "the student")["processes"] == 2
    assert read_json(made / "deploy" / "manifest.json", "the manifest")["plugins"] == wanted
    assert "plugins" not in read_json(made / "teacher" / "resnet8" / "training.json", "the teacher")

    from mlflow import MlflowClient

    version = MlflowClient(uri).get_model_version("gkd-student", "1")
    assert version.tags["gkd.plugins"] == wanted
    checked = forked.gkd("verify", "made", cwd=tmp_path, env=surroundings | {"MLFLOW_TRACKING_URI": uri}, timeout=300)
    assert checked.returncode == 0, checked.stderr


@pytest.mark.slow
def test_the_example_is_found_once_pip_has_installed_it(tmp_path):
    place, example = tmp_path / "installed", ROOT / "examples" / "own_method"
    install = ["pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", f"--target={place}"]
    subprocess.run([sys.executable, "-m", *install, str(example)], check=True, cwd=tmp_path)
    surroundings = os.environ | {"PYTHONPATH": f"{place}{os.pathsep}{ROOT}"}
    run = {"cwd": tmp_path, "env": surroundings, "check": True, "capture_output": True, "text": True}
    listed = subprocess.run([sys.executable, "-m", "pipelines.cli", "methods", "--json"], **run)
    rows = {row["name"]: row for row in json.loads(listed.stdout.splitlines()[-1])}
    assert rows["cosine-embedding"]["hyperparameters"] == {"weight": 1.0, "power": 2.0}
    assert {"separable-32", "noise", "gaussian-blur"} <= rows.keys()
    (tmp_path / "test_own_method.py").write_text((example / "test_own_method.py").read_text())
    subprocess.run([sys.executable, "-m", "pytest", "-q", "test_own_method.py"], **run)
    steps = re.findall(r"^gkd (\w+) --params (\S+)(.*)$", (example / "README.md").read_text(), re.MULTILINE)
    assert [step for step, *_ in steps] == ["prepare", "teacher", "distill"]
    smaller = ("data.train_images=100", "teacher.name=resnet8", "teacher.train.epochs=1", "train.epochs=1")
    for step, params, more in steps:
        told = ["--params", str(ROOT / params), *more.split(), *(part for text in smaller for part in ("--set", text))]
        done = forked.gkd(step, *told, cwd=place, timeout=300)  # a fork reads no PYTHONPATH: the folder has it
        assert done.returncode == 0, done.stderr
    assert read_json(place / "student" / "training.json", "the student")["plugins"].startswith("own_method@sha256:")


def test_the_examples_parameters_are_valid(forget_plugins):
    add_to_path(ROOT / "examples" / "own_method")
    params = parse_params(yaml.safe_load((ROOT / "examples" / "own_method" / "params.yaml").read_text()))
    assert params.digest("student", "train", "distill")
    assert plugins.lineage(params.names("student")).startswith("own_method@sha256:")
