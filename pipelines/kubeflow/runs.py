"""Runs on a Kubeflow Pipelines server: submit, wait, look. kfp's client does the asking."""

import json
import re
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from gkd_core.errors import GkdError, unknown
from gkd_core.files import file_digest
from pipelines.kubeflow.client import Cluster, ClusterError
from pipelines.kubeflow.package import Work, as_sent

FINISHED = frozenset({"SUCCEEDED", "FAILED", "CANCELED", "SKIPPED"})
PAGE = 100
# Nodes of the workflow that stand for no task of the pipeline: their machinery, attempts, and groups of tasks.
_NO_TASK = re.compile(r"root|executor|.*-(driver|executor)|.*\(\d+\)|(exit-handler|for-loop|condition(-branches)?)-\d+")


class RunFailed(GkdError):
    """The run was waited for and did not succeed."""

    exit_code = 1


def submit(cluster: Cluster, work: Work) -> dict[str, Any]:
    """Start a run.

    Args:
        work: as `package.check` gives it.
    Returns:
        Its facts, as `describe` gives them.
    Raises:
        ClusterError: the server refuses.
    """
    with as_sent(work) as sent, cluster.asking() as client:
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
    while True:
        with cluster.asking() as client:
            run = client.get_run(run_id)
        facts = describe(cluster, run)
        states = {"run": facts["state"]} | {task["name"]: task["state"] for task in facts["tasks"]}
        for name, state in states.items():
            if seen.get(name) != state:
                progress(f"{name}: {state.lower()}")
        seen = states
        if facts["state"] in FINISHED:
            return facts
        if time.monotonic() + poll_seconds > give_up:
            raise GkdError(
                f"run {run_id} is still {facts['state'].lower()} after {timeout_seconds:g} seconds and goes on without "
                f"us: look at it with `gkd pipeline status {run_id}`, or wait longer with --timeout"
            )
        time.sleep(poll_seconds)


def failure(facts: dict[str, Any]) -> str | None:
    """Why a finished run did not succeed, in one sentence; None if it did."""
    if facts["state"] in ("SUCCEEDED", "SKIPPED"):
        return None
    failed = [task for task in facts["tasks"] if task["state"] == "FAILED"]
    said = [task["name"] + (f" ({task['error']})" if task["error"] else "") for task in failed]
    which = f"in {', '.join(said)}" if said else f"({facts['error'] or 'no task says why'})"
    verb = "was cancelled" if facts["state"] == "CANCELED" else f"failed {which}"
    return f"run {facts['run_id']} {verb}: its tasks' logs are at {facts['link']}"


def runs(cluster: Cluster, *, experiment: str | None = None, limit: int = 20) -> list[dict[str, Any]]:
    """The newest runs first.

    Raises:
        GkdError: no experiment has this name.
    """
    identifier = None if experiment is None else known_experiment_id(cluster, experiment)
    found = pages(cluster, "list_runs", "runs", limit, sort_by="created_at desc", experiment_id=identifier)
    return [describe(cluster, run) for run in found]


def describe(cluster: Cluster, run: Any) -> dict[str, Any]:
    """A run's facts: run_id, name, state, error, times, link, and its tasks with state and error.

    The server tells of a workflow's nodes; those that are the pipeline's tasks are told here, in the order in which
    they began, and numbered where a loop has several of a name. Servers up to 2.17 leave a task's `error` empty
    (kubeflow/pipelines issue 14007): its log has it.
    """
    details = (run.run_details.task_details if run.run_details else None) or []
    workflow = re.compile(re.escape(_pipeline_name(run)) + r"-\w{5}")
    tasks: list[dict[str, Any]] = []
    count: Counter[str] = Counter()
    for detail in sorted(details, key=lambda d: (d.create_time is not None, d.create_time)):
        name = detail.display_name or ""
        if not name or _NO_TASK.fullmatch(name) or workflow.fullmatch(name):
            continue
        count[name] += 1
        label = name if count[name] == 1 else f"{name} #{count[name]}"
        error = " ".join((detail.error.message or "").split()) if detail.error else ""
        tasks.append({"name": label, "state": detail.state or "PENDING", "error": error or None})
    return {
        "run_id": run.run_id,
        "name": run.display_name,
        "state": run.state or "PENDING",
        "error": " ".join(run.error.message.split()) if run.error and run.error.message else None,
        "experiment_id": run.experiment_id,
        "created_at": moment(run.created_at),
        "finished_at": moment(run.finished_at) if run.state in FINISHED else None,
        "link": cluster.link("runs", run.run_id),
        "tasks": tasks,
    }


def _pipeline_name(run: Any) -> str:
    """As the workflow is called, but for five letters at its end; empty where the server does not tell."""
    spec = run.pipeline_spec if isinstance(run.pipeline_spec, dict) else {}
    return str(spec.get("pipeline_spec", spec).get("pipelineInfo", {}).get("name", ""))


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
    raise GkdError(unknown("experiment", name, [e.display_name for e in others] or ["none"]))


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
