"""Runs and schedules on a Kubeflow Pipelines server: submit, wait, look, repeat by the clock."""

import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from components.kubeflow.settings import refuse_own_store, refuse_password, resolve
from gkd_core.errors import GkdError, unknown
from gkd_core.files import file_digest
from pipelines.cluster import Cluster, ClusterError
from pipelines.compiled import LOST, has_registry, refuse_no_image, refuse_other_devices

FINISHED = frozenset({"SUCCEEDED", "FAILED", "CANCELED", "SKIPPED"})
DEFAULT_EXPERIMENT = "gkd"
PATIENCE = 10  # questions in a row that may go unanswered while a run is waited for
PAGE = 100
# Nodes of the workflow that stand for no task of the pipeline: their machinery, attempts, and groups of tasks.
_NO_TASK = re.compile(r"root|executor|.*-(driver|executor)|.*\(\d+\)|(exit-handler|for-loop|condition(-branches)?)-\d+")


# Of a clock's expression; Kubeflow Pipelines' own parser begins the week with 0, Sunday, and knows no 7.
_FIELDS = (("second", 0, 59), ("minute", 0, 59), ("hour", 0, 23), ("day", 1, 31), ("month", 1, 12), ("weekday", 0, 6))
# Kubeflow's kinds of parameters, as they come out of YAML; text that looks like a number must stay text.
_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "STRING": ((str,), "text"),
    "NUMBER_INTEGER": ((int,), "a whole number"),
    "NUMBER_DOUBLE": ((int, float), "a number"),
    "BOOLEAN": ((bool,), "true or false"),
    "LIST": ((list,), "a list"),
    "STRUCT": ((dict,), "keys and values"),
}


class RunFailed(GkdError):
    """The run was waited for and did not succeed."""

    exit_code = 1


@dataclass(frozen=True)
class Work:
    """What is to run: a compiled pipeline and its arguments.

    Attributes:
        package: YAML file of `gkd pipeline compile`.
        arguments: by name; those the pipeline does not have are refused.
        name: of the run or schedule, as the web interface shows it.
        experiment: the group it stands in; made when it is not there.
        pipeline: upload the file as a version of the pipeline of this name and run that; None sends the file along.
        service_account: the cluster's account that the tasks run as; None leaves it to the server.
        caching: False runs every task again; None leaves it to the compiled file.
    """

    package: Path
    arguments: dict[str, Any]
    name: str
    experiment: str = DEFAULT_EXPERIMENT
    pipeline: str | None = None
    service_account: str | None = None
    caching: bool | None = None


@dataclass(frozen=True)
class Clock:
    """When a schedule starts a run.

    Attributes:
        cron: six fields, seconds first, or a descriptor such as @daily; times are the server's (UTC as a rule).
        start, end: RFC 3339 times between which it works; None is open.
        max_concurrency: runs at a time, 1 to 10.
        catch_up: start the runs that were missed while it was off.
        enabled: whether it works from now on.
    """

    cron: str
    start: str | None = None
    end: str | None = None
    max_concurrency: int = 1
    catch_up: bool = False
    enabled: bool = True

    def __post_init__(self) -> None:
        fields = self.cron.split()
        if len(fields) == 5:
            raise GkdError(
                f"--cron {self.cron!r} has five fields, Kubeflow Pipelines wants six, seconds first: "
                f"write '0 {self.cron}'"
            )
        if len(fields) != 6 and not self.cron.startswith("@"):
            raise GkdError(f"--cron {self.cron!r} has {len(fields)} fields, not six: '0 0 3 * * 1' is Mondays at three")
        if not self.cron.startswith("@"):
            for field, (name, low, high) in zip(fields, _FIELDS, strict=True):
                _in_range(self.cron, field, name, low, high)
        start, end = _time(self.start, "--start"), _time(self.end, "--end")
        if start and end and end <= start:
            raise GkdError(f"--end {self.end} is not after --start {self.start}: swap them or leave one out")


