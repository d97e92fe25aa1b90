"""What surrounds a step inside a task: its parameters, a place for checkpoints, and one sentence when it fails."""

import contextlib
import json
import os
import re
import signal
import sys
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from components.graph import STEP
from gkd_core.config import Params, params_of_sections
from gkd_core.errors import GkdError
from gkd_core.files import write_bytes
from gkd_core.training.interruption import ending_in_good_order
from pipelines.kubeflow.checks import refuse_source

BEGIN, END = "gkd: begins:", "gkd: ends:"  # what a step says stands between them; the rest is Kubeflow's own
RUN_LABEL = "pipeline/runid"  # which Kubeflow Pipelines puts on the pods of a run
TRIAL, WORKER = "run-trial", "search-worker"  # a sweep's training of one student, one of a search's pods
IN_LOOPS = (TRIAL, WORKER)  # several tasks of the name; each says which it is when it begins
# Variable with the section `tracking` as JSON, of trainings, which are logged while they run (see `variables.py`).
TRACKING = "GKD_TRACKING"
TERMINATION_LOG = Path("/dev/termination-log")  # Kubernetes shows what stands there as the reason of a failed pod
TERMINATED = 128 + signal.SIGTERM
STOPPED = (
    "stopped by SIGTERM: its pod was deleted, drained or preempted, or its time was over; a training that is tried "
    "again goes on from its checkpoint"
)


@dataclass(frozen=True)
class Task:
    """What a step is given.

    Attributes:
        step: its name.
        settings: the sections of the parameters the step reads, as JSON.
        params: the same, read; the other sections have their defaults.
        work: for checkpoints. Where GKD_WORK names a volume, a task that is started again goes on from there.
        scratch: an empty folder that is gone afterwards.
    """

    step: str
    settings: str
    params: Params
    work: Path
    scratch: Path

    def run(self, *, out: str | Path, **folders: str | Path) -> None:
        """Run the step here.

        Args:
            out: folder to write.
            folders: its inputs by name.
        """
        places = {name: Path(folder) for name, folder in folders.items()}
        STEP[self.step].run(out=Path(out), work=self.work, params=self.params, **places)


def from_dvc(task: Task, repo: str, path: str, rev: str) -> tuple[Task, dict[str, Any]]:
    """The prepare task, with `data.root` at what was fetched from a DVC repository; and what is known of it.

    Args:
        repo: Git repository, or empty for none.
        path: in it, a file or folder that DVC tracks.
        rev: tag, branch or commit, or empty for the newest.
    Returns:
        The task, and {} or {"repo", "path", "rev" (the commit), "md5", "asked"}, without credentials.
    Raises:
        GkdError: as `refuse_source`, or it cannot be fetched.
    """
    refuse_source(task.params, repo, path, rev)
    if not repo:
        return task, {}
    from components.dvc_source import fetch
    from gkd_core.config.schema import FILES
    from gkd_core.data.sources import files_of

    root = task.scratch / "source"
    # A list alone, whose images are addresses, is no archive.
    packed = task.params.data.source in FILES and files_of(path) != "list"
    found = fetch(repo, path, rev or None, root, unpack=packed)
    data = task.params.data.model_copy(update={"root": str(root)})
    return replace(task, params=task.params.model_copy(update={"data": data})), found | {"asked": rev or "the newest"}


