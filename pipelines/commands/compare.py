"""`gkd compare`: settings, methods and students against each other, seed by seed."""

from pathlib import Path
from typing import Annotated

import typer

from gkd_core.errors import GkdError, unknown
from pipelines.commands.options import (
    Configuration,
    Data,
    Out,
    Teacher,
    Work,
    finish,
    grouped,
)

app = typer.Typer()


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
    seeds: Annotated[str, typer.Option(help="Separated by commas; three or more give an interval.")] = "0,1,2",
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
    from gkd_core.config.contenders import parse_contenders
    from gkd_core.config.load import read_text
    from gkd_core.files import read_json
    from gkd_core.methods import METHODS

    if contenders is None and reference is not None and reference not in METHODS:
        raise GkdError(unknown("--reference", reference, METHODS))
    named = None if contenders is None else parse_contenders(read_text(contenders, "--contenders"), str(contenders))
    settings = configuration.read()
    try:
        numbers = [int(seed) for seed in seeds.split(",")]
    except ValueError:
        raise GkdError(f"--seeds is {seeds!r}: give whole numbers separated by commas, such as 0,1,2") from None
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
