"""What the tasks of a run print, read through the Kubeflow Pipelines server, and what a failed one said last.

The server tells of a workflow's nodes. A task's container is a node called `executor`, whose children are its tries; it
does not say whose container it is. The task does, in its first line (`task.running`): so a log is told by reading it.
"""

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from gkd_core.errors import GkdError, unknown
from pipelines.kubeflow.client import Cluster, ClusterError
from pipelines.kubeflow.profile import TRAINING
from pipelines.kubeflow.task import BEGIN, END, IN_LOOPS, STOPPED, TERMINATED, own_sentence

EXECUTOR = "executor"
# Argo's templates of a container, with a retry and without; they are a part of the pod's name.
TEMPLATES = ("retry-system-container-impl", "system-container-impl")
# What the launcher (glog), Argo and kfp's executor say between a step's lines.
_FOREIGN = re.compile(r"[IWEF]\d{4} \d\d:\d\d:\d\d|time=\S+ level=|\[KFP ")
_EXIT = re.compile(r"exit (?:status|code) (\d+)|signal: (killed|terminated)")
_SIGNALS = {"killed": 137, "terminated": 143}
_LABEL = re.compile(r", seed \d+$|^worker \d+$")  # of a task that may not have said it yet
_TRACEBACK = "Traceback (most recent call last):"


@dataclass(frozen=True)
class Log:
    """What one try of a task printed.

    Attributes:
        lines: without Kubeflow's own.
        step: whose it is; None when it never got so far as to say it.
        label: which of the tasks of this name, such as a sweep's training; empty where there is one.
        over: the step came to its end, with a result or an error; a container that was killed did not.
        exit_code: as the launcher tells it; None where it does not.
    """

    lines: tuple[str, ...]
    step: str | None = None
    label: str = ""
    over: bool = False
    exit_code: int | None = None


def parse(text: str) -> Log:
    """A pod's log, as the server gives it.

    >>> log = parse("I1128 09:00:00.1 1 launcher.go:1] x\\ngkd: begins: kd\\nepoch 1\\ngkd: no room\\ngkd: ends: kd\\n")
    >>> log.step, log.lines, log.over
    ('kd', ('epoch 1', 'gkd: no room'), True)
    """
    lines: list[str] = []
    step, label, over, code = None, "", False, None
    for line in text.splitlines():
        plain = line.strip()
        if _FOREIGN.match(plain):
            if found := _EXIT.search(plain):
                code = int(found[1]) if found[1] else _SIGNALS[found[2]]
        elif plain.startswith(BEGIN):
            said = plain.removeprefix(BEGIN).strip()
            if step is None:  # one that waits for a TrainJob repeats what the job says, which begins once more
                step, _, label = said.partition(": ")
            over = False
        elif plain.startswith(END):
            over = True
        else:
            lines.append(line)
    return Log(tuple(lines), step, label, over, code)


def last_words(log: Log, *, limit: str = "", kind: str = "light") -> str | None:
    """Why a failed task failed, in its own sentence, or what ended its container; None when nothing says it.

    Args:
        limit: memory limit of its container, such as 4Gi; empty for none that is known.
        kind: section of the profile that has it.
    """
    begin = max((n for n, line in enumerate(log.lines) if line.strip() == _TRACEBACK), default=None)
    own = own_sentence(log.lines if begin is None else log.lines[:begin])
    stopped = begin is None and own == STOPPED  # what is known here of the profile says more
    if begin is None and own and not stopped and (log.over or log.exit_code in (1, 2)):
        return own.removesuffix("; its last lines:")
    if begin is not None and (log.over or log.step is None):
        return next((line.strip() for line in reversed(log.lines) if line.strip()), None)
    match TERMINATED if stopped else log.exit_code:
        case 137:
            shown = f", limit {limit}" if limit else ""
            return f"ran out of memory (exit 137{shown}): raise {kind}.memory_limit in the profile"
        case 143:
            return (
                "was stopped from outside (exit 143): its pod was deleted, drained or preempted, or it ran longer than "
                f"{kind}.timeout_seconds of the profile"
            )
        case None:
            return None if log.over else "ended without a word, as a container does that is killed"
    return f"ended with exit code {log.exit_code}"


@dataclass(frozen=True)
class Container:
    """A node that stands for a task's container.

    Attributes:
        state: as the server has it.
        start: when it began.
        pods: its tries, oldest first.
        templates: that it may have been made of.
    """

    state: str
    start: datetime
    pods: tuple[str, ...]
    templates: tuple[str, ...] = TEMPLATES


def templates(platform: dict[str, Any]) -> tuple[str, ...]:
    """What the templates of a run's containers are called: with labels or annotations their numbers come before.

    Args:
        platform: `platform_spec` of the run.

    >>> pods = {"exec-kd": {"podMetadata": {"labels": {"team": "a"}}}}
    >>> templates({"platforms": {"kubernetes": {"deploymentSpec": {"executors": pods}}}})[:1]
    ('metadata-0-1-retry-system-container-impl',)
    """
    kubernetes = platform.get("platforms", {}).get("kubernetes", {})
    found = [pod.get("podMetadata") for pod in kubernetes.get("deploymentSpec", {}).get("executors", {}).values()]
    numbers = {(len(own.get("annotations", {})), len(own.get("labels", {}))) for own in found if own}
    prefixes = [f"metadata-{annotations}-{labels}-" for annotations, labels in sorted(numbers)]
    return tuple(f"{prefix}{name}" for prefix in (*prefixes, "") for name in TEMPLATES)


