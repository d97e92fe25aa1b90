"""Runs on a Kubeflow Pipelines server: submit, wait, look. kfp's client does the asking."""

import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

from components.mlflow_store import KFP_PLACE
from gkd_core.errors import GkdError, unknown
from gkd_core.files import file_digest
from pipelines.kubeflow.client import Cluster, ClusterError
from pipelines.kubeflow.logs import Container, Log, Logs, Part, began, containers, follow, last_words, memory_limit
from pipelines.kubeflow.package import Work, as_sent
from pipelines.kubeflow.task import IN_LOOPS

FINISHED = frozenset({"SUCCEEDED", "FAILED", "CANCELED", "SKIPPED"})
PAGE = 100
NEVER = datetime.max.replace(tzinfo=UTC)
# Nodes of the workflow that stand for no task of the pipeline: their machinery, attempts, and groups of tasks.
_NO_TASK = re.compile(
    r"root|executor|.*-(driver|executor)|.*\(\d+(:.*)?\)|iterations?(-item|-iterator)?|"
    r"(exit-handler|for-loop|condition(-branches)?)-\d+(-.*)?"
)
_DRIVER = re.compile(r"(?!root-).+-driver")


class RunFailed(GkdError):
    """The run was waited for and did not succeed."""

    exit_code = 1


class RunEnded(GkdError):
    """The run that was to be stopped has ended already."""


def submit(cluster: Cluster, work: Work) -> dict[str, Any]:
    """Start a run.

    Args:
        work: as `package.check` gives it.
    Returns:
        Its facts, as `describe` gives them.
    Raises:
        ClusterError: the server refuses.
    """
    with as_sent(work, cluster.link("runs", KFP_PLACE)) as sent, cluster.asking() as client:
        run = client.run_pipeline(
            experiment_id=experiment_id(cluster, work.experiment),
            job_name=work.name,
            params=work.arguments,
            service_account=work.service_account,
            **source_of(cluster, sent),
        )
    return describe(cluster, run)


def find(cluster: Cluster, name: str) -> Any:
    """The run with this identifier, else the newest with this name.

    Raises:
        GkdError: there is none.
    """
    try:
        with cluster.asking() as client:
            return client.get_run(name)
    except ClusterError as error:
        # Some versions of the server refuse what is no identifier, others do not find it.
        if error.status not in (400, 404):
            raise
    with cluster.asking() as client:
        page = client.list_runs(
            page_size=1, sort_by="created_at desc", namespace=cluster.namespace, filter=named("display_name", name)
        )
        if page.runs:
            return client.get_run(page.runs[0].run_id)
    where = f" in namespace {cluster.namespace}" if cluster.namespace else ""
    raise GkdError(f"{cluster.host} has no run {name!r}{where}: `gkd pipeline list` shows those it has")


