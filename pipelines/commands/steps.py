"""One command a step, and the summary of a run; `dvc repro` chains them."""

from pathlib import Path
from typing import Annotated

import typer

from gkd_core.errors import GkdError
from pipelines.commands.groups import grouped
from pipelines.commands.options import (
    Configuration,
    Data,
    Deploy,
    Networks,
    Out,
    Registration,
    Report,
    Student,
    Teacher,
    Work,
    finish,
)

app = typer.Typer()


@app.command()
@grouped
def prepare(out: Out = Path("data"), *, configuration: Configuration) -> None:
    """Read the images, split them, and write the prepared format."""
    settings = configuration.read()
    from components import prepare as step

    finish(step.run(out=out, params=settings))


@app.command()
@grouped
def teacher(
    data: Data = Path("data"),
    out: Out = Path("teacher"),
    work: Work = Path("work"),
    *,
    configuration: Configuration,
) -> None:
    """Train the teacher, or check and import `teacher.source`."""
    settings = configuration.read()
    from components import teacher as step

    finish(step.run(data=data, out=out, work=work, params=settings))


@app.command()
@grouped
def distill(
    data: Data = Path("data"),
    teacher: Annotated[
        Path | None, typer.Option(help="Folder of `gkd teacher`; needed unless the method learns without one.")
    ] = None,
    out: Out = Path("student"),
    work: Work = Path("work"),
    reference: Annotated[
        str | None, typer.Option(help="`baseline` (student alone) or `kd` (plain soft labels) instead of the method.")
    ] = None,
    *,
    configuration: Configuration,
) -> None:
    """Train the student by `distill.method`, or one of the references it is compared with."""
    from gkd_core.errors import unknown

    if reference not in (None, "baseline", "kd"):
        raise GkdError(unknown("--reference", str(reference), ["baseline", "kd"]))
    settings = configuration.read()
    from components import distill as step

    finish(step.run(data=data, teacher=teacher, out=out, work=work, params=settings, reference=reference))  # type: ignore[arg-type]


@app.command()
@grouped
def export(
    data: Data = Path("data"),
    teacher: Teacher = Path("teacher"),
    student: Student = Path("student"),
    out: Out = Path("deploy"),
    *,
    configuration: Configuration,
) -> None:
    """Package the student as ONNX, check it against torch, and write its manifest."""
    settings = configuration.read()
    from components import export as step

    finish(step.run(data=data, teacher=teacher, student=student, out=out, params=settings))


@app.command()
@grouped
def evaluate(
    data: Data = Path("data"),
    out: Out = Path("report"),
    *,
    networks: Networks,
    configuration: Configuration,
) -> None:
    """Measure all networks and the final ONNX on the test split, and write the report."""
    settings = configuration.read()
    from components import evaluate as step

    finish(step.run(data=data, **vars(networks), out=out, params=settings))


@app.command()
@grouped
def register(
    report: Report = Path("report"),
    out: Out = Path("registration"),
    *,
    networks: Networks,
    configuration: Configuration,
) -> None:
    """Log the runs in MLflow, register the student as challenger, and let the gate decide on champion."""
    settings = configuration.read()
    from components import register as step

    finish(step.run(**vars(networks), report=report, out=out, params=settings))


@app.command()
def summary(
    report: Report = Path("report"),
    deploy: Deploy = Path("deploy"),
    registration: Registration = Path("registration"),
) -> None:
    """Show the outcome of a run: the table, the gate's decision, the registered version, the report."""
    from pipelines.summary import show_summary

    finish(show_summary(report=report, deploy=deploy, registration=registration))
