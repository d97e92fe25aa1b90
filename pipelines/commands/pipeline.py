"""`gkd pipeline`: the steps as a Kubeflow pipeline, as a file, on this machine, or on a cluster.

The options that name a server are the same everywhere (`Access`); secrets are better given by file or environment than
as an option, which others on the machine can read.
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
from pipelines.commands.options import (
    PARAMS,
    Arguments,
    Configuration,
    Contenders,
    Overrides,
    Parallelism,
    SpaceFile,
    finish,
    grouped,
)
from pipelines.kubeflow.client import Access, Cluster, connect

if TYPE_CHECKING:
    from pipelines.kubeflow.package import Work

app = typer.Typer(
    help="The steps as a Kubeflow pipeline: a file, a run here, a run on a cluster.", no_args_is_help=True
)

TWO_DAYS = 172800.0  # seconds

Which = Annotated[str, typer.Option("--pipeline", help="distillation, sweep (contenders × pairs × seeds) or search.")]
Run = Annotated[str, typer.Argument(help="Identifier of a run, or its name (then the newest).")]


@app.command("compile")
@grouped
def compile_(
    out: Annotated[Path, typer.Option("--out", "-o", help="YAML file to write.")],
    profile: Annotated[
        str | None,
        typer.Option(help="What the cluster gives: cpu, gpu, multi-gpu, multi-node, or a file; none asks for nothing."),
    ] = None,
    pipeline: Which = "distillation",
    parallelism: Parallelism = None,
    contenders: Contenders = None,
    space: SpaceFile = None,
    *,
    configuration: Configuration,
) -> None:
    """Write the pipeline as YAML for Kubeflow Pipelines; params.yaml and --set become its arguments' defaults."""
    from pipelines.kubeflow.compile import compile_pipeline

    done = compile_pipeline(
        out,
        params=configuration.params,
        overrides=configuration.overrides,
        profile=profile,
        which=pipeline,
        parallelism=parallelism,
        contenders=contenders,
        space=space,
        warn=True,
    )
    warn_of_moving_image()
    finish(done)


@app.command("run")
@grouped
def run(
    runner: Annotated[str, typer.Option(help="subprocess (no Docker), or docker.")] = "subprocess",
    out: Annotated[Path, typer.Option(help="Folder for the artifacts, the checkpoints and the log.")] = Path(
        "pipeline-run"
    ),
    pipeline: Which = "distillation",
    parallelism: Parallelism = None,
    *,
    arguments: Arguments,
    user: Annotated[str | None, typer.Option(help="UID:GID that containers run as; you without.")] = None,
    configuration: Configuration,
) -> None:
    """Run the pipeline on this machine, through kfp's local runner; the artifacts stay in --out."""
    if runner == "docker":
        from components.image import image
        from pipelines.kubeflow.checks import refuse_no_image

        refuse_no_image(image())
        warn_of_moving_image()
    from pipelines.kubeflow.local import run_pipeline

    done = run_pipeline(
        runner=runner,
        params=configuration.params,
        overrides=configuration.overrides,
        out=out,
        which=pipeline,
        arguments=arguments.given(),
        user=user,
        parallelism=parallelism,
    )
    from pipelines.summary import show_summary

    if pipeline == "distillation":
        done |= show_summary(report=out / "report", deploy=out / "deploy", registration=out / "registration")
    finish(done)


@dataclass
class Task:
    """What is to run there, and how."""

    params: Annotated[Path | None, typer.Option("--params", help="The configuration; params.yaml unless given.")] = None
    overrides: Overrides = None
    profile: Annotated[
        str | None, typer.Option(help="What the cluster gives: cpu, gpu, multi-gpu, multi-node or a file.")
    ] = None
    which: Annotated[str | None, typer.Option("--pipeline", help="distillation (unless given), sweep or search.")] = (
        None
    )
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
            help="Take what the cluster remembers of a task, or run every one; by default submit takes it, schedule "
            "does not.",
        ),
    ] = None

    @property
    def called(self) -> str:
        """What the run is called after."""
        return self.which or ("distillation" if self.package is None else self.package.stem)

    @contextlib.contextmanager
    def named(self, name: str, arguments: Arguments, *, cached: bool) -> Iterator["Work"]:
        """Under that name, compiled and checked; the file is gone afterwards. `cached` unless the options say.

        What is compiled now has --params and --set inside; a file compiled earlier gets them as arguments.
        """
        from pipelines.kubeflow.package import Work, check

        given = arguments.given()
        with tempfile.TemporaryDirectory() as folder:
            if self.package is None:
                package = self._compiled(Path(folder) / "pipeline.yaml")
            else:
                package = self.package
                given = self._settings() | given
            caching = cached if self.cache is None else self.cache
            work = Work(package, given, name, self.experiment, self.upload, self.service_account, caching)
            yield check(work, _say)

    def _compiled(self, file: Path) -> Path:
        from pipelines.kubeflow.compile import compile_pipeline

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

        for option, value in (
            ("--profile", self.profile),
            ("--parallelism", self.parallelism),
            ("--pipeline", self.which),
        ):
            if value is not None:
                raise GkdError(f"{option} is given and --package too, which has its own inside: pass one of them")
        settings: dict[str, Any] = {}
        if self.params is not None:
            settings["params"] = read_sections(self.params)
        if self.overrides:
            settings["overrides"] = list(self.overrides)
        return settings


