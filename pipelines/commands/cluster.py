"""`gkd pipeline submit|schedule|unschedule|status|list`: a pipeline on a cluster.

The options that name a server are the same everywhere; secrets are better given by file or environment than as an
option, which others on the machine can read.
"""

import contextlib
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gkd_core.errors import GkdError
from pipelines.commands.groups import grouped
from pipelines.commands.options import PARAMS, Arguments, Overrides, Parallelism, finish

if TYPE_CHECKING:
    from pipelines.cluster import Cluster
    from pipelines.cluster_work import Work

app = typer.Typer()


@dataclass
class Server:
    """Where the server is and who asks."""

    host: Annotated[
        str | None,
        typer.Option(help="Address of Kubeflow Pipelines, such as http://localhost:8888; else KF_PIPELINES_ENDPOINT."),
    ] = None
    token: Annotated[str | None, typer.Option(help="Bearer token; better in --token-file or in GKD_KFP_TOKEN.")] = None
    token_file: Annotated[Path | None, typer.Option(help="File with the bearer token, read again at each request.")] = (
        None
    )
    cookie: Annotated[
        str | None, typer.Option(help="Cookie of a session behind a login proxy: name=value; better in GKD_KFP_COOKIE.")
    ] = None
    in_cluster: Annotated[
        bool, typer.Option("--in-cluster", help="Use the service account token mounted into this pod.")
    ] = False
    namespace: Annotated[str | None, typer.Option(help="Profile namespace, where the server has several users.")] = None
    ca_certificate: Annotated[
        Path | None, typer.Option(help="PEM file of the authority behind the server's certificate.")
    ] = None

    def connect(self) -> "Cluster":
        from pipelines.cluster import Access, connect

        return connect(Access(**vars(self)))


@dataclass
class Task:
    """What is to run there, and how."""

    params: Annotated[Path | None, typer.Option("--params", help="The configuration; params.yaml unless given.")] = None
    overrides: Overrides = None
    profile: Annotated[
        str | None, typer.Option(help="What the cluster gives: cpu, gpu, multi-gpu, multi-node or a file.")
    ] = None
    which: Annotated[str | None, typer.Option("--pipeline", help="distillation (unless given) or sweep.")] = None
    parallelism: Parallelism = None
    package: Annotated[
        Path | None, typer.Option(help="A file of `gkd pipeline compile`; without one the pipeline is compiled now.")
    ] = None
    experiment: Annotated[str, typer.Option(help="Group of runs; made when it is not there.")] = "gkd"
    upload: Annotated[
        str | None,
        typer.Option(help="Upload the file as a version of the pipeline of this name, and run that version."),
    ] = None
    service_account: Annotated[str | None, typer.Option(help="Kubernetes service account of the tasks.")] = None
    cache: Annotated[
        bool | None,
        typer.Option(
            "--cache/--no-cache",
            help="Take what the cluster remembers of a task, or run every one; submit takes it unless told, schedule "
            "does not.",
        ),
    ] = None

    @property
    def called(self) -> str:
        """What the run is called after."""
        return self.which or ("distillation" if self.package is None else self.package.stem)

    @contextlib.contextmanager
    def named(self, name: str, arguments: Arguments, *, cached: bool) -> Iterator["Work"]:
        """Under that name, compiled; the file is gone afterwards. `cached` unless the options say.

        What is compiled now has --params and --set inside; a file compiled earlier gets them as arguments.
        """
        from pipelines.cluster_work import Work

        given = arguments.given()
        with tempfile.TemporaryDirectory() as folder:
            if self.package is None:
                package = self._compiled(Path(folder) / "pipeline.yaml")
            else:
                package = self.package
                given = self._settings() | given
            caching = cached if self.cache is None else self.cache
            yield Work(package, given, name, self.experiment, self.upload, self.service_account, caching)

    def _compiled(self, file: Path) -> Path:
        from pipelines.commands.kubeflow import warn_of_moving_image
        from pipelines.compiled import compile_pipeline

        compile_pipeline(
            file,
            params=self.params or PARAMS,
            overrides=self.overrides,
            profile=self.profile,
            which=self.called,
            parallelism=self.parallelism,
        )
        warn_of_moving_image()
        return file

    def _settings(self) -> dict[str, Any]:
        """--params and --set, as arguments."""
        from gkd_core.config import read_sections

        if self.profile is not None:
            raise GkdError("--profile is given and --package too: the file has its profile inside, pass one of them")
        if self.parallelism is not None:
            raise GkdError(
                "--parallelism is given and --package too: the file has its own inside, compile it with that"
            )
        if self.which is not None:
            raise GkdError("--pipeline is given and --package too: the file is one pipeline already, pass one of them")
        settings: dict[str, Any] = {}
        if self.params is not None:
            settings["params"] = read_sections(self.params)
        if self.overrides:
            settings["overrides"] = list(self.overrides)
        return settings


