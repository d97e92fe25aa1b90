"""The Kubeflow pipeline is the table of steps, step by step and edge by edge.

What Kubeflow has alone: the task `settings`, which is its params.yaml, and the exit handler's `ended`.
"""

import ast
import json
from pathlib import Path

import pytest

from components import mlflow_store
from components.graph import MAKER, SHOWN, STEP, STEPS, divide
from gkd_core.config import Params, load_params, params_of_sections, parse_params
from gkd_core.errors import GkdError
from pipelines.kubeflow import components

ROOT = Path(__file__).parents[2]
OURS = {"settings"}


@pytest.fixture(scope="module")
def spec(compiled, parts_of) -> dict:
    return parts_of(compiled())[0]


@pytest.fixture(scope="module")
def tasks(spec) -> dict:
    return spec["components"]["comp-exit-handler-1"]["dag"]["tasks"]


def edges_of_the_table() -> set[tuple[str, str, str]]:
    """(who makes it, folder, who reads it)"""
    return {(MAKER[name].name, name, step.name) for step in STEPS for name in step.inputs}


def test_the_same_steps(tasks):
    assert set(tasks) - OURS == set(STEP)


def test_the_same_artifacts_go_the_same_ways(tasks):
    edges = {
        (given["taskOutputArtifact"]["producerTask"], given["taskOutputArtifact"]["outputArtifactKey"], name)
        for name, task in tasks.items()
        for given in task.get("inputs", {}).get("artifacts", {}).values()
    }
    assert edges == edges_of_the_table()
    for name, task in tasks.items():  # nothing waits for anything else
        makers = {maker for maker, _, reader in edges_of_the_table() if reader == name}
        assert set(task.get("dependentTasks", [])) - OURS == makers, name


def test_a_step_s_own_folder_has_the_same_name(spec):
    for step in STEPS:
        assert step.output in spec["components"][f"comp-{step.name}"]["outputDefinitions"]["artifacts"], step.name


def test_each_step_is_given_its_own_sections_by_the_settings_task(tasks):
    for name in STEP:
        assert tasks[name]["inputs"]["parameters"]["settings"]["taskOutputParameter"] == {
            "producerTask": "settings", "outputParameterKey": name,
        }  # fmt: skip
    params = load_params(ROOT / "params.yaml")
    for name, sections in divide(params).items():
        reads = STEP[name].sections
        assert set(sections) == {*reads, *(SHOWN if STEP[name].shows else ())}
        assert params_of_sections(json.loads(json.dumps(sections))).digest(*reads) == params.digest(*reads)


def test_a_teacher_from_the_registry_is_told_where_that_is():
    params = parse_params(
        {"teacher": {"source": "models:/other@champion"}, "tracking": {"uri": "http://mlflow.example"}}
    )
    assert divide(params)["teacher"]["tracking"]["uri"] == "http://mlflow.example"


def test_a_step_s_source_reads_no_other_section():
    """A step that is not given a section would silently see its defaults."""
    # A teacher from the registry is told where that is; and by their environment trainings are told where to log their
    # epochs (`pipelines/kubeflow/variables.py`), which changes no result.
    excused = {"teacher": {"tracking"}, "distill": {"tracking"}}
    for word in {step.word for step in STEPS}:
        steps = [step for step in STEPS if step.word == word]
        known = {section for step in steps for section in (*step.sections, *(SHOWN if step.shows else ()))}
        tree = ast.parse((ROOT / "components" / f"{word}.py").read_text())
        read = {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "params"
            and node.attr in Params.model_fields
        }
        assert read <= known | excused.get(word, set()), word


def test_the_exit_handler_hears_how_it_ended(spec):
    root = spec["root"]["dag"]["tasks"]
    assert set(root) == {"exit-handler-1", "ended"}
    assert root["ended"]["triggerPolicy"] == {"strategy": "ALL_UPSTREAM_TASKS_COMPLETED"}
    assert root["ended"]["inputs"]["parameters"]["status"] == {"taskFinalStatus": {"producerTask": "exit-handler-1"}}


def test_no_task_depends_on_a_condition(spec):
    assert "condition" not in json.dumps(spec["root"]["dag"]) + json.dumps(spec["components"]["comp-exit-handler-1"])


def test_the_first_task_asks_the_tracking_server(monkeypatch, capsys):
    asked = []

    def refuse(tracking):
        asked.append(tracking.uri)
        raise GkdError("the tracking store refuses us")

    monkeypatch.setattr(mlflow_store, "try_out", refuse)
    with pytest.raises(SystemExit) as stopped:
        components.settings.python_func({}, [], "", "http://mlflow:5000")
    assert (stopped.value.code, asked) == (2, ["http://mlflow:5000"])
    assert "gkd: the tracking store refuses us" in capsys.readouterr().err


@pytest.mark.parametrize("mounted", [True, False])
def test_the_first_task_looks_at_the_places_on_the_volumes_it_has(mounted, monkeypatch, capsys):
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setattr("os.path.ismount", lambda place: mounted and str(place) == "/nowhere")
    monkeypatch.setattr(mlflow_store, "try_out", lambda tracking: None)
    params = {"decide": {"precision": 0.9, "unknown": "/nowhere/others"}}
    if not mounted:  # `work` is mounted where something is trained alone
        assert components.settings.python_func(params, [], "", "")
        return
    with pytest.raises(SystemExit) as stopped:
        components.settings.python_func(params, [], "", "")
    assert stopped.value.code == 2
    assert "decide.unknown is /nowhere/others, but there is no folder /nowhere/others" in capsys.readouterr().err