@app.command()
@grouped
def submit(
    server: Access,
    task: Task,
    arguments: Arguments,
    run_name: Annotated[str | None, typer.Option(help="Name of the run; else the pipeline's and the time.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Until it has ended; exit code 1 when it failed.")] = False,
    timeout: Annotated[
        float | None, typer.Option(min=1, help="With --wait: seconds at most; two days unless given.")
    ] = None,
    poll: Annotated[float | None, typer.Option(min=0.05, help="With --wait: seconds between polls; else 10.")] = None,
) -> None:
    """Run the pipeline on a cluster."""
    from pipelines.kubeflow import runs
    from pipelines.kubeflow.package import unchecked

    for option, value in (("--timeout", timeout), ("--poll", poll)):
        if value is not None and not wait:
            raise GkdError(f"{option} is for waiting until the run has ended: add --wait")
    with task.named(run_name or f"{task.called} {datetime.now():%Y-%m-%d %H-%M-%S}", arguments, cached=True) as work:
        cluster = connect(server)
        facts = runs.submit(cluster, work)
        _say(f"run {facts['run_id']} is submitted: {facts['link']}")
        _say(unchecked(work))
    if wait:
        facts = _wait(cluster, facts["run_id"], timeout, poll)
    finish(facts)
    if wait and (sentence := runs.failure(facts)):
        raise runs.RunFailed(sentence)


def _wait(cluster: Cluster, run_id: str, timeout: float | None, poll: float | None) -> dict[str, Any]:
    """Tell each change until the run has ended; whoever stops this (Ctrl-C) stops no run."""
    from pipelines.kubeflow import runs

    try:
        return runs.wait(cluster, run_id, timeout_seconds=timeout or TWO_DAYS, poll_seconds=poll or 10, progress=_say)
    except SystemExit:
        _say(
            f"run {run_id} goes on: `gkd pipeline status {run_id} --follow` waits for it again, `gkd pipeline stop "
            f"{run_id}` ends it"
        )
        raise


