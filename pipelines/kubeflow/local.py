"""The Kubeflow pipeline on this machine: its tasks as processes, or as containers.

Kubeflow's local runner knows no more of a task than whether it failed, puts artifacts into folders named by the
second, and talks on stdout. So the tasks report to a folder (`pipelines/kubeflow/task.py`), the artifacts are handed
over under the names `dvc repro` gives them, and everything said goes to a log, the steps' own words to stderr too.
"""

import contextlib
import io
import json
import os
import re
import shlex
import shutil
import signal
import sys
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from google.protobuf.json_format import MessageToDict

from components.graph import STEPS
from components.image import image
from components.mlflow_store import follows
from components.places import refuse_missing
from gkd_core.config import read_sections
from gkd_core.errors import GkdError, unknown
from gkd_core.files import folder_digest, refuse_to_replace, whole_folder
from pipelines.kubeflow.checks import refuse_arguments, refuse_no_image, resolve, without_null
from pipelines.kubeflow.compile import create_pipeline
from pipelines.kubeflow.task import BEGIN, END, TRACKING

RUNNERS = ("subprocess", "docker")
FOLDERS = {
    "distillation": {step.name: step.output for step in STEPS},
    "sweep": {"prepare": "data", "compare": "comparison"},
    "search": {"prepare": "data", "search-report": "search"},
}
LOG = "pipeline.log"
POLL_SECONDS = 0.1
STOP_SECONDS = 60  # for tasks to write their checkpoints and end; processes that have not go on, containers are killed


class StepFailed(GkdError):
    """A step's own sentence, and the exit code it would have had by itself."""

    def __init__(self, sentence: str, exit_code: int = 2) -> None:
        super().__init__(sentence)
        self.exit_code = exit_code


def run_pipeline(
    *,
    runner: str,
    params: Path,
    overrides: list[str] | None = None,
    out: Path,
    which: str = "distillation",
    arguments: dict[str, Any] | None = None,
    user: str | None = None,
    parallelism: int | None = None,
) -> dict[str, Any]:
    """Run a pipeline here and leave its artifacts in `out`, under the names that `dvc repro` gives them.

    Args:
        runner: `subprocess` (no Docker; this environment) or `docker` (the image of GKD_IMAGE or of this version).
        params: params.yaml.
        overrides: `section.key=value`.
        out: folder for the artifacts, `work/` with the checkpoints, and the log.
        which: the pipeline.
        arguments: further arguments of the pipeline, such as dvc_repo.
        user: UID:GID that containers run as; None is whoever runs this.
        parallelism: trainings of a sweep at a time; None is its own number.
    Returns:
        {"runner", "out", "log", "artifacts": {folder: digest}}.
    Raises:
        GkdError: something given is wrong, or a step failed: then with its sentence and exit code. What was finished
            before is in `out`.
    """
    if runner not in RUNNERS:
        raise GkdError(unknown("--runner", runner, RUNNERS))
    if user is not None and runner != "docker":
        raise GkdError("--user says who runs in containers, and --runner subprocess starts none: leave it out")
    refuse_no_image(image())
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise GkdError(f"--out {out} is a {'link' if out.is_symlink() else 'file'}: name a folder")
    if Path.cwd().is_relative_to(out.resolve()) or (out / "dvc.yaml").exists():
        raise GkdError(f"--out {out} is a project, whose data, teacher, … this run would replace: name a folder inside")
    given = dict(arguments or {})
    content = read_sections(params)
    found = resolve(content, overrides or [], data_source=given.get("data_source", ""), mlflow=given.get("mlflow", ""))
    pipeline = create_pipeline(which, {}, [], None, parallelism)
    refuse_arguments(MessageToDict(pipeline.pipeline_spec)["root"]["inputDefinitions"]["parameters"], given)
    if which == "distillation":  # what others train has settings of its own, at which their first task looks
        refuse_missing(found)
    folders = FOLDERS[which]
    for name in folders.values():
        refuse_to_replace(out / name, kind=name)
    root, work = (out / f".kubeflow-{uuid.uuid4().hex}").resolve(), (out / "work").resolve()
    tasks = root / "tasks"
    surroundings = {"GKD_TASKS": str(tasks), "GKD_WORK": str(work)}
    # Containers know the tracking server by another address, which is in MLFLOW_TRACKING_URI.
    seen = found.tracking.model_copy(update={"uri": None}) if runner == "docker" else found.tracking
    tracking = seen.model_copy(update={"live": follows(found.tracking)})
    surroundings[TRACKING] = tracking.model_dump_json()
    more = list(overrides or [])
    stop: Callable[[], None]
    if runner == "docker":
        from pipelines.kubeflow.containers import Containers

        containers = Containers(found, given, root, work, surroundings, user)
        chosen, more = containers.runner(), [*more, *containers.overrides]
        stop = partial(containers.stop, STOP_SECONDS)
        given |= containers.arguments
    else:
        from kfp.local import SubprocessRunner

        chosen, stop = SubprocessRunner(use_venv=False), _stopper(tasks)
    given |= {"params": without_null(content), "overrides": more}
    for place in (work, tasks):
        place.mkdir(parents=True, exist_ok=True)
    if user is not None:  # whoever that is writes here
        for place in (root, tasks, work):
            place.chmod(0o777)
    made: list[str] = []
    try:
        try:
            with (out / LOG).open("w", encoding="utf-8") as log, _environment(surroundings), _stopping(stop):
                failure = _run(pipeline, given, chosen, root, _Screen(log, sys.stderr))
        finally:
            made += _hand_over(root, out, folders)
        _raise_failure(tasks, failure, out, [name for name in folders.values() if name not in made])
    finally:
        shutil.rmtree(root, ignore_errors=True)
    artifacts = {name: folder_digest(out / name) for name in folders.values()}
    return {"runner": runner, "out": str(out), "log": str(out / LOG), "artifacts": artifacts}


