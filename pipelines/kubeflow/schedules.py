"""Schedules on a Kubeflow Pipelines server: a pipeline again and again, by the clock."""

import contextlib
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from components.mlflow_store import KFP_PLACE
from gkd_core.errors import GkdError, unknown
from pipelines.kubeflow.client import Cluster
from pipelines.kubeflow.package import Work, as_sent
from pipelines.kubeflow.runs import (
    FINISHED,
    RunEnded,
    experiment_id,
    known_experiment_id,
    moment,
    pages,
    source_of,
    stop,
    wait,
)

ALL = 10**6
RECENT = 200  # runs that are looked through for those of a schedule
KEEPS_RUNS = (2, 17)  # first version of the server that can remove a schedule and leave its runs alone
STOPPING_SECONDS = 600  # for a stopped run to have ended


@dataclass(frozen=True)
class Clock:
    """When a schedule starts a run.

    Attributes:
        cron: six fields, seconds first, or a descriptor such as @daily; times are the server's (UTC as a rule).
        start, end: times with a zone between which it works, in ISO 8601; None is open.
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
        _refuse_cron(self.cron)
        start, end = _time(self.start, "--start"), _time(self.end, "--end")
        for name, time in (("start", start), ("end", end)):
            if time:  # as RFC 3339 has it, whatever form it was given in
                object.__setattr__(self, name, time.isoformat().replace("+00:00", "Z"))
        if start and end and end <= start:
            raise GkdError(f"--end {self.end} is not after --start {self.start}: swap them or leave one out")


def _refuse_cron(cron: str) -> None:
    """What the server takes for something else than was meant; the rest it checks itself.

    Raises:
        GkdError: there are not six fields, or a run would start every few seconds.
    """
    if cron.startswith("@"):
        every = re.fullmatch(r"@every\s+(\d+(?:\.\d+)?)(ns|us|µs|ms|s)", cron.strip())
        often = bool(every and (every[2] != "s" or float(every[1]) < 60))
    else:
        fields = cron.split()
        if len(fields) == 5:  # the server would read the minutes as seconds
            raise GkdError(
                f"--cron {cron!r} has five fields, Kubeflow Pipelines wants six, seconds first: write '0 {cron}'"
            )
        if len(fields) != 6:
            raise GkdError(f"--cron {cron!r} has {len(fields)} fields, not six: '0 0 3 * * 1' is Mondays at three")
        often = bool(re.search(r"[*?/-]", fields[0]))
    if often:
        raise GkdError(
            f"--cron {cron!r} would start a run every few seconds: its first field is the second, write 0 there"
        )


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


def schedule(cluster: Cluster, work: Work, clock: Clock, *, replace: bool = False) -> dict[str, Any]:
    """Start a run whenever the clock says so.

    A name is used once in an experiment: sending the same schedule again would run everything twice.

    Args:
        work: as `package.check` gives it.
    Raises:
        GkdError: the server refuses; the name is taken and `replace` is false; removing the old one would kill a run.
    """
    experiment = experiment_id(cluster, work.experiment)
    before = [s for s in _schedules(cluster, experiment) if s.display_name == work.name]
    if before and not replace:
        raise GkdError(
            f"a schedule {work.name!r} is there already in experiment {work.experiment!r}: pass --replace, or another "
            "--name"
        )
    for old in before:
        _refuse_to_kill(cluster, old)
    with as_sent(work, cluster.link("runs", KFP_PLACE)) as sent, cluster.asking() as client:
        made = client.create_recurring_run(
            experiment_id=experiment,
            job_name=work.name,
            params=work.arguments,
            service_account=work.service_account,
            cron_expression=clock.cron,
            start_time=clock.start,
            end_time=clock.end,
            max_concurrency=str(clock.max_concurrency),  # an int64, which the API writes as text
            no_catchup=not clock.catch_up,
            enabled=clock.enabled,
            **source_of(cluster, sent),
        )
    for old in before:  # after the new one stands: a refused expression leaves the old schedule at work
        _remove(cluster, old)
    return describe_schedule(cluster, made)


def unschedule(cluster: Cluster, name: str, *, now: bool = False) -> dict[str, Any]:
    """Remove the schedule of this name or identifier; runs it started stay.

    Args:
        now: stop those that are at work first.
    Raises:
        GkdError: there is none, or there are several of the name; a run is at work and the server would kill it with
            the schedule.
    """
    everything = _schedules(cluster)
    found = [s for s in everything if name in (s.recurring_run_id, s.display_name)]
    if not found:
        raise GkdError(unknown("schedule", name, sorted({s.display_name for s in everything})))
    if len(found) > 1:
        which = ", ".join(s.recurring_run_id for s in found)
        raise GkdError(f"several schedules are called {name!r}: name one by its identifier ({which})")
    stopped = []
    for run in _at_work(cluster, found[0]) if now else []:
        with contextlib.suppress(RunEnded):  # since it was listed
            stop(cluster, run.run_id)
        wait(cluster, run.run_id, timeout_seconds=STOPPING_SECONDS)
        stopped.append(run.run_id)
    _refuse_to_kill(cluster, found[0])
    _remove(cluster, found[0])
    return {"removed": found[0].recurring_run_id, "name": found[0].display_name, "stopped": stopped}


def _at_work(cluster: Cluster, schedule: Any) -> list[Any]:
    """Runs of a schedule that have not ended."""
    recent = pages(
        cluster, "list_runs", "runs", RECENT, sort_by="created_at desc", experiment_id=schedule.experiment_id
    )
    return [run for run in recent if run.recurring_run_id == schedule.recurring_run_id and run.state not in FINISHED]


def _refuse_to_kill(cluster: Cluster, schedule: Any) -> None:
    """Raises: GkdError: the server would delete a run at work with its schedule, and show it as running ever after."""
    if cluster.version() < KEEPS_RUNS and (working := _at_work(cluster, schedule)):
        name = schedule.display_name
        raise GkdError(
            f"run {working[0].run_id} of the schedule {name!r} is at work, and a server before 2.17 would kill it with "
            f"the schedule: wait for its end, or remove both with `gkd pipeline unschedule {name} --now`"
        )


def _remove(cluster: Cluster, schedule: Any) -> None:
    """Delete a schedule; without the policy Kubernetes would delete its runs' workflows as well."""
    with cluster.asking() as client:
        client._recurring_run_api.recurring_run_service_delete_recurring_run(
            recurring_run_id=schedule.recurring_run_id, propagation_policy="ORPHAN"
        )


def schedules(cluster: Cluster, *, experiment: str | None = None) -> list[dict[str, Any]]:
    """All schedules.

    Raises:
        GkdError: no experiment has this name.
    """
    identifier = None if experiment is None else known_experiment_id(cluster, experiment)
    return [describe_schedule(cluster, found) for found in _schedules(cluster, identifier)]


def describe_schedule(cluster: Cluster, found: Any) -> dict[str, Any]:
    """A schedule's facts."""
    cron = found.trigger.cron_schedule if found.trigger else None
    return {
        "schedule_id": found.recurring_run_id,
        "name": found.display_name,
        "cron": cron.cron if cron else None,
        "start": moment(cron.start_time) if cron else None,
        "end": moment(cron.end_time) if cron else None,
        "max_concurrency": int(found.max_concurrency or 1),
        "enabled": found.mode == "ENABLE",
        "experiment_id": found.experiment_id,
        "link": cluster.link("recurringrun", found.recurring_run_id),
    }


def _schedules(cluster: Cluster, experiment_id: str | None = None) -> list[Any]:
    return pages(cluster, "list_recurring_runs", "recurring_runs", ALL, experiment_id=experiment_id)
