"""dvc.yaml: every command is one of ours, every stage declares what its command reads and writes."""

import ast
import shlex
from pathlib import Path

import pytest
import yaml

from gkd_core.config import Params

ROOT = Path(__file__).parents[2]
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


def options(stage: dict) -> dict[str, str]:
    words = shlex.split(stage["cmd"])
    return dict(zip(words[2::2], words[3::2], strict=True))


def paths(entries: list) -> set[str]:
    return {entry if isinstance(entry, str) else next(iter(entry)) for entry in entries}


def test_the_order_of_the_house():
    assert list(STAGES) == ["prepare", "teacher", "baseline", "kd", "distill", "export", "evaluate", "register"]


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_declares_the_folders_its_command_names(name):
    stage, given = STAGES[name], options(STAGES[name])
    out = given.pop("--out")
    given.pop("--reference", None)
    written = paths(stage.get("outs", []) + stage.get("metrics", []))
    assert written == {out} or all(path.startswith(f"{out}/") for path in written)
    deps = paths(stage.get("deps", []))
    for folder in given.values():
        assert folder in deps or any(dep.startswith(f"{folder}/") for dep in deps), f"{name} reads {folder}"


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_reads_known_sections_and_existing_sources(name):
    assert set(STAGES[name]["params"]) <= set(Params.model_fields)
    produced = {options(stage)["--out"] for stage in STAGES.values()}
    for dep in paths(STAGES[name].get("deps", [])):
        assert dep.split("/")[0] in produced or (ROOT / dep).exists(), f"{name} depends on {dep}"


def test_the_references_read_nothing_of_the_method():
    for name in ("baseline", "kd"):
        assert STAGES[name]["params"] == ["student", "train", "references"]


@pytest.mark.parametrize("name", STAGES)
def test_commands_exist_with_their_options(name):
    from typer.main import get_command

    from pipelines.cli import app

    words = shlex.split(STAGES[name]["cmd"])
    assert words[0] == "gkd"
    known = {flag for parameter in get_command(app).commands[words[1]].params for flag in parameter.opts}
    assert set(options(STAGES[name])) <= known


# Sources that change no result: what a user reads, and what is kept in no digest.
SILENT = {
    "gkd_core/errors.py",
    "gkd_core/redact.py",
    "gkd_core/run_facts.py",
    "gkd_core/training/progress.py",
    "components/tracking.py",
}


def imported_files(file: Path) -> set[Path]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        found |= {ROOT.joinpath(*name.split(".")).with_suffix(".py") for name in names}
    return {path for path in found if path.is_file()}


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_depends_on_every_source_that_its_command_imports(name):
    """Else a change of code leaves old results standing under a new code digest."""
    words = shlex.split(STAGES[name]["cmd"])
    todo, seen = {ROOT / "components" / f"{words[1]}.py"}, set()
    while todo:
        file = todo.pop()
        seen.add(file)
        todo |= imported_files(file) - seen
    deps = paths(STAGES[name].get("deps", []))
    sources = {file.relative_to(ROOT).as_posix() for file in seen} - SILENT
    uncovered = {s for s in sources if not any(s == dep or s.startswith(f"{dep}/") for dep in deps)}
    assert not uncovered