def _in_range(cron: str, field: str, name: str, low: int, high: int) -> None:
    """Numbers of a field; names of months and days are the server's to know."""
    for part in field.split(","):
        span, slash, step = part.partition("/")
        numbers = [int(number) for number in span.split("-") if number.isdecimal()]
        if any(not low <= number <= high for number in numbers):
            raise GkdError(f"--cron {cron!r}: {part} is no {name}, write {low} to {high}")
        if numbers != sorted(numbers):
            raise GkdError(f"--cron {cron!r}: the {name}s {span} go backwards: write the smaller one first")
        if slash and not (step.isdecimal() and int(step) > 0):
            raise GkdError(f"--cron {cron!r}: {part} has no step of at least 1 after the /")


def _time(text: str | None, option: str) -> datetime | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise GkdError(f"{option} {text!r} is not a time: write it like 2026-12-01T03:00:00Z") from None
    if moment.tzinfo is None:
        raise GkdError(f"{option} {text} names no time zone: add Z for UTC, or an offset such as +01:00")
    return moment


def submit(cluster: Cluster, work: Work, *, say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Start a run.

    Args:
        say: told what may go wrong with it.
    Returns:
        Its facts, as `describe` gives them.
    Raises:
        GkdError: the file is not a compiled pipeline, an argument is not its, or the server refuses.
    """
    _check(work, say)
    source = _source(cluster, work)
    run = cluster.call(
        cluster.client.run_pipeline,
        experiment_id=_experiment(cluster, work.experiment),
        job_name=work.name,
        params=work.arguments,
        enable_caching=work.caching,
        service_account=work.service_account,
        **source,
    )
    return describe(cluster, _whole(cluster, run, "run_id"))


def schedule(
    cluster: Cluster,
    work: Work,
    clock: Clock,
    *,
    replace: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Start a run whenever the clock says so.

    A name is used once in an experiment: sending the same schedule again would run everything twice.

    Raises:
        GkdError: as `submit`; the cron expression is refused; the name is taken and `replace` is false.
    """
    _check(work, say)
    experiment = _experiment(cluster, work.experiment)
    before = [s for s in _schedules(cluster, experiment) if s.display_name == work.name]
    if before and not replace:
        raise GkdError(
            f"a schedule {work.name!r} is there already in experiment {work.experiment!r}: pass --replace, or another "
            "--name"
        )
    made = cluster.call(
        cluster.client.create_recurring_run,
        experiment_id=experiment,
        job_name=work.name,
        params=work.arguments,
        enable_caching=work.caching,
        service_account=work.service_account,
        cron_expression=clock.cron,
        start_time=clock.start,
        end_time=clock.end,
        max_concurrency=str(clock.max_concurrency),  # an int64, which the API writes as text
        no_catchup=not clock.catch_up,
        enabled=clock.enabled,
        **_source(cluster, work),
    )
    _whole(cluster, made, "recurring_run_id")
    for old in before:  # after the new one stands: a refused expression leaves the old schedule at work
        cluster.call(cluster.client.delete_recurring_run, old.recurring_run_id)
    return describe_schedule(cluster, made)


def unschedule(cluster: Cluster, name: str) -> dict[str, Any]:
    """Remove the schedule of this name or identifier; runs it started stay.

    Raises:
        GkdError: there is none, or there are several of the name.
    """
    everything = list(_schedules(cluster))
    found = [s for s in everything if name in (s.recurring_run_id, s.display_name)]
    if not found:
        raise GkdError(unknown("schedule", name, sorted({s.display_name for s in everything}) or ["none"]))
    if len(found) > 1:
        which = ", ".join(s.recurring_run_id for s in found)
        raise GkdError(f"several schedules are called {name!r}: name one by its identifier ({which})")
    cluster.call(cluster.client.delete_recurring_run, found[0].recurring_run_id)
    return {"removed": found[0].recurring_run_id, "name": found[0].display_name}


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
        filter=_named("display_name", name),
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
    identifier = None if experiment is None else _known_experiment(cluster, experiment)
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


def schedules(cluster: Cluster, *, experiment: str | None = None) -> list[dict[str, Any]]:
    """All schedules.

    Raises:
        GkdError: no experiment has this name.
    """
    identifier = None if experiment is None else _known_experiment(cluster, experiment)
    return [describe_schedule(cluster, found) for found in _schedules(cluster, identifier)]


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
        "created_at": _moment(run.created_at),
        "finished_at": _moment(run.finished_at) if run.state in FINISHED else None,
        "link": cluster.link("runs", run.run_id),
        "tasks": tasks,
    }


