"""Runs on a Kubeflow Pipelines server: submit, wait, look."""

import re
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from gkd_core.errors import GkdError
from pipelines.cluster import Cluster, ClusterError
from pipelines.cluster_answers import PAGE, experiment_id, known_experiment_id, moment, named, whole
from pipelines.cluster_work import Work, as_sent, check, source_of

FINISHED = frozenset({"SUCCEEDED", "FAILED", "CANCELED", "SKIPPED"})
PATIENCE = 10  # questions in a row that may go unanswered while a run is waited for
# Nodes of the workflow that stand for no task of the pipeline: their machinery, attempts, and groups of tasks.
_NO_TASK = re.compile(r"root|executor|.*-(driver|executor)|.*\(\d+\)|(exit-handler|for-loop|condition(-branches)?)-\d+")


class RunFailed(GkdError):
    """The run was waited for and did not succeed."""

    exit_code = 1


def submit(cluster: Cluster, work: Work, *, say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Start a run.

    Args:
        say: told what may go wrong with it.
    Returns:
        Its facts, as `describe` gives them.
    Raises:
        GkdError: the file is not a compiled pipeline, an argument is not its, or the server refuses.
    """
    work = check(work, say)
    with as_sent(work) as sent:
        source = source_of(cluster, sent)
        run = cluster.call(
            cluster.client.run_pipeline,
            experiment_id=experiment_id(cluster, work.experiment),
            job_name=work.name,
            params=work.arguments,
            service_account=work.service_account,
            **source,
        )
    return describe(cluster, whole(cluster, run, "run_id"))


def find(cluster: Cluster, name: str) -> Any:
    """The run with this identifier, else the newest with this name.

    Raises:
        GkdError: there is none.
    """
    try:
        return cluster.call(cluster.client.get_run, name)
    except ClusterError as error:
        # Some versions of the server refuse what is no identifier, others do not find it.
        if error.status not in (400, 404):
            raise
    page = cluster.call(
        cluster.client.list_runs,
        page_size=1,
        sort_by="created_at desc",
        namespace=cluster.namespace,
        filter=named("display_name", name),
    )
    if not page.runs:
        where = f" in namespace {cluster.namespace}" if cluster.namespace else ""
        raise GkdError(f"{cluster.host} has no run {name!r}{where}: `gkd pipeline list` shows those it has")
    return cluster.call(cluster.client.get_run, page.runs[0].run_id)


def wait(
    cluster: Cluster,
    run_id: str,
    *,
    timeout_seconds: float,
    poll_seconds: float = 10,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Look until the run has ended.

    kfp's own loop does not know that a cancelled run has ended, and gives up at the first broken connection.

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
    unanswered = 0
    while True:
        try:
            facts = describe(cluster, cluster.call(cluster.client.get_run, run_id))
            unanswered = 0
        except ClusterError as error:
            unanswered += 1
            if not error.passing or unanswered >= PATIENCE:
                raise
            progress(f"no answer, trying again: {error}")
        else:
            states = {"run": facts["state"]} | {task["name"]: task["state"] for task in facts["tasks"]}
            for name, state in states.items():
                if seen.get(name) != state:
                    progress(f"{name}: {state.lower()}")
            seen = states
            if facts["state"] in FINISHED:
                return facts
        if time.monotonic() + poll_seconds > give_up:
            state = seen.get("run", "unknown").lower()
            raise GkdError(
                f"run {run_id} is still {state} after {timeout_seconds:g} seconds and goes on without us: look at it "
                f"with `gkd pipeline status {run_id}`, or wait longer with --timeout"
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
    found: list[Any] = []
    token = ""
    while len(found) < limit:
        page = cluster.call(
            cluster.client.list_runs,
            page_token=token,
            page_size=min(PAGE, limit - len(found)),
            sort_by="created_at desc",
            experiment_id=identifier,
            namespace=cluster.namespace,
        )
        found += page.runs or []
        token = page.next_page_token or ""
        if not token:
            break
    return [describe(cluster, run) for run in found[:limit]]


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