def containers(
    details: list[Any], is_task: Callable[[str], bool], platform: dict[str, Any] | None = None
) -> list[Container]:
    """The containers of a run that have begun, in this order.

    Args:
        details: `run_details.task_details`.
        is_task: whether a node of this name is a task; where there are no retries, its child is the pod.
        platform: `platform_spec` of the run, where the server tells it.
    """
    found = [detail for detail in details if detail.display_name == EXECUTOR and detail.child_tasks]
    found = found or [detail for detail in details if is_task(detail.display_name or "") and detail.child_tasks]
    made, names = [], templates(platform or {})
    for detail in found:
        if (start := began(detail)) is not None:
            pods = tuple(str(child.pod_name) for child in detail.child_tasks if child.pod_name)
            if pods:
                made.append(Container(detail.state or "PENDING", start, pods, names))
    return sorted(made, key=lambda container: (container.start, container.pods))


def began(detail: Any) -> datetime | None:
    """When a node began; None before. `create_time` is the whole workflow's on servers up to 2.17."""
    moment: datetime | None = detail.start_time or detail.create_time
    return moment if moment is not None and moment.year > 1970 else None


class Logs:
    """The logs of one run. That of a container which has ended is read once.

    Args:
        cluster: where the run is.
        run_id: of the run.
    """

    def __init__(self, cluster: Cluster, run_id: str) -> None:
        self._cluster, self._run_id = cluster, run_id
        self._ended: dict[str, Log] = {}

    def of(self, container: Container, pod: str) -> Log | None:
        """What a try printed, as far as it is; None where the server has nothing of it.

        Raises:
            ClusterError: the server does not allow it, or cannot be asked.
        """
        if pod in self._ended:
            return self._ended[pod]
        running = container.state == "RUNNING"
        workflow, _, number = pod.rpartition("-")
        names = [f"{workflow}-{template}-{number}" for template in container.templates]
        for name in [*names, pod] if running else [pod, *names]:
            if (text := self._cluster.log(self._run_id, name)) is not None:
                log = parse(text)
                if not running or pod != container.pods[-1]:
                    self._ended[pod] = log
                return log
        return None

    def last(self, container: Container) -> Log | None:
        """What its last try printed; None where nothing can be read: a word of the reason is not worth an error."""
        try:
            return self.of(container, container.pods[-1])
        except ClusterError:
            return None


def memory_limit(spec: dict[str, Any], step: str) -> tuple[str, str]:
    """Memory limit of a step's container in a compiled pipeline, empty for none, and the profile's section for it."""
    name = "distill" if step in IN_LOOPS else step
    executor = spec.get("deploymentSpec", {}).get("executors", {}).get(f"exec-{step}", {}).get("container", {})
    waits = any(variable.get("name") == "GKD_IMAGE" for variable in executor.get("env", []))  # for a TrainJob
    found = executor.get("resources", {}).get("resourceMemoryLimit", "")
    return str(found), "training" if name in TRAINING and not waits else "light"


@dataclass(frozen=True)
class Part:
    """Lines that a task printed since it was looked at last.

    Attributes:
        task: its name, or what it is called among others of the name.
        attempt: which try, from 1.
        lines: new ones.
    """

    task: str
    attempt: int
    lines: tuple[str, ...]


def follow(
    look: Callable[[], tuple[list[Container], bool, list[str]]],
    logs: Logs,
    *,
    step: str | None,
    wait: bool,
    poll_seconds: float,
) -> Iterator[Part]:
    """What the tasks of a run printed, and, if asked, print until it has ended.

    Logs are read again and again rather than streamed: a stream breaks with each proxy and each new try.

    Args:
        look: gives the containers as they are now, whether the run has ended, and the names of its tasks.
        step: of this task alone (of a loop: all of that name, or one by its own words); None is all.
        wait: until the run, or the step, has ended.
    Raises:
        GkdError: there is no such task, or no log of it.
    """
    told: dict[str, int] = {}
    while True:
        found, over, names = look()
        states: list[str] = []
        for container in found:
            for attempt, pod in enumerate(container.pods, start=1):
                log = logs.of(container, pod)
                if log is None:
                    continue
                name = log.step or "a task that did not begin"
                if step not in (None, name, log.label):
                    continue
                states.append(container.state)
                if len(log.lines) > told.get(pod, 0):
                    yield Part(log.label or name, attempt, log.lines[told.get(pod, 0) :])
                    told[pod] = len(log.lines)
        known = step is None or bool(states) or step in names or _LABEL.search(step)
        if step is not None and not known and (names or over or not wait):
            raise GkdError(unknown("step", step, names))
        done = step not in (None, *IN_LOOPS) and bool(states) and "RUNNING" not in states
        if over or done or not wait:
            break
        time.sleep(poll_seconds)
    if not states:
        what = f"step {step!r}" if step else "the run"
        raise GkdError(
            f"{what} has no log that the server can read: it has not begun, it was taken from the cache, or its pods "
            "and their archived logs are gone"
        )