def _pipeline_name(run: Any) -> str:
    """As the workflow is called, but for five letters at its end; empty where the server does not tell."""
    spec = run.pipeline_spec if isinstance(run.pipeline_spec, dict) else {}
    return str(spec.get("pipeline_spec", spec).get("pipelineInfo", {}).get("name", ""))


def describe_schedule(cluster: Cluster, found: Any) -> dict[str, Any]:
    """A schedule's facts."""
    cron = found.trigger.cron_schedule if found.trigger else None
    return {
        "schedule_id": found.recurring_run_id,
        "name": found.display_name,
        "cron": cron.cron if cron else None,
        "start": _moment(cron.start_time) if cron else None,
        "end": _moment(cron.end_time) if cron else None,
        "max_concurrency": int(found.max_concurrency or 1),
        "enabled": found.mode == "ENABLE",
        "experiment_id": found.experiment_id,
        "link": cluster.link("recurringrun", found.recurring_run_id),
    }


def _moment(value: datetime | None) -> str | None:
    # An unset time comes as year 1 or 1970.
    return None if value is None or value.year <= 1970 else value.astimezone(UTC).isoformat(timespec="seconds")


def _source(cluster: Cluster, work: Work) -> dict[str, Any]:
    """What to run, as kfp's client takes it: the file itself, or the version it was uploaded as."""
    if work.pipeline is None:
        return {"pipeline_package_path": str(work.package)}
    pipeline_id, version_id = upload(cluster, work.package, work.pipeline)
    return {"pipeline_id": pipeline_id, "version_id": version_id}


def _check(work: Work, say: Callable[[str], None]) -> None:
    """The file is a compiled pipeline, the arguments are its, of their types, and make sense; none is missing."""
    if work.package.suffix not in (".yaml", ".yml"):
        raise GkdError(f"{work.package} is not a .yaml file: compile one with `gkd pipeline compile -o pipeline.yaml`")
    try:
        documents = [*yaml.safe_load_all(work.package.read_text(encoding="utf-8"))]
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or "it is not YAML"
        raise GkdError(f"{work.package} cannot be read ({reason}): compile it again") from None
    spec = documents[0] if documents else None
    if not isinstance(spec, dict) or "root" not in spec or "pipelineInfo" not in spec:
        raise GkdError(f"{work.package} is not a compiled pipeline: make one with `gkd pipeline compile`")
    refuse_password(work.arguments)
    known = spec["root"].get("inputDefinitions", {}).get("parameters", {})
    for name, value in work.arguments.items():
        if name not in known:
            raise GkdError(unknown("the pipeline's argument", name, sorted(known) or ["none"]))
        types, words = _KINDS.get(known[name].get("parameterType", ""), ((object,), ""))
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types and object not in types):
            shown = json.dumps(value, default=str)
            quotes = f", with quotes: --argument '{name}=\"{shown}\"'" if words == "text" else ""
            raise GkdError(f"the pipeline's argument {name} is {shown}, but must be {words}{quotes}")
    missing = [
        name
        for name, kind in known.items()
        if name not in work.arguments and "defaultValue" not in kind and not kind.get("isOptional")
    ]
    if missing:
        raise GkdError(f"the pipeline wants {', '.join(missing)}: pass --argument {missing[0]}=…")
    given = {name: kind["defaultValue"] for name, kind in known.items() if "defaultValue" in kind} | work.arguments
    refuse_password(given)
    _check_content(given, documents, say)


