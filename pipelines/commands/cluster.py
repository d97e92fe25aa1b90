"""`gkd pipeline submit|schedule|unschedule|status|list`: a pipeline on a cluster.

The options that name a server are the same everywhere; secrets are better given by file or environment than as an
option, which others on the machine can read.
"""

import contextlib
import sys
import tempfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gkd_core.errors import GkdError
from pipelines.commands.options import PARAMS, Overrides, finish

if TYPE_CHECKING:
    from pipelines.cluster import Cluster

app = typer.Typer()

Host = Annotated[
    str | None,
    typer.Option(help="Address of Kubeflow Pipelines, such as http://localhost:8888; else KF_PIPELINES_ENDPOINT."),
]
Token = Annotated[str | None, typer.Option(help="Bearer token; better in --token-file or in GKD_KFP_TOKEN.")]
TokenFile = Annotated[Path | None, typer.Option(help="File with the bearer token, read again at each request.")]
Cookie = Annotated[
    str | None, typer.Option(help="Cookie of a session behind a login proxy: name=value; better in GKD_KFP_COOKIE.")
]
InCluster = Annotated[bool, typer.Option("--in-cluster", help="Use the service account token mounted into this pod.")]
Namespace = Annotated[str | None, typer.Option(help="Profile namespace, where the server has several users.")]
CaCertificate = Annotated[Path | None, typer.Option(help="PEM file of the authority behind the server's certificate.")]
Package = Annotated[
    Path | None, typer.Option(help="A file of `gkd pipeline compile`; without one the pipeline is compiled now.")
]
Profile = Annotated[str | None, typer.Option(help="What the cluster gives: cpu, gpu, multi-gpu, multi-node or a file.")]
Which = Annotated[str, typer.Option("--pipeline", help="distillation or sweep.")]
Arguments = Annotated[
    list[str] | None,
    typer.Option("--argument", metavar="NAME=VALUE", help="An argument of the pipeline, in YAML; repeatable."),
]
Params = Annotated[Path | None, typer.Option("--params", help="The configuration; params.yaml unless given.")]
Upload = Annotated[
    str | None, typer.Option(help="Upload the file as a version of the pipeline of this name, and run that version.")
]
Experiment = Annotated[str, typer.Option(help="Group of runs; made when it is not there.")]
ServiceAccount = Annotated[str | None, typer.Option(help="Kubernetes service account of the tasks.")]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Run every task, whatever the cluster remembers.")]


@app.command()
def submit(
    host: Host = None,
    token: Token = None,
    token_file: TokenFile = None,
    cookie: Cookie = None,
    in_cluster: InCluster = False,
    namespace: Namespace = None,
    ca_certificate: CaCertificate = None,
    params: Params = None,
    overrides: Overrides = None,
    profile: Profile = None,
    which: Which = "distillation",
    package: Package = None,
    arguments: Arguments = None,
    run_name: Annotated[str | None, typer.Option(help="Name of the run; else the pipeline's and the time.")] = None,
    experiment: Experiment = "gkd",
    upload: Upload = None,
    service_account: ServiceAccount = None,
    no_cache: NoCache = False,
    wait: Annotated[bool, typer.Option("--wait", help="Until it has ended; exit code 1 when it failed.")] = False,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds to wait at most.")] = 172800,
    poll: Annotated[float, typer.Option(min=0.05, help="Seconds between two looks.")] = 10,
) -> None:
    """Run the pipeline on a cluster."""
    from pipelines import cluster_runs

    with _work(package, params, overrides, profile, which, arguments) as (file, given):
        cluster = _connect(host, token, token_file, cookie, in_cluster, namespace, ca_certificate)
        name = run_name or f"{which} {datetime.now():%Y-%m-%d %H-%M-%S}"
        work = cluster_runs.Work(file, given, name, experiment, upload, service_account, False if no_cache else None)
        facts = cluster_runs.submit(cluster, work, say=_say)
    _say(f"run {facts['run_id']} is submitted: {facts['link']}")
    if wait:
        facts = cluster_runs.wait(cluster, facts["run_id"], timeout_seconds=timeout, poll_seconds=poll, progress=_say)
    finish(facts)
    if wait and (sentence := cluster_runs.failure(facts)):
        raise cluster_runs.RunFailed(sentence)


