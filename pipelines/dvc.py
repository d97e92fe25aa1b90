"""dvc.yaml, written from the table of steps, and which files beside its folders a step's result depends on.

DVC knows no dependency that holds under some parameters only, and a change of one loss must not retrain a teacher that
has no use for it. Nor does it look at a file that a parameter names, such as the weights that a student starts from, or
the latency measured where it will run. So the first stage, `sources`, writes one file for each step, with the digests
of the sources that the step uses under these parameters and of the files that they name, and the step depends on that
file. `sources` takes a second; a step whose file stays the same is not run again. Which files to look at `sources`
alone knows: that another lies under the same name is seen when it runs, so after `dvc repro --force sources`.
"""

import ast
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from components.curves import METRICS
from components.curves import PLOTS as CURVES
from components.graph import MAKER, STEPS, Step, addresses
from components.places import refuse_missing
from gkd_core.config import Params, load_params
from gkd_core.files import file_digest, folder_digest, whole_folder, write_bytes, write_json
from gkd_core.methods import METHODS
from gkd_core.plugins import Name, modules_of, package_of, sources
from gkd_core.yaml_text import dump_yaml

SOURCES = "sources"
PACKAGES = ("gkd_core", "components", "pipelines")
ROOT = Path(__file__).parents[1]  # of a checkout, or site-packages
# Packages of which one module is chosen by a name at run time: who uses one of them uses all.
BY_NAME = ("gkd_core/data/sources", "gkd_core/models", "gkd_core/report")
# Sources that change no result: what a user reads, and what is in no digest.
SILENT = frozenset(
    {
        "components/curves.py",
        "components/live.py",
        "components/mlflow_store.py",
        "gkd_core/data/health_page.py",
        "gkd_core/errors.py",
        "gkd_core/losses/__init__.py",
        "gkd_core/redact.py",
        "gkd_core/run_facts.py",
        "gkd_core/schemes/__init__.py",
        "gkd_core/training/progress.py",
        "gkd_core/training/watcher.py",
    }
)
PLOTS = """plots:
  - learning curves:
      template: linear
      title: top-1 on the validation split
      x: epoch
      y:
        student/history.csv: validation_top1
        kd/history.csv: validation_top1
        baseline/history.csv: validation_top1
  - training loss:
      template: linear
      title: loss of the student, all terms
      x: epoch
      y:
        student/history.csv: train_loss
  - schedule:
      template: linear
      title: weight β(t) of the distillation terms
      x: epoch
      y:
        report/plots/schedule.csv: beta
  - confusion:
      template: confusion
      title: test images by actual and predicted class
      x: actual
      y:
        report/plots/confusion.csv: predicted
  - recall by class:
      template: bar_horizontal
      title: recall on the test split
      x: recall
      y:
        report/plots/per_class.csv: name
"""


def refuse_missing_places(params: Params, first: Step = STEPS[0]) -> None:
    """See that the files and folders that the parameters name are here, before DVC runs what comes before their step.

    Args:
        first: step that is run, or may be; what those before it read was there.
    Raises:
        GkdError: one is neither here nor among what DVC makes or fetches, a sentence each.
    """
    refuse_missing(params, STEPS[STEPS.index(first) :], made=_made_by_dvc)


def _made_by_dvc(path: Path) -> bool:
    """Whether a stage or a .dvc file of the project here has the path, or something in it, among its outputs."""
    here = Path.cwd()
    if not any((folder / ".dvc").is_dir() for folder in (here, *here.parents)):  # DVC takes a second to import
        return False
    try:
        from dvc.exceptions import DvcException
        from dvc.repo import Repo
    except ImportError:
        return False
    try:
        with Repo() as repo:
            outs = [Path(out.fs_path).resolve() for out in repo.index.outs if out.protocol == "local"]
    except DvcException:  # it cannot read the project, and says so itself
        return False
    place = path.resolve()
    return any(place.is_relative_to(out) or out.is_relative_to(place) for out in outs)


def write_sources(out: Path, params: Params) -> dict[str, Any]:
    """Write STEP.json for every step: the sha256 of each source file that its result depends on, and of what it reads
    beside its folders.

    Returns:
        How many files, by step.
    Raises:
        GkdError: what a step reads beside its folders is not there; nothing is written.
    """
    refuse_missing_places(params)
    sources = {step.name: sources_of(step, params) | files_of(step, params) for step in STEPS}
    with whole_folder(out) as folder:
        for name, files in sources.items():
            write_json(folder / f"{name}.json", files)
    return {name: len(files) for name, files in sources.items()}


def sources_of(step: Step, params: Params) -> dict[str, str]:
    """The sha256 by path of the source files that a step's result depends on under these parameters.

    They are found by their imports, from the step's module, its schemes and the losses of its methods on; what is
    chosen by a name otherwise (`BY_NAME`) counts as a whole package. Of plugins that take part, all files count, as
    `PACKAGE:PLACE`; other installed packages are not among them.
    """
    own = {package_of(module) for module in modules_of(used_by(step, params))}
    losses = [METHODS[name].loss.partition(":")[0] for name in step.methods(params)]
    schemes = [f"gkd_core.schemes.{name}" for name in step.schemes(params)]
    todo = {path for module in (f"components.{step.word}", *losses, *schemes) for path in _files_of(module)}
    for package in step.sources:
        todo |= _files_in(package)
    found: set[str] = set()
    while todo:
        path = todo.pop()
        found.add(path)
        todo |= _imported(path) - found - SILENT
    plugins = {f"{package}:{place}": file for package in own for place, file in sources(package).items()}
    return {path: file_digest(ROOT / path) for path in sorted(found)} | {
        place: file_digest(file) for place, file in sorted(plugins.items())
    }