@contextlib.contextmanager
def running(step: str, settings: str = "{}", *, label: str = "") -> Iterator[Task]:
    """Surround a step.

    A failure the user can fix ends the process with one sentence and the exit code the command line would give; what
    nobody expected keeps its traceback. SIGTERM ends it with code 143, which is a failed container's, so never done;
    nothing half-written is left, and a training first writes the checkpoint of its step. Where GKD_TASKS names a
    folder, the state is kept there as JSON, for whoever started the pipeline here: Kubeflow's local runner knows no
    more than that a task failed.

    Args:
        step: its name in the pipeline.
        settings: sections of the parameters as JSON, from the `settings` task. JSON as text, since Kubeflow's own
            numbers are all floats and its local runner knows no null.
        label: which of the tasks of this name it is, where there are several; it is said with the name.
    """
    sys.argv = ["kubeflow", step]  # what run.json calls the command; Kubeflow's own has all arguments in it, as JSON
    record = _record(step)
    record(state="running", pid=os.getpid())
    print(f"{BEGIN} {step}{': ' * bool(label)}{label}", file=sys.stderr, flush=True)
    try:
        with ending_in_good_order(), tempfile.TemporaryDirectory(prefix="gkd-") as name:
            scratch = Path(name)
            volume, sections = os.environ.get("GKD_WORK"), json.loads(settings)
            if "tracking" not in sections and (tracking := os.environ.get(TRACKING)):
                sections["tracking"] = json.loads(tracking)
            params = params_of_sections(sections)
            if not volume:
                params = _without_teacher_cache(params)
            yield Task(step, settings, params, Path(volume or scratch / "work"), scratch)
    except GkdError as error:
        _fail(step, str(error), error.exit_code, record)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _fail(step, f"{where}{error.strerror or error}: {_way_out(error)} and run the pipeline again", 2, record)
    except BaseException as error:
        if isinstance(error, SystemExit) and error.code == TERMINATED:
            _fail(step, STOPPED, TERMINATED, record)
        record(state="failed", sentence=f"{type(error).__name__}: {error}".splitlines()[0], exit_code=2, expected=False)
        raise
    else:
        record(state="done")
    finally:
        print(f"{END} {step}", file=sys.stderr, flush=True)


def not_mounted(path: Path) -> bool:
    """Whether a place is on a volume that this task's pod does not have: a cluster's tasks share no other places, and
    `work` is mounted where something is trained alone. Away from a cluster nothing is.
    """
    in_pod = "KUBERNETES_SERVICE_HOST" in os.environ
    return in_pod and not any(os.path.ismount(parent) for parent in path.absolute().parents[:-1])


def _without_teacher_cache(params: Params) -> Params:
    """What no other task will read would only fill the node's own disk."""
    off = {"teacher_cache": False}
    teacher = params.teacher.model_copy(update={"train": params.teacher.train.model_copy(update=off)})
    return params.model_copy(update={"train": params.train.model_copy(update=off), "teacher": teacher})


def _way_out(error: OSError) -> str:
    """What to do about it; a fresh volume that belongs to root has a paragraph of its own."""
    volume = os.environ.get("GKD_WORK")
    if isinstance(error, PermissionError) and volume and str(error.filename or "").startswith(volume):
        return "open the volume as docs/kubernetes.md says ('A fresh volume may belong to root')"
    return "fix that"


def own_sentence(lines: Sequence[str]) -> str | None:
    """The last sentence of ours in what a step printed: why it gave up, as `running` has it.

    >>> own_sentence(["gkd: begins: kd", "epoch 1", "gkd: the teacher has 100 classes", "gkd: ends: kd"])
    'the teacher has 100 classes'
    """
    said = [line.partition("gkd: ")[2] for line in lines if re.match(r"\s*gkd: (?!begins:|ends:)", line)]
    return said[-1] if said else None


def _record(step: str) -> Any:
    """A function that keeps facts about this task in GKD_TASKS, if there is such a folder."""
    folder = os.environ.get("GKD_TASKS")
    file = Path(folder) / f"{step}-{uuid.uuid4().hex}.json" if folder else None
    facts: dict[str, Any] = {"step": step}

    def record(**more: Any) -> None:
        facts.update(more)
        if file is not None:
            write_bytes(file, json.dumps(facts).encode())

    return record


def _fail(step: str, sentence: str, exit_code: int, record: Any) -> None:
    record(state="failed", sentence=sentence, exit_code=exit_code)
    print(f"gkd: {sentence}", file=sys.stderr, flush=True)
    if "KUBERNETES_SERVICE_HOST" in os.environ:
        with contextlib.suppress(OSError):
            TERMINATION_LOG.write_text(f"{step}: {sentence}"[:4096], encoding="utf-8")
    raise SystemExit(exit_code)