@app.command()
def schedule(
    cron: Annotated[
        str,
        typer.Option(help="Six fields, seconds first: '0 0 3 * * 1' is Mondays at three, in the server's time zone."),
    ],
    host: Host = None,
    token: Token = None,
    token_file: TokenFile = None,
    cookie: Cookie = None,
    in_cluster: InCluster = False,
    namespace: Namespace = None,
    ca_certificate: CaCertificate = None,
    params: Params = None,
    overrides: Overrides = None,
    profile: Profile = None,
    which: Which = "distillation",
    package: Package = None,
    arguments: Arguments = None,
    name: Annotated[str | None, typer.Option(help="Name of the schedule; else the pipeline's.")] = None,
    experiment: Experiment = "gkd",
    upload: Upload = None,
    service_account: ServiceAccount = None,
    no_cache: NoCache = False,
    max_concurrency: Annotated[int, typer.Option(min=1, max=10, help="Runs at a time.")] = 1,
    start: Annotated[str | None, typer.Option(help="Not before, such as 2026-12-01T00:00:00Z.")] = None,
    end: Annotated[str | None, typer.Option(help="Not after.")] = None,
    catch_up: Annotated[bool, typer.Option("--catch-up", help="Start what was missed while it was off.")] = False,
    disable: Annotated[bool, typer.Option("--disable", help="Make it, but switched off.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Take the place of the schedule of this name.")] = False,
) -> None:
    """Run the pipeline on a cluster again and again, by the clock."""
    from pipelines import cluster_runs

    clock = cluster_runs.Clock(cron, start, end, max_concurrency, catch_up, not disable)
    with _work(package, params, overrides, profile, which, arguments) as (file, given):
        cluster = _connect(host, token, token_file, cookie, in_cluster, namespace, ca_certificate)
        work = cluster_runs.Work(
            file, given, name or which, experiment, upload, service_account, False if no_cache else None
        )
        facts = cluster_runs.schedule(cluster, work, clock, replace=replace, say=_say)
    _say(f"schedule {facts['name']} ({facts['cron']}) is {'on' if facts['enabled'] else 'off'}: {facts['link']}")
    finish(facts)


@app.command()
def unschedule(
    name: Annotated[str, typer.Argument(help="Name or identifier of the schedule.")],
    host: Host = None,
    token: Token = None,
    token_file: TokenFile = None,
    cookie: Cookie = None,
    in_cluster: InCluster = False,
    namespace: Namespace = None,
    ca_certificate: CaCertificate = None,
) -> None:
    """Remove a schedule; the runs it started stay."""
    from pipelines import cluster_runs

    cluster = _connect(host, token, token_file, cookie, in_cluster, namespace, ca_certificate)
    finish(cluster_runs.unschedule(cluster, name))


@app.command()
def status(
    run: Annotated[str, typer.Argument(help="Identifier of a run, or its name (then the newest).")],
    host: Host = None,
    token: Token = None,
    token_file: TokenFile = None,
    cookie: Cookie = None,
    in_cluster: InCluster = False,
    namespace: Namespace = None,
    ca_certificate: CaCertificate = None,
) -> None:
    """Show how far a run is, task by task."""
    from rich.table import Table

    from pipelines import cluster_runs
    from pipelines.console import console

    cluster = _connect(host, token, token_file, cookie, in_cluster, namespace, ca_certificate)
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
def list_runs(
    host: Host = None,
    token: Token = None,
    token_file: TokenFile = None,
    cookie: Cookie = None,
    in_cluster: InCluster = False,
    namespace: Namespace = None,
    ca_certificate: CaCertificate = None,
    experiment: Annotated[str | None, typer.Option(help="Of this experiment alone.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many runs at most.")] = 20,
    schedules: Annotated[bool, typer.Option("--schedules", help="The schedules instead of the runs.")] = False,
) -> None:
    """List the runs of a cluster, newest first, or its schedules."""
    from rich.table import Table

    from pipelines import cluster_runs
    from pipelines.console import console

    cluster = _connect(host, token, token_file, cookie, in_cluster, namespace, ca_certificate)
    if schedules:
        found = cluster_runs.schedules(cluster, experiment=experiment)
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


def _connect(
    host: str | None,
    token: str | None,
    token_file: Path | None,
    cookie: str | None,
    in_cluster: bool,
    namespace: str | None,
    ca_certificate: Path | None,
) -> "Cluster":
    from pipelines.cluster import Access, connect

    return connect(Access(host, token, token_file, cookie, in_cluster, namespace, ca_certificate))


@contextlib.contextmanager
def _work(
    package: Path | None,
    params: Path | None,
    overrides: list[str] | None,
    profile: str | None,
    which: str,
    arguments: list[str] | None,
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The compiled file and the run's arguments.

    What is compiled now has --params and --set inside; a file compiled earlier gets them as arguments.
    """
    given = dict(argument(text) for text in arguments or [])
    with tempfile.TemporaryDirectory() as folder:
        if package is None:
            from pipelines.commands.kubeflow import warn_of_moving_image
            from pipelines.compiled import compile_pipeline

            package = Path(folder) / "pipeline.yaml"
            compile_pipeline(package, params=params or PARAMS, overrides=overrides, profile=profile, which=which)
            warn_of_moving_image()
        else:
            if profile is not None:
                raise GkdError(
                    "--profile is given and --package too: the file has its profile inside, pass one of them"
                )
            if params is not None:
                from gkd_core.config import read_sections

                given.setdefault("params", read_sections(params))
            if overrides:
                given.setdefault("overrides", list(overrides))
        yield package, given


def argument(text: str) -> tuple[str, Any]:
    import yaml

    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise GkdError(f"--argument {text!r} has no value: write --argument name=value")
    try:
        content = yaml.safe_load(value) if value else ""
    except yaml.YAMLError:
        raise GkdError(f"--argument {name}: {value!r} is not YAML; put quotes around text with signs in it") from None
    return name.strip(), content


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
