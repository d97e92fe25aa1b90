"""The two graphs, dvc.yaml and the Kubeflow pipeline, step by step and edge by edge.

What Kubeflow has alone: the task `settings`, which is its params.yaml, and the exit handler's `ended`.
"""

import ast
import json
import shlex
from pathlib import Path

import pytest
import yaml

from components.kubeflow.sections import READS, SHOW, SHOWN, divide
from gkd_core.config import Params, load_params, params_of_sections, parse_params
from pipelines.compiled import compile_pipeline

ROOT = Path(__file__).parents[2]
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
OURS = {"settings"}


@pytest.fixture(scope="module")
def spec(tmp_path_factory) -> dict:
    file = tmp_path_factory.mktemp("graph") / "p.yaml"
    compile_pipeline(file, params=ROOT / "params.yaml")
    return yaml.safe_load(file.read_text())


@pytest.fixture(scope="module")
def tasks(spec) -> dict:
    return spec["components"]["comp-exit-handler-1"]["dag"]["tasks"]


def folder(stage: dict) -> str:
    words = shlex.split(stage["cmd"])
    return words[words.index("--out") + 1]


def dvc_edges() -> set[tuple[str, str, str]]:
    """(who makes it, folder, who reads it)"""
    makers = {folder(stage): name for name, stage in STAGES.items()}
    return {
        (makers[dep.split("/")[0]], dep.split("/")[0], name)
        for name, stage in STAGES.items()
        for dep in stage.get("deps", [])
        if dep.split("/")[0] in makers
    }


def test_the_same_steps(tasks):
    assert set(tasks) - OURS == set(STAGES)


def test_the_same_artifacts_go_the_same_ways(tasks):
    edges = {
        (given["taskOutputArtifact"]["producerTask"], given["taskOutputArtifact"]["outputArtifactKey"], name)
        for name, task in tasks.items()
        for given in task.get("inputs", {}).get("artifacts", {}).values()
    }
    assert edges == dvc_edges()
    for name, task in tasks.items():  # nothing waits for anything else
        makers = {maker for maker, _, reader in dvc_edges() if reader == name}
        assert set(task.get("dependentTasks", [])) - OURS == makers, name


def test_a_step_s_own_folder_has_the_same_name(spec):
    for name, stage in STAGES.items():
        assert folder(stage) in spec["components"][f"comp-{name}"]["outputDefinitions"]["artifacts"], name


def test_the_same_sections_are_read():
    assert {name: list(reads) for name, reads in READS.items()} == {
        name: stage["params"] for name, stage in STAGES.items()
    }


def test_each_step_is_given_its_own_sections_by_the_settings_task(tasks):
    for name in STAGES:
        assert tasks[name]["inputs"]["parameters"]["settings"]["taskOutputParameter"] == {
            "producerTask": "settings", "outputParameterKey": name,
        }  # fmt: skip
    params = load_params(ROOT / "params.yaml")
    for name, sections in divide(params).items():
        assert set(sections) == {*READS[name], *(SHOWN if name in SHOW else ())}
        again = params_of_sections(json.loads(json.dumps(sections)))
        assert again.digest(*READS[name]) == params.digest(*READS[name])


def test_a_teacher_from_the_registry_is_told_where_that_is():
    params = parse_params(
        {"teacher": {"source": "models:/other@champion"}, "tracking": {"uri": "http://mlflow.example"}}
    )
    assert divide(params)["teacher"]["tracking"]["uri"] == "http://mlflow.example"


def test_a_step_s_source_reads_no_other_section():
    """A step that is not given a section would silently see its defaults."""
    excused = {
        "teacher": {"tracking", "distill", "student"},  # given where needed; refuse_ahead, which `settings` calls too
    }
    for name in READS:
        if name in ("baseline", "kd"):
            continue
        step = {"distill": {"student", "train", "distill", "references"}}.get(name, {*READS[name]})
        step |= set(SHOWN if name in SHOW else ()) | excused.get(name, set())
        tree = ast.parse((ROOT / "components" / f"{name}.py").read_text())
        read = {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "params"
            and node.attr in Params.model_fields
        }
        assert read <= step, name


def test_the_exit_handler_hears_how_it_ended(spec):
    root = spec["root"]["dag"]["tasks"]
    assert set(root) == {"exit-handler-1", "ended"}
    assert root["ended"]["triggerPolicy"] == {"strategy": "ALL_UPSTREAM_TASKS_COMPLETED"}
    assert root["ended"]["inputs"]["parameters"]["status"] == {"taskFinalStatus": {"producerTask": "exit-handler-1"}}


def test_no_task_depends_on_a_condition(spec):
    assert "condition" not in json.dumps(spec["root"]["dag"]) + json.dumps(spec["components"]["comp-exit-handler-1"])