def _run(pipeline: Any, arguments: dict[str, Any], runner: Any, root: Path, screen: "_Screen") -> Exception | None:
    """Let kfp run it; what it raises says little, so it is returned for when nothing better is known."""
    from kfp import local

    local.init(runner, pipeline_root=str(root / "artifacts"), workspace_root=str(root / "workspace"))
    for name in ("workspace", "artifacts"):  # kfp mounts them into containers, and removes the first
        (root / name).mkdir()
        (root / name).chmod(root.stat().st_mode & 0o777)
    with warnings.catch_warnings(), contextlib.redirect_stdout(screen), _quoted_python():
        warnings.simplefilter("ignore")  # of images without "python" in the name
        try:
            pipeline(**arguments)
        except Exception as error:  # kfp raises RuntimeError for a failed task, docker its own kinds for a refused one
            print(f"{type(error).__name__}: {error}")
            return error
        finally:
            screen.flush()
    return None


def _hand_over(root: Path, out: Path, folders: dict[str, str]) -> list[str]:
    """Move the finished artifacts to where the user looks for them; their names."""
    made = []
    for task, name in folders.items():
        found = sorted((root / "artifacts").glob(f"**/{task}/{name}"))
        if found and found[0].is_dir():
            with whole_folder(out / name, kind=name) as building:
                building.rmdir()
                found[0].rename(building)
            made.append(name)
    return made


def _raise_failure(tasks: Path, failure: Exception | None, out: Path, missing: list[str]) -> None:
    """Raises: GkdError: a step failed, in its own words as far as it could say them."""
    states = sorted(tasks.glob("*.json"), key=lambda file: file.stat().st_mtime_ns)
    for state in (json.loads(file.read_text(encoding="utf-8")) for file in states):
        step = state["step"]
        if state["state"] == "failed":
            where = "" if state.get("expected", True) else f" (the traceback is in {out / LOG})"
            raise StepFailed(f"{step}: {state['sentence']}{where}", state["exit_code"])
        if state["state"] == "running":
            raise StepFailed(
                f"{step} was killed, for want of memory perhaps: see {out / LOG}; started again, a training goes on "
                "from its last checkpoint"
            )
    if failure is not None:
        reason = str(failure).splitlines()[0] if str(failure) else type(failure).__name__
        raise StepFailed(f"the pipeline failed before a step could say why ({_plain(reason)}): see {out / LOG}")
    if missing:
        raise StepFailed(f"the pipeline ended without {', '.join(missing)}: see {out / LOG}")


class _Screen(io.TextIOBase):
    """Takes what kfp prints: all of it to the log, what the steps say to the screen."""

    def __init__(self, log: TextIO, screen: TextIO) -> None:
        self._log, self._screen = log, screen
        # The tasks of a ParallelFor print from threads; and a signal that comes while a line is taken speaks here too.
        self._lock = threading.RLock()
        self._line = ""
        self._depth = 0

    def write(self, text: str) -> int:
        with self._lock:
            *lines, self._line = (self._line + text).split("\n")
            for line in lines:
                self._take(_plain(line))
        return len(text)

    def flush(self) -> None:
        self._log.flush()

    def _take(self, line: str) -> None:
        self._log.write(line + "\n")
        said = line.strip()
        if said.startswith(BEGIN):
            self._depth += 1
            self._say(f"{said.removeprefix(BEGIN).strip()} …")
        elif said.startswith(END):
            self._depth -= 1
        elif self._depth > 0 and said and not said.startswith(("gkd: ", "[KFP ")):
            self._say(f"  {said}")

    def _say(self, line: str) -> None:
        self._screen.write(line + "\n")  # not print: kfp replaces it by one that indents, on this very stream
        self._screen.flush()


def _plain(text: str) -> str:
    """Without colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


@contextlib.contextmanager
def _environment(settings: dict[str, str]) -> Iterator[None]:
    before = {key: os.environ.get(key) for key in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


@contextlib.contextmanager
def _quoted_python() -> Iterator[None]:
    """kfp puts the interpreter's path into a shell command as it is: one with a space in it must be quoted."""
    python, sys.executable = sys.executable, shlex.quote(sys.executable)
    try:
        yield
    finally:
        sys.executable = python


@contextlib.contextmanager
def _stopping(stop: Callable[[], None]) -> Iterator[None]:
    """On a signal stop the tasks first: kfp waits for them, hours if need be. Another one does not wait for that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, frame: Any) -> None:
        for each, handler in before.items():
            signal.signal(each, handler)
        stop()
        handler = before[signal.Signals(number)]
        if callable(handler):
            handler(number, frame)
        raise SystemExit(128 + number)

    for number in before:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stopper(tasks: Path) -> Callable[[], None]:
    """A function that ends the processes of the tasks that are running; a training writes its checkpoint first."""

    def running() -> list[int]:
        states = [json.loads(file.read_text(encoding="utf-8")) for file in tasks.glob("*.json")]
        return [state["pid"] for state in states if state["state"] == "running"]

    def stop() -> None:
        for pid in running():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        end = time.monotonic() + STOP_SECONDS
        while any(map(_alive, running())) and time.monotonic() < end:
            time.sleep(POLL_SECONDS)

    return stop


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