@app.command()
@grouped
def submit(
    server: Server,
    task: Task,
    arguments: Arguments,
    run_name: Annotated[str | None, typer.Option(help="Name of the run; else the pipeline's and the time.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Until it has ended; exit code 1 when it failed.")] = False,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds to wait at most.")] = 172800,
    poll: Annotated[float, typer.Option(min=0.05, help="Seconds between two looks.")] = 10,
) -> None:
    """Run the pipeline on a cluster."""
    from pipelines import cluster_runs

    with task.named(run_name or f"{task.called} {datetime.now():%Y-%m-%d %H-%M-%S}", arguments, cached=True) as work:
        cluster = server.connect()
        facts = cluster_runs.submit(cluster, work, say=_say)
    _say(f"run {facts['run_id']} is submitted: {facts['link']}")
    if wait:
        facts = cluster_runs.wait(cluster, facts["run_id"], timeout_seconds=timeout, poll_seconds=poll, progress=_say)
    finish(facts)
    if wait and (sentence := cluster_runs.failure(facts)):
        raise cluster_runs.RunFailed(sentence)


@app.command()
@grouped
def schedule(
    cron: Annotated[
        str,
        typer.Option(help="Six fields, seconds first: '0 0 3 * * 1' is Mondays at three, in the server's time zone."),
    ],
    server: Server,
    task: Task,
    arguments: Arguments,
    name: Annotated[str | None, typer.Option(help="Name of the schedule; else the pipeline's.")] = None,
    max_concurrency: Annotated[int, typer.Option(min=1, max=10, help="Runs at a time.")] = 1,
    start: Annotated[str | None, typer.Option(help="Not before, such as 2026-12-01T00:00:00Z.")] = None,
    end: Annotated[str | None, typer.Option(help="Not after.")] = None,
    catch_up: Annotated[bool, typer.Option("--catch-up", help="Start what was missed while it was off.")] = False,
    disable: Annotated[bool, typer.Option("--disable", help="Make it, but switched off.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Take the place of the schedule of this name.")] = False,
) -> None:
    """Run the pipeline on a cluster again and again, by the clock; every task each time, unless --cache is given."""
    from pipelines import cluster_schedules

    clock = cluster_schedules.Clock(cron, start, end, max_concurrency, catch_up, not disable)
    with task.named(name or task.called, arguments, cached=False) as work:
        facts = cluster_schedules.schedule(server.connect(), work, clock, replace=replace, say=_say)
    _say(f"schedule {facts['name']} ({facts['cron']}) is {'on' if facts['enabled'] else 'off'}: {facts['link']}")
    finish(facts)


@app.command()
@grouped
def unschedule(
    name: Annotated[str, typer.Argument(help="Name or identifier of the schedule.")],
    server: Server,
) -> None:
    """Remove a schedule; the runs it started stay."""
    from pipelines import cluster_schedules

    finish(cluster_schedules.unschedule(server.connect(), name))


@app.command()
@grouped
def status(
    run: Annotated[str, typer.Argument(help="Identifier of a run, or its name (then the newest).")],
    server: Server,
) -> None:
    """Show how far a run is, task by task."""
    from rich.table import Table

    from pipelines import cluster_runs
    from pipelines.console import console

    cluster = server.connect()
    facts = cluster_runs.describe(cluster, cluster_runs.find(cluster, run))
    table = Table(title=f"{facts['name']}: {facts['state'].lower()}", title_justify="left")
    for heading in ("task", "state", "what it says"):
        table.add_column(heading)
    for task in facts["tasks"]:
        table.add_row(task["name"], task["state"].lower(), task["error"] or "")
    console().print(table, markup=False)
    if sentence := cluster_runs.failure(facts) if facts["state"] in cluster_runs.FINISHED else None:
        _say(sentence)
    finish(facts)


@app.command("list")
@grouped
def list_runs(
    server: Server,
    experiment: Annotated[str | None, typer.Option(help="Of this experiment alone.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many runs at most.")] = 20,
    schedules: Annotated[bool, typer.Option("--schedules", help="The schedules instead of the runs.")] = False,
) -> None:
    """List the runs of a cluster, newest first, or its schedules."""
    from rich.table import Table

    from pipelines import cluster_runs, cluster_schedules
    from pipelines.console import console

    cluster = server.connect()
    if schedules:
        found = cluster_schedules.schedules(cluster, experiment=experiment)
        columns = ("name", "cron", "enabled", "max_concurrency", "schedule_id")
    else:
        found = cluster_runs.runs(cluster, experiment=experiment, limit=limit)
        columns = ("name", "state", "created_at", "finished_at", "run_id")
    table = Table()
    for column in columns:
        table.add_column(column.replace("_", " "), overflow="fold")
    for row in found:
        table.add_row(*("" if row[column] is None else str(row[column]) for column in columns))
    console().print(table, markup=False)
    finish(found)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
