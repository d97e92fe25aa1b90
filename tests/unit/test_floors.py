"""Floors import downwards only, and what must be light is light."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FORBIDDEN = {
    "gkd_core": {"components", "pipelines", "kfp", "dvc", "mlflow", "kubeflow"},
    "components": {"pipelines"},
    "pipelines": set(),
}


def imported_names(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("floor", FORBIDDEN)
def test_a_floor_imports_only_from_below(floor):
    files = list((ROOT / floor).rglob("*.py"))
    assert files
    for file in files:
        climbing = imported_names(file) & FORBIDDEN[floor]
        assert not climbing, f"{file.relative_to(ROOT)} imports {climbing}"


def test_dvc_is_imported_in_one_place():
    users = [f.name for f in (ROOT / "components").rglob("*.py") if "dvc" in imported_names(f)]
    assert users == ["dvc_source.py"]


def test_mlflow_is_imported_in_one_place():
    # What writes needs all of MLflow; what serves does with the small distribution.
    users = sorted(f.name for f in (ROOT / "components").rglob("*.py") if "mlflow" in imported_names(f))
    assert users == ["mlflow_store.py"]


def loaded_by(code: str) -> set[str]:
    program = f"{code}\nimport sys; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    return {name.split(".")[0] for name in result.stdout.splitlines()[-1].split()}


HEAVY = {"torch", "torchvision", "mlflow", "dvc", "kfp", "sklearn", "scipy", "matplotlib", "onnx", "onnxruntime"}


def test_help_imports_nothing_heavy():
    code = "import sys; sys.argv = ['gkd', '--help']\nfrom pipelines.cli import app\napp(standalone_mode=False)"
    assert not loaded_by(code) & (HEAVY | {"numpy", "pydantic", "yaml", "PIL"})


def test_configuration_and_method_names_need_no_torch():
    assert not loaded_by("import gkd_core.config; gkd_core.config.Params()") & HEAVY


def test_the_science_needs_no_platform():
    modules = [
        ".".join(f.relative_to(ROOT).with_suffix("").parts)
        for f in (ROOT / "gkd_core").rglob("*.py")
        if f.name != "__init__.py"
    ]
    platforms = {"mlflow", "dvc", "kfp", "kubeflow", "typer"}
    assert not loaded_by("\n".join(f"import {name}" for name in modules)) & platforms


def test_what_serves_needs_nothing_of_what_trains():
    code = (
        "import components.model_source, gkd_core.serving.server, gkd_core.serving.classify, pipelines.commands.serving"
    )
    trains = HEAVY - {"onnx", "onnxruntime"} | {"sqlalchemy", "safetensors", "jinja2", "pandas"}
    assert not loaded_by(code) & trains


def imported_modules(file: Path, known: set[str]) -> set[str]:
    """Our modules that a file imports anywhere in it, but for annotations only; packages' own __init__ left out."""
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found & known


def test_no_module_imports_itself_round_a_circle():
    files = {
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
        for floor in FORBIDDEN
        for file in (ROOT / floor).rglob("*.py")
    }
    packages = {name for name, file in files.items() if file.name == "__init__.py"}
    graph = {name: imported_modules(file, set(files)) - packages - {name} for name, file in files.items()}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))
