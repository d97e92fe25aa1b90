"""`gkd compare`, `gkd frontier`: settings, methods and students against each other, seed by seed."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from gkd_core.errors import GkdError, unknown
from pipelines.commands.options import (
    Configuration,
    Data,
    Out,
    Teacher,
    Work,
    comma_separated,
    finish,
    grouped,
    whole_numbers,
)

app = typer.Typer()

Seeds = Annotated[str, typer.Option(help="Separated by commas; three or more give an interval.")]


@app.command()
@grouped
def compare(
    data: Data = Path("data"),
    teacher: Teacher = Path("teacher"),
    out: Out = Path("comparison"),
    work: Work = Path("work"),
    methods: Annotated[str, typer.Option(help="Names separated by commas, or all.")] = "all",
    contenders: Annotated[
        Path | None,
        typer.Option(help="YAML list, name and parts of distill, train, student each; instead of methods."),
    ] = None,
    seeds: Seeds = "0,1,2",
    reference: Annotated[
        str | None,
        typer.Option(
            help="Name of the one that the others are compared with; kd, or the first of the contenders, unless given."
        ),
    ] = None,
    metric: Annotated[
        str, typer.Option(help="What they are compared by: top1, balanced_accuracy or macro_f1.")
    ] = "top1",
    *,
    configuration: Configuration,
) -> None:
    """Train named settings, or methods, with many seeds on one data set, and compare them, paired by seed."""
    from gkd_core.files import read_json
    from gkd_core.methods import METHODS

    if contenders is None and reference is not None and reference not in METHODS:
        raise GkdError(unknown("--reference", reference, METHODS))
    named = _listed(contenders)
    settings = configuration.read()
    numbers = whole_numbers(seeds, "--seeds", "0,1,2")
    from components import compare as comparison
    from pipelines.summary import show_comparison

    comparison.run(
        data=data,
        teacher=teacher,
        out=out,
        work=work,
        params=settings,
        methods=() if methods == "all" else [name.strip() for name in methods.split(",")],
        contenders=named,
        seeds=numbers,
        reference=reference,
        metric=metric,
    )
    found = read_json(out / "comparison.json", "the comparison")
    show_comparison(**found)
    finish({"path": str(out / "comparison.md"), **found})


@app.command()
@grouped
def frontier(
    data: Data = Path("data"),
    teacher: Teacher = Path("teacher"),
    out: Out = Path("frontier"),
    work: Work = Path("work"),
    students: Annotated[str, typer.Option(help="Names of networks separated by commas.")] = "",
    contenders: Annotated[
        Path | None,
        typer.Option(help="YAML list, name and parts of distill, train, student each; instead of students."),
    ] = None,
    seeds: Seeds = "0,1,2",
    max_latency_ms: Annotated[
        float | None, typer.Option(help="Recommend one whose median latency for one image is at most this.")
    ] = None,
    max_mb: Annotated[
        float | None, typer.Option(help="Recommend one whose float32 ONNX file has at most so many megabytes.")
    ] = None,
    *,
    configuration: Configuration,
) -> None:
    """Train students, measure what they cost on this machine, and say which one for a limit of time and size."""
    named = _listed(contenders)
    settings = configuration.read()
    numbers = whole_numbers(seeds, "--seeds", "0,1,2")
    from components import frontier as step
    from pipelines.summary import show_table

    found = step.run(
        data=data,
        teacher=teacher,
        out=out,
        work=work,
        params=settings,
        students=comma_separated(students),
        contenders=named,
        seeds=numbers,
        max_latency_ms=max_latency_ms,
        max_mb=max_mb,
    )
    show_table("Students, the fastest first", found.table())
    print(found.sentence(), file=sys.stderr)
    finish({"path": str(out / "frontier.md"), **found.as_dict()})


def _listed(contenders: Path | None) -> list[Any] | None:
    from gkd_core.config.contenders import parse_contenders
    from gkd_core.config.load import read_text

    return None if contenders is None else parse_contenders(read_text(contenders, "--contenders"), str(contenders))
