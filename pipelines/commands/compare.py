"""`gkd compare`: methods against each other, seed by seed."""

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
    seeds: Annotated[str, typer.Option(help="Separated by commas; three or more give an interval.")] = "0,1,2",
    reference: Annotated[str, typer.Option(help="The method that the others are compared with.")] = "kd",
    metric: Annotated[
        str, typer.Option(help="What they are compared by: top1, balanced_accuracy or macro_f1.")
    ] = "top1",
    *,
    configuration: Configuration,
) -> None:
    """Train the student by many methods and seeds on one budget, and compare them, paired by seed."""
    from gkd_core.methods import METHODS

    if reference not in METHODS:
        raise GkdError(unknown("--reference", reference, METHODS))
    settings = configuration.read()
    try:
        numbers = [int(seed) for seed in seeds.split(",")]
    except ValueError:
        raise GkdError(f"--seeds is {seeds!r}: give whole numbers separated by commas, such as 0,1,2") from None
    from components import compare as comparison
    from pipelines.summary import show_comparison

    found = comparison.run(
        data=data,
        teacher=teacher,
        out=out,
        work=work,
        params=settings,
        methods=() if methods == "all" else [name.strip() for name in methods.split(",")],
        seeds=numbers,
        reference=reference,
        metric=metric,
    )
    show_comparison(found, reference, metric)
    finish({"path": str(out / "comparison.md"), "reference": reference, "metric": metric, "pairs": found})
