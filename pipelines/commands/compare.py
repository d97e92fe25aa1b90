"""`gkd compare`, `gkd frontier`: settings, methods and students against each other, seed by seed."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from gkd_core.errors import GkdError
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


@dataclass
class Trials:
    """Which trainings: of whom, with which seeds, on what."""

    data: Data = Path("data")
    teacher: Teacher = Path("teacher")
    work: Work = Path("work")
    contenders: Annotated[
        Path | None,
        typer.Option(help="YAML list, name and parts of distill, train, student each, instead of names."),
    ] = None
    seeds: Annotated[str, typer.Option(help="Separated by commas; three or more give an interval.")] = "0,1,2"

    def read(self, configuration: Configuration) -> dict[str, Any]:
        """Arguments of `run` in the components of both commands.

        Raises:
            GkdError: the file of contenders is no list, a parameter is wrong, or a seed no number.
        """
        from gkd_core.config.contenders import parse_contenders
        from gkd_core.config.load import read_text

        listed = None
        if self.contenders is not None:
            listed = parse_contenders(read_text(self.contenders, "--contenders"), str(self.contenders))
        return {
            "data": self.data,
            "teacher": self.teacher,
            "work": self.work,
            "params": configuration.read(),
            "contenders": listed,
            "seeds": whole_numbers(self.seeds, "--seeds", "0,1,2"),
        }


@app.command()
@grouped
def compare(
    trials: Trials,
    out: Out = Path("comparison"),
    methods: Annotated[str, typer.Option(help="Names separated by commas, or all.")] = "all",
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
    from gkd_core.methods import METHODS, is_method
    from gkd_core.plugins import unknown_name

    given = trials.read(configuration)  # which loads the plugins that it names
    if trials.contenders is None and reference is not None and not is_method(reference):
        raise GkdError(unknown_name("--reference", reference, METHODS))
    from components import compare as comparison
    from pipelines.summary import show_comparison

    comparison.run(
        **given,
        out=out,
        methods=() if methods == "all" else [name.strip() for name in methods.split(",")],
        reference=reference,
        metric=metric,
    )
    found = read_json(out / "comparison.json", "the comparison")
    show_comparison(**found)
    finish({"path": str(out / "comparison.md"), **found})


@app.command()
@grouped
def frontier(
    trials: Trials,
    out: Out = Path("frontier"),
    students: Annotated[str, typer.Option(help="Names of networks separated by commas.")] = "",
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
    given = trials.read(configuration)
    from components import frontier as step
    from pipelines.summary import show_table

    found = step.run(
        **given,
        out=out,
        students=comma_separated(students),
        max_latency_ms=max_latency_ms,
        max_mb=max_mb,
    )
    show_table("Students, the fastest first", found.table())
    print(found.sentence(), file=sys.stderr)
    finish({"path": str(out / "frontier.md"), **found.as_dict()})
