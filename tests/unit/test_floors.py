"""Floors import downwards only, and what must be light is light."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FORBIDDEN = {
    "gkd_core": {"components", "pipelines", "kfp", "dvc", "mlflow", "kubeflow", "typer"},
    "components": {"pipelines", "kfp", "kubeflow", "typer"},
    "pipelines": set(),
}


def imported(file: Path, *, for_types: bool = True) -> set[str]:
    """The modules that a file names in its imports, wherever in it; `from a import b` may mean `a` or `a.b`."""
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not for_types:
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def packages(file: Path) -> set[str]:
    return {name.partition(".")[0] for name in imported(file)}


@pytest.mark.parametrize("floor", FORBIDDEN)
def test_a_floor_imports_only_from_below(floor):
    files = list((ROOT / floor).rglob("*.py"))
    assert files
    for file in files:
        climbing = packages(file) & FORBIDDEN[floor]
        assert not climbing, f"{file.relative_to(ROOT)} imports {climbing}"


@pytest.mark.parametrize(("package", "place"), [("dvc", "dvc_source.py"), ("mlflow", "mlflow_store.py")])
def test_a_platform_is_imported_in_one_place(package, place):
    assert [file.name for file in (ROOT / "components").rglob("*.py") if package in packages(file)] == [place]


def loaded_by(code: str) -> set[str]:
    program = f"{code}\nimport sys; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    return {name.split(".")[0] for name in result.stdout.splitlines()[-1].split()}


HEAVY = {"torch", "torchvision", "mlflow", "dvc", "kfp", "sklearn", "scipy", "matplotlib", "onnx", "onnxruntime"}


TRAINS = HEAVY - {"onnx", "onnxruntime"} | {"sqlalchemy", "safetensors", "jinja2", "pandas"}


def test_help_imports_nothing_heavy():
    code = "import sys; sys.argv = ['gkd', '--help']\nfrom pipelines.cli import app\napp(standalone_mode=False)"
    assert not loaded_by(code) & (HEAVY | {"numpy", "pydantic", "yaml", "PIL"})


def test_reading_the_shipped_params_yaml_imports_nothing_heavy():
    assert not loaded_by("from gkd_core.config import load_params; load_params()") & HEAVY


def test_what_serves_needs_nothing_of_what_trains():
    code = (
        "import components.model_source, gkd_core.serving.server, gkd_core.serving.classify, "
        "gkd_core.prediction.predict, pipelines.commands.serving"
    )
    assert not loaded_by(code) & TRAINS


def test_what_measures_on_the_target_needs_no_more_than_what_serves():
    assert not loaded_by("import components.bench, pipelines.commands.bench, pipelines.summary") & TRAINS


def test_no_module_imports_itself_round_a_circle():
    files = {
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
        for floor in FORBIDDEN
        for file in (ROOT / floor).rglob("*.py")
    }
    inits = {name for name, file in files.items() if file.name == "__init__.py"}
    graph = {name: imported(file, for_types=False) & (files.keys() - inits - {name}) for name, file in files.items()}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))