@app.command()
@grouped
def schedule(
    cron: Annotated[
        str,
        typer.Option(help="Six fields, seconds first: '0 0 3 * * 1' is Mondays at three, in the server's time zone."),
    ],
    server: Access,
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
    from pipelines.kubeflow import schedules

    clock = schedules.Clock(cron, start, end, max_concurrency, catch_up, not disable)
    with task.named(name or task.called, arguments, cached=False) as work:
        facts = schedules.schedule(connect(server), work, clock, replace=replace)
    _say(f"schedule {facts['name']} ({facts['cron']}) is {'on' if facts['enabled'] else 'off'}: {facts['link']}")
    finish(facts)


@app.command()
@grouped
def unschedule(
    name: Annotated[str, typer.Argument(help="Name or identifier of the schedule.")],
    server: Access,
    now: Annotated[
        bool, typer.Option("--now", help="Stop its run that is at work first, and wait for its end.")
    ] = False,
) -> None:
    """Remove a schedule; the runs it started stay, one that is at work goes on."""
    from pipelines.kubeflow import schedules

    finish(schedules.unschedule(connect(server), name, now=now))


@app.command()
@grouped
def status(
    run: Run,
    follow: Annotated[
        bool,
        typer.Option("--follow", "-f", help="Print each change until the run has ended; exit code 1 when it failed."),
    ] = False,
    timeout: Annotated[
        float | None, typer.Option(min=1, help="With --follow: seconds at most; two days unless given.")
    ] = None,
    poll: Annotated[float | None, typer.Option(min=0.05, help="With --follow: seconds between polls; else 10.")] = None,
    *,
    server: Access,
) -> None:
    """Show how far a run is, task by task."""
    from rich.table import Table

    from pipelines.kubeflow import runs
    from pipelines.kubeflow.logs import Logs
    from pipelines.summary import console

    for option, value in (("--timeout", timeout), ("--poll", poll)):
        if value is not None and not follow:
            raise GkdError(f"{option} is for looking on until the run has ended: add --follow")
    cluster = connect(server)
    found = runs.find(cluster, run)
    if follow:
        facts = _wait(cluster, found.run_id, timeout, poll)
    else:
        facts = runs.describe(cluster, found, Logs(cluster, found.run_id))
    table = Table(title=f"{facts['name']}: {runs.in_words(facts['state'])}", title_justify="left")
    for heading in ("task", "state", "what it says"):
        table.add_column(heading)
    for task in facts["tasks"]:
        table.add_row(task["name"], runs.in_words(task["state"]), task["error"] or "")
    console().print(table, markup=False)
    sentence = runs.failure(facts) if facts["state"] in runs.FINISHED else None
    if sentence and not follow:
        _say(sentence)
    finish(facts)
    if sentence and follow:
        raise runs.RunFailed(sentence)


@app.command()
@grouped
def logs(
    run: Run,
    step: Annotated[
        str | None, typer.Argument(help="One task, as `status` shows it; all of them unless given.", show_default=False)
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Print on until the run has ended.")] = False,
    poll: Annotated[float | None, typer.Option(min=0.05, help="With --follow: seconds between polls; else 5.")] = None,
    *,
    server: Access,
) -> None:
    """Print what the tasks of a run print, without Kubeflow's own lines."""
    from pipelines.kubeflow import runs

    if poll is not None and not follow:
        raise GkdError("--poll is for printing on until the run has ended: add --follow")
    cluster = connect(server)
    identifier = runs.find(cluster, run).run_id
    last = None
    for part in runs.log_parts(cluster, identifier, step=step, wait=follow, poll_seconds=poll or 5):
        if (part.task, part.attempt) != last:
            last = part.task, part.attempt
            _say(f"{part.task}, try {part.attempt}:" if part.attempt > 1 else f"{part.task}:")
        print("\n".join(part.lines), flush=True)


@app.command()
@grouped
def stop(
    run: Run,
    server: Access,
) -> None:
    """End a run, its tasks and TrainJobs; the cluster's cache keeps what is finished, the volume the checkpoints."""
    from pipelines.kubeflow import runs

    cluster = connect(server)
    identifier = runs.find(cluster, run).run_id
    runs.stop(cluster, identifier)
    _say(f"run {identifier} is being cancelled: its last task, `ended`, removes its TrainJobs")
    finish({"run_id": identifier, "state": "CANCELING"})


@app.command("list")
@grouped
def list_runs(
    server: Access,
    experiment: Annotated[str | None, typer.Option(help="Of this experiment alone.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="How many runs at most; 20 unless given.")] = None,
    schedules: Annotated[bool, typer.Option("--schedules", help="The schedules instead of the runs.")] = False,
) -> None:
    """List the runs of a cluster, newest first, or its schedules."""
    from rich.table import Table

    from pipelines.kubeflow import runs
    from pipelines.kubeflow.schedules import schedules as list_schedules
    from pipelines.summary import console

    if schedules and limit is not None:
        raise GkdError("--limit is how many runs are listed, and --schedules lists all schedules: give one")
    cluster = connect(server)
    if schedules:
        found = list_schedules(cluster, experiment=experiment)
        columns = ("name", "cron", "enabled", "max_concurrency", "schedule_id")
    else:
        found = runs.runs(cluster, experiment=experiment, limit=limit or 20)
        columns = ("name", "state", "created_at", "finished_at", "run_id")
    table = Table()
    for column in columns:  # an identifier is there to be copied: whole, however narrow the terminal
        width = max((len(str(row[column])) for row in found), default=0) if column.endswith("_id") else None
        table.add_column(column.replace("_", " "), overflow="fold", no_wrap=width is not None, min_width=width)
    for row in found:
        shown = {**row, "state": runs.in_words(row["state"])} if "state" in row else row
        table.add_row(*("" if shown[column] is None else str(shown[column]) for column in columns))
    console().print(table, markup=False)
    finish(found)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def warn_of_moving_image() -> None:
    """Say on stderr that the image may be another one tomorrow."""
    from components.image import image, moving

    if moving(image()):
        _say(
            f"gkd: GKD_IMAGE is {image()}, which may be another image tomorrow, and a cluster's cache would not "
            "notice: give a version, a commit or a digest (NAME@sha256:…)"
        )