def _check_content(given: dict[str, Any], documents: list[Any], say: Callable[[str], None]) -> None:
    """What the pipeline's first task would refuse, what would be lost, and images that no node may find.

    Args:
        given: the arguments with the file's defaults.
        documents: the file's: the pipeline, and what the profile gave it.
    """
    executors = documents[0].get("deploymentSpec", {}).get("executors", {})
    containers = {name: executor.get("container", {}) for name, executor in executors.items()}
    images = sorted({container["image"] for container in containers.values() if "image" in container})
    for image in images:
        refuse_no_image(image)
    if isinstance(given.get("params"), dict):
        mlflow = given.get("mlflow", "")
        for override in given.get("overrides", []):
            if not isinstance(override, str):
                raise GkdError(f"overrides has {override!r}, which is no section.key=value: write it as text")
        params = resolve(
            given["params"], given.get("overrides", []), data_source=given.get("data_source", ""), mlflow=mlflow
        )
        refuse_own_store("mlflow" if mlflow else "tracking.uri", params.tracking.uri or "")
        accelerator = containers.get("exec-distill", {}).get("resources", {}).get("accelerator", {})
        if count := accelerator.get("resourceCount") or accelerator.get("count"):
            refuse_other_devices(params, int(count))
        variables = json.dumps([container.get("env", []) for container in containers.values()] + documents[1:])
        if "mlflow" in given and not params.tracking.uri and '"MLFLOW_TRACKING_URI"' not in variables:
            say(f"gkd: {LOST}")
    for image in images:
        if not has_registry(image):
            say(
                f"gkd: the image {image} names no registry, so the cluster's nodes must have it already: push it and "
                "give its whole name in GKD_IMAGE"
            )


def upload(cluster: Cluster, package: Path, name: str) -> tuple[str, str]:
    """The file as a version of the pipeline of this name; the same bytes are uploaded once.

    Returns:
        Identifiers of pipeline and version.
    """
    version = f"sha256-{file_digest(package)[:12]}"
    listed = cluster.call(
        cluster.client.list_pipelines, filter=_named("display_name", name), namespace=cluster.namespace
    )
    if not listed.pipelines:
        made = cluster.call(
            cluster.client.upload_pipeline, str(package), pipeline_name=name, namespace=cluster.namespace
        )
        pipeline_id = _whole(cluster, made, "pipeline_id").pipeline_id
    else:
        pipeline_id = listed.pipelines[0].pipeline_id
    versions = cluster.call(
        cluster.client.list_pipeline_versions, pipeline_id, filter=_named("display_name", version)
    ).pipeline_versions
    if versions:
        return pipeline_id, versions[0].pipeline_version_id
    uploaded = cluster.call(cluster.client.upload_pipeline_version, str(package), version, pipeline_id=pipeline_id)
    return pipeline_id, _whole(cluster, uploaded, "pipeline_version_id").pipeline_version_id


def _named(key: str, value: str) -> str:
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": key, "stringValue": value}]})


def _experiment(cluster: Cluster, name: str) -> str:
    made = cluster.call(cluster.client.create_experiment, name, namespace=cluster.namespace)
    return _whole(cluster, made, "experiment_id").experiment_id


def _known_experiment(cluster: Cluster, name: str) -> str:
    listed = cluster.client.list_experiments
    found = cluster.call(listed, filter=_named("display_name", name), namespace=cluster.namespace).experiments
    if found:
        return found[0].experiment_id
    others = cluster.call(listed, page_size=PAGE, namespace=cluster.namespace).experiments or []
    raise GkdError(unknown("experiment", name, [e.display_name for e in others] or ["none"]))


def _schedules(cluster: Cluster, experiment_id: str | None = None) -> Iterator[Any]:
    token = ""
    while True:
        page = cluster.call(
            cluster.client.list_recurring_runs,
            page_token=token,
            page_size=PAGE,
            experiment_id=experiment_id,
            namespace=cluster.namespace,
        )
        yield from page.recurring_runs or []
        token = page.next_page_token or ""
        if not token:
            return


def _whole(cluster: Cluster, answer: Any, field: str) -> Any:
    """The answer, with its identifier: without one it is somebody else's."""
    if not getattr(answer, field, None):
        raise ClusterError(
            f"{cluster.host} answers without a {field}: give the address of the Kubeflow Pipelines API", status=200
        )
    return answer
