"""What the command line costs before it does anything: `gkd --help`, and `dvc repro` where nothing has changed.

The pipeline is the repository's own, of the last commit, in a clone of its own. It has run once, with digits and one
epoch of everything, which takes most of this question's time and is not measured.
"""

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import yaml

from benchmarks.table import ROOT, Row, Table
from benchmarks.timing import in_turns, milliseconds, ratio

ROUNDS = 7
TINY = {
    "data": {"train_images": 200},
    "teacher": {"train": {"epochs": 1}},
    "train": {"epochs": 1},
    "export": {"int8": {"enabled": False}},
}
"""Over params.yaml: as little work as the nine stages can have."""
NOTHING, HELP = "`python -c pass`", "`gkd --help`"
EMPTY, REPRO, STATUS = "`dvc repro`, one stage without files", "`dvc repro`, our stages", "`dvc status`, our stages"
BIN = Path(sys.executable).parent
Command = Callable[[], None]


def environment() -> dict[str, str]:
    """This interpreter's programs, a tracking store in the clone, nothing sent anywhere."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    path = f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}"
    return kept | {"PATH": path, "DVC_NO_ANALYTICS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}


def run(folder: Path, *command: str) -> None:
    """Raises: RuntimeError with what it said last, where it failed."""
    said = subprocess.run(
        command, cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if said.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {said.returncode}: {said.stdout[-2000:]}")


def overlaid(base: dict[str, object], changes: dict[str, object]) -> dict[str, object]:
    """The changes in place of what stands there, section by section."""
    result = dict(base)
    for key, value in changes.items():
        below = result.get(key)
        nested = isinstance(value, dict)
        result[key] = overlaid(below if isinstance(below, dict) else {}, value) if nested else value  # type: ignore[arg-type]
    return result


def pipeline(folder: Path) -> Path:
    """A clone in which `dvc repro` has run."""
    run(ROOT, "git", "clone", "--quiet", str(ROOT), str(folder))
    params = folder / "params.yaml"
    params.write_text(yaml.safe_dump(overlaid(yaml.safe_load(params.read_text()), TINY)))
    run(folder, "dvc", "repro", "--quiet")
    return folder


def empty(folder: Path) -> Path:
    """A DVC project of one stage that has no files, and has run."""
    folder.mkdir()
    run(folder, "dvc", "init", "--quiet", "--no-scm")
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"nothing": {"cmd": "true"}}}))
    run(folder, "dvc", "repro", "--quiet")
    return folder


def cpu_seconds() -> float:
    """Of all processes that this one has waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def compared(commands: dict[str, Command], reference: str, rounds: int) -> list[Row]:
    clocks: dict[str, list[float]] = {name: [] for name in commands}

    def timed(name: str) -> Command:
        def once() -> None:
            start = time.perf_counter()
            commands[name]()
            clocks[name].append(time.perf_counter() - start)

        return once

    seconds = in_turns({name: timed(name) for name in commands}, rounds, clock=cpu_seconds)
    rows = []
    for name, found in seconds.items():
        cells = (name, milliseconds(clocks[name][-rounds:]), milliseconds(found), reference)
        rows.append(Row(cells, ratio(found, seconds[reference])))
    return rows


def measure(rounds: int = ROUNDS) -> Table:
    with tempfile.TemporaryDirectory(prefix="gkd-bench-") as name:
        folder = Path(name)
        started = {
            NOTHING: lambda: run(folder, sys.executable, "-c", "pass"),
            HELP: lambda: run(folder, str(BIN / "gkd"), "--help"),
        }
        rows = compared(started, NOTHING, rounds)
        if shutil.which("git") and (ROOT / ".git").exists():
            ours, other = pipeline(folder / "gkd"), empty(folder / "empty")
            done = {
                EMPTY: lambda: run(other, "dvc", "repro", "--quiet"),
                STATUS: lambda: run(ours, "dvc", "status", "--quiet"),
                REPRO: lambda: run(ours, "dvc", "repro", "--quiet"),
            }
            rows += compared(done, EMPTY, rounds)
        else:
            rows.append(Row((REPRO, "not measured: this is no git checkout, so it cannot be cloned", "", "")))
    return Table(
        f"Commands that have nothing to do, each a process of its own; {rounds} turns.",
        ("command", "ms by the clock", "ms of CPU", "beside"),
        "CPU ÷ that",
        rows,
    )