def wait(
    cluster: Cluster,
    run_id: str,
    *,
    timeout_seconds: float,
    poll_seconds: float = 10,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Look until the run has ended.

    Not kfp's `wait_for_run_completion`: it does not know that a cancelled run has ended, and tells of no task.

    Args:
        timeout_seconds: how long at most; the run itself goes on.
        progress: told each change, one line at a time.
    Returns:
        The facts of the finished run, whatever its end.
    Raises:
        GkdError: the time is over, or the server is away for too long.
    """
    give_up = time.monotonic() + timeout_seconds
    seen: dict[str, str] = {}
    cluster.be_patient()
    logs = Logs(cluster, run_id)
    while True:
        with cluster.asking() as client:
            run = client.get_run(run_id)
        facts = describe(cluster, run, logs)
        over = facts["state"] in FINISHED
        states = {"run": facts["state"]}
        # Until a task of a loop has said which it is, there is nothing to tell of it.
        states |= {t["name"]: t["state"] for t in facts["tasks"] if over or not t["name"].startswith(IN_LOOPS)}
        for name, state in states.items():
            if seen.get(name) != state:
                progress(f"{name}: {in_words(state)}")
        seen = states
        if over:
            return facts
        if time.monotonic() + poll_seconds > give_up:
            raise GkdError(
                f"run {run_id} is still {in_words(facts['state'])} after {timeout_seconds:g} seconds and goes on "
                f"without us: look at it with `gkd pipeline status {run_id}`, or wait longer with --timeout"
            )
        time.sleep(poll_seconds)


def stop(cluster: Cluster, run_id: str) -> None:
    """End a run; what was to come after its steps (`ended`) still runs, and ends its TrainJobs.

    Raises:
        RunEnded: it has ended already.
        ClusterError: the server refuses.
    """
    with cluster.asking() as client:
        state = client.get_run(run_id).state
    if state in FINISHED:
        raise RunEnded(f"run {run_id} has ended already ({in_words(state)}): there is nothing to stop")
    with cluster.asking() as client:
        client.terminate_run(run_id)


def log_parts(cluster: Cluster, run_id: str, *, step: str | None, wait: bool, poll_seconds: float) -> Iterator[Part]:
    """What the tasks of a run printed, as `logs.follow`."""
    if wait:
        cluster.be_patient()

    def look() -> tuple[list[Container], bool, list[str]]:
        with cluster.asking() as client:
            run = client.get_run(run_id)
        details = _details(run)
        spec = _spec(run)
        known = [detail.display_name or "" for detail in details]
        for part in [spec.get("root", {}), *spec.get("components", {}).values()]:  # those that have not begun
            known += part.get("dag", {}).get("tasks", {})
        names = [name for name in dict.fromkeys(known) if _is_task(run, name)]
        return containers(details, lambda name: _is_task(run, name), _platform(run)), run.state in FINISHED, names

    return follow(look, Logs(cluster, run_id), step=step, wait=wait, poll_seconds=poll_seconds)


def failure(facts: dict[str, Any]) -> str | None:
    """Why a finished run did not succeed, in one sentence; None if it did."""
    if facts["state"] in ("SUCCEEDED", "SKIPPED"):
        return None
    failed = [task for task in facts["tasks"] if task["state"] == "FAILED"]
    said = [task["name"] + (f" ({task['error']})" if task["error"] else "") for task in failed]
    which = f"in {', '.join(said)}" if said else f"({facts['error'] or 'no task says why'})"
    verb = "was cancelled" if facts["state"] == "CANCELED" else f"failed {which}"
    return f"run {facts['run_id']} {verb}: its tasks' logs are at {facts['link']}"


def in_words(state: str) -> str:
    """A state as people write it.

    >>> in_words("NOT_RUN"), in_words("CANCELED")
    ('not run', 'cancelled')
    """
    return {"CANCELED": "cancelled", "CANCELING": "being cancelled"}.get(state) or state.lower().replace("_", " ")


def runs(cluster: Cluster, *, experiment: str | None = None, limit: int = 20) -> list[dict[str, Any]]:
    """The newest runs first.

    Raises:
        GkdError: no experiment has this name.
    """
    identifier = None if experiment is None else known_experiment_id(cluster, experiment)
    found = pages(cluster, "list_runs", "runs", limit, sort_by="created_at desc", experiment_id=identifier)
    return [describe(cluster, run) for run in found]


def describe(cluster: Cluster, run: Any, logs: Logs | None = None) -> dict[str, Any]:
    """A run's facts: run_id, name, state, error, times, link, and its tasks with state and error.

    The server tells of a workflow's nodes; those that are the pipeline's tasks are told here, in the order in which
    they began, and numbered where a loop has several of a name. A run that somebody ended is CANCELED, though servers
    up to 2.17 call it FAILED, and a task that never began is NOT_RUN when the run has ended.

    Args:
        logs: of this run, to tell a loop's tasks apart and why a task failed, which those servers leave empty
            (kubeflow/pipelines issue 14007); None asks for none.
    """
    nodes = [_Node(detail) for detail in _details(run) if _is_task(run, detail.display_name or "")]
    nodes += _failed_drivers(run, nodes)
    ended = run.state in FINISHED
    cancelled = any(status.state in ("CANCELING", "CANCELED") for status in run.state_history or [])
    state = "CANCELED" if run.state == "FAILED" and cancelled else run.state or "PENDING"
    if logs is not None:
        _read_logs(run, nodes, logs)
    tasks: list[dict[str, Any]] = []
    count: Counter[str] = Counter()
    for node in nodes:
        count[node.name] += 1
        label = node.name if count[node.name] == 1 else f"{node.name} #{count[node.name]}"
        of_task, error = node.state, node.error
        if ended and of_task in ("PENDING", "RUNTIME_STATE_UNSPECIFIED"):
            of_task = "NOT_RUN"
        by_itself = node.log is not None and node.log.over
        if state == "CANCELED" and of_task in ("FAILED", "RUNNING") and not by_itself:
            of_task, error = "CANCELED", ""
        tasks.append({"name": node.label or label, "state": of_task, "error": error or None})
    return {
        "run_id": run.run_id,
        "name": run.display_name,
        "state": state,
        "error": " ".join(run.error.message.split()) if run.error and run.error.message else None,
        "experiment_id": run.experiment_id,
        "created_at": moment(run.created_at),
        "finished_at": moment(run.finished_at) if ended else None,
        "link": cluster.link("runs", run.run_id),
        "tasks": tasks,
    }


class _Node:
    """A node of the workflow that is a task, with what its log says."""

    def __init__(self, detail: Any) -> None:
        self.name = str(detail.display_name)
        self.state = str(detail.state or "PENDING")
        self.start = began(detail)
        self.error = " ".join((detail.error.message or "").split()) if detail.error else ""
        self.log: Log | None = None
        self.label = ""


def _details(run: Any) -> list[Any]:
    """The workflow's nodes, those that began first in front, those that never did at the end."""
    details = (run.run_details.task_details if run.run_details else None) or []
    return sorted(details, key=lambda detail: began(detail) or NEVER)


def _is_task(run: Any, name: str) -> bool:
    workflow = re.escape(_pipeline_name(run)) + r"-\w{5}"
    return bool(name) and not _NO_TASK.fullmatch(name) and not re.fullmatch(workflow, name)


def _failed_drivers(run: Any, nodes: list[_Node]) -> list[_Node]:
    """Where no task failed: what failed before one could begin, such as a volume that is not there."""
    if run.state != "FAILED" or any(node.state == "FAILED" for node in nodes):
        return []
    return [_Node(d) for d in _details(run) if d.state == "FAILED" and _DRIVER.fullmatch(d.display_name or "")]


def _read_logs(run: Any, nodes: list[_Node], logs: Logs) -> None:
    """Find the logs of failed tasks, and of those that several share a name with, and take from them what they say.

    A log names its task; among several of one name it is that which began at the time nearest to its container's.
    """
    several = Counter(node.name for node in nodes)
    wanted = [node for node in nodes if node.state == "FAILED" or several[node.name] > 1 or node.name in IN_LOOPS]
    looped = any(node.state != "FAILED" for node in wanted)
    spec = _spec(run)
    for container in containers(_details(run), lambda name: _is_task(run, name), _platform(run)) if wanted else []:
        if container.state == "FAILED" or (looped and container.state in ("RUNNING", "SUCCEEDED")):
            log = logs.last(container)
            fits = [node for node in wanted if node.log is None and log is not None and log.step in (None, node.name)]
            if log is not None and log.step is None:  # it never came to say its name
                fits = [node for node in fits if node.state == container.state == "FAILED"]
            if log is None or not fits:
                continue
            node = min(fits, key=lambda one: abs(((one.start or container.start) - container.start).total_seconds()))
            node.log, node.label = log, log.label
            if several[node.name] > 1:
                node.state = container.state  # so that state and name are of the same one
            if node.state == "FAILED" and not node.error:
                limit, kind = memory_limit(spec, node.name)
                node.error = last_words(log, limit=limit, kind=kind) or ""


def _spec(run: Any) -> dict[str, Any]:
    """The compiled pipeline; empty where the server does not tell."""
    spec = run.pipeline_spec if isinstance(run.pipeline_spec, dict) else {}
    found: dict[str, Any] = spec.get("pipeline_spec", spec)
    return found


def _platform(run: Any) -> dict[str, Any]:
    """What the run asks of Kubernetes; empty where the server does not tell."""
    spec = run.pipeline_spec if isinstance(run.pipeline_spec, dict) else {}
    found: dict[str, Any] = spec.get("platform_spec") or {}
    return found


def _pipeline_name(run: Any) -> str:
    """As the workflow is called, but for five letters at its end; empty where the server does not tell."""
    return str(_spec(run).get("pipelineInfo", {}).get("name", ""))


def named(key: str, value: str) -> str:
    """A filter as the server takes it: only what has this name."""
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": key, "stringValue": value}]})


def pages(cluster: Cluster, method: str, field: str, limit: int, **options: Any) -> list[Any]:
    """What a list of kfp's client holds, page after page.

    Args:
        method: of the client.
        field: of a page.
        limit: how many at most.
    """
    found: list[Any] = []
    token: str | None = ""
    while token is not None and len(found) < limit:
        with cluster.asking() as client:
            page = getattr(client, method)(
                page_token=token, page_size=min(PAGE, limit - len(found)), namespace=cluster.namespace, **options
            )
        found += getattr(page, field) or []
        token = page.next_page_token or None
    return found


def moment(value: datetime | None) -> str | None:
    """A time as text, in UTC; None for one that was never set."""
    # An unset time comes as year 1 or 1970.
    return None if value is None or value.year <= 1970 else value.astimezone(UTC).isoformat(timespec="seconds")


def experiment_id(cluster: Cluster, name: str) -> str:
    """The identifier of the experiment of this name, which is made when it is not there."""
    with cluster.asking() as client:
        return str(client.create_experiment(name, namespace=cluster.namespace).experiment_id)


def known_experiment_id(cluster: Cluster, name: str) -> str:
    """The identifier of the experiment of this name.

    Raises:
        GkdError: there is none.
    """
    with cluster.asking() as client:
        found = client.list_experiments(filter=named("display_name", name), namespace=cluster.namespace).experiments
        if found:
            return str(found[0].experiment_id)
        others = client.list_experiments(page_size=PAGE, namespace=cluster.namespace).experiments or []
    raise GkdError(unknown("experiment", name, [e.display_name for e in others]))


def source_of(cluster: Cluster, work: Work) -> dict[str, Any]:
    """What to run, as kfp's client takes it: the file itself, or a version of the pipeline that the work names.

    The same bytes are uploaded once.
    """
    package, name = str(work.package), work.pipeline
    if name is None:
        return {"pipeline_package_path": package}
    version = f"sha256-{file_digest(work.package)[:12]}"
    with cluster.asking() as client:
        listed = client.list_pipelines(filter=named("display_name", name), namespace=cluster.namespace).pipelines
        made = listed[0] if listed else client.upload_pipeline(package, name, namespace=cluster.namespace)
        identifier = made.pipeline_id
        found = client.list_pipeline_versions(identifier, filter=named("display_name", version)).pipeline_versions
        made = found[0] if found else client.upload_pipeline_version(package, version, pipeline_id=identifier)
    return {"pipeline_id": identifier, "version_id": made.pipeline_version_id}