def used_by(step: Step, params: Params) -> list[Name]:
    """What a step trains, and trains with, gkd's own and plugins': of its own sections, and of networks that it reads.

    What it reads was made by steps whose files have changed with the plugin, so for these nothing is named here.
    """
    return [*params.names(*step.sections), *(("method", name) for name in step.methods(params))]


def files_of(step: Step, params: Params) -> dict[str, str]:
    """The sha256 by path of the files and folders here that a step reads because a parameter names them.

    What is not there comes with the run (`refuse_missing_places`); what is published under a name does not change
    under it.
    """
    found = {}
    for address in addresses(params, step).values():
        path = Path(address)
        if path.exists():
            found[address] = folder_digest(path) if path.is_dir() else file_digest(path)
    return found


@cache
def _imported(path: str) -> frozenset[str]:
    """The files of ours that one names in its imports, wherever in it; of a package chosen from by name, all."""
    found = {file for package in BY_NAME if path.startswith(f"{package}/") for file in _files_in(package)}
    if not path.endswith(".py"):
        return frozenset(found)
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if not _for_types_only(node)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        found |= {file for name in names for file in _files_of(name)}
    return frozenset(found)


def _for_types_only(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def _files_of(module: str) -> list[str]:
    """The file of a module of ours, by its name."""
    if module.partition(".")[0] not in PACKAGES:
        return []
    path = module.replace(".", "/")
    return [file for file in (f"{path}.py", f"{path}/__init__.py") if (ROOT / file).is_file()]


def _files_in(package: str) -> set[str]:
    files = (file for file in (ROOT / package).rglob("*") if file.is_file() and "__pycache__" not in file.parts)
    return {file.relative_to(ROOT).as_posix() for file in files}


def plugins_in(root: Path, params: Params) -> list[str]:
    """The files below `root` of the plugins that the parameters name: those that DVC can watch."""
    packages = {package_of(module) for module in params.plugins}
    files = [file for package in packages for file in sources(package).values()]
    return sorted(
        file.relative_to(root).as_posix()
        for file in files
        if file.is_relative_to(root) and "site-packages" not in file.parts
    )


def dvc_yaml(
    *,
    checkout: bool = True,
    beside: Mapping[str, list[str]] = MappingProxyType({}),
    plugins: Sequence[str] = (),
) -> str:
    """The text of dvc.yaml.

    Args:
        checkout: gkd's sources stand beside it, so that a changed one is noticed; else gkd is an installed package.
        beside: what steps depend on beside the folders of others, by the step's name.
        plugins: with `checkout`, the files of plugins that stand beside it, too.
    """
    lines = [
        "# Made by `make dvc` from the table in components/graph.py. `gkd STEP --help` tells what each step takes."
    ]
    lines += ["# A changed source reruns what it could change: `sources` writes down which step uses which.", "stages:"]
    if checkout:
        read = ["decide", "distill", "evaluate", "gate", "student", "teacher"]  # they name methods and files
        deps = [*PACKAGES, *plugins]
        stage = {"cmd": f"gkd sources --out {SOURCES}", "deps": deps, "params": read, "outs": [SOURCES]}
        lines += _block(SOURCES, stage)
    for step in STEPS:
        lines += _block(step.name, _stage(step, checkout, beside.get(step.name, [])))
    folders = [step.dvclive for step in STEPS if step.dvclive]
    metrics = ["metrics:", *(f"  - {folder}/{METRICS}" for folder in folders), ""]
    curves = [f"  - {folder}/{CURVES}: {{x: step}}" for folder in folders]
    return "\n".join([*lines, *metrics, PLOTS.rstrip("\n"), *curves, ""])


def _stage(step: Step, checkout: bool, beside: list[str]) -> dict[str, Any]:
    given = [f"--{folder} {folder}" for folder in step.inputs]
    code = [f"{SOURCES}/{step.name}.json"] if checkout else []
    deps = [path for folder in step.inputs for path in _paths(MAKER[folder])]
    curves = [f"--dvclive {step.dvclive}"] if step.dvclive else []
    stage: dict[str, Any] = {"cmd": " ".join([step.line, *given, f"--out {step.output}", *curves])}
    if deps := sorted([*code, *deps, *beside]):
        stage["deps"] = deps
    stage["params"] = list(step.sections)
    outs = [path for path in _paths(step) if _kind(step, path) == "out" and not step.in_git]
    for_git = [path for path in _paths(step) if _kind(step, path) == "plot" or step.in_git]
    outs += [step.dvclive] if step.dvclive else []
    stage["outs"] = [*outs, *({path: {"cache": False}} for path in for_git)]
    if metrics := [path for path in _paths(step) if _kind(step, path) == "metric"]:
        stage["metrics"] = [{path: {"cache": False}} for path in metrics]
    return stage


def _paths(step: Step) -> list[str]:
    return [f"{step.output}/{part}" for part in step.parts] or [step.output]


def _kind(step: Step, path: str) -> str:
    return step.parts.get(path.removeprefix(f"{step.output}/"), "out")


def _block(name: str, stage: dict[str, Any]) -> list[str]:
    text = dump_yaml({name: stage}, width=118, default_flow_style=None)
    return [*(f"  {line}" for line in text.splitlines()), ""]


if __name__ == "__main__":
    watched = plugins_in(ROOT, load_params(ROOT / "params.yaml"))
    write_bytes(ROOT / "dvc.yaml", dvc_yaml(plugins=watched).encode())
