"""One command a step, read from the table of steps, and the summary of a run; `dvc repro` chains them."""

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from components.graph import MAKER, REFERENCES, STEPS, Step
from gkd_core.errors import GkdError, unknown
from pipelines.commands.options import Configuration, Deploy, Out, Registration, Report, Work, finish, grouped

app = typer.Typer()


def _command(steps: list[Step]) -> Callable[..., None]:
    """The command of the steps that share one module; which of them is meant, `--reference` says."""
    options: dict[str, tuple[Any, Any]] = {}  # annotation and default
    for name in dict.fromkeys(folder for step in steps for folder in step.inputs):
        maker = MAKER[name].line
        if all(name in step.inputs for step in steps):
            options[name] = (Annotated[Path, typer.Option(help=f"Folder of `{maker}`.")], Path(name))
        else:
            words = f"Folder of `{maker}`; needed unless the method learns without one."
            options[name] = (Annotated[Path | None, typer.Option(help=words)], None)
    main = steps[-1]
    if len(steps) > 1:  # each writes its own folder
        words = f"Folder to write.  [default: {main.output}; of a reference its name]"
        options["out"] = (Annotated[Path | None, typer.Option(help=words)], None)
    else:
        options["out"] = (Out, Path(main.output))
    if main.trains:
        options["work"] = (Work, Path("work"))
        words = "Folder for the curves as DVCLive writes them, epoch by epoch; none are written unless given."
        options["dvclive"] = (Annotated[Path | None, typer.Option(help=words)], None)
    if len(steps) > 1:
        words = "`baseline` (student alone) or `kd` (plain soft labels) instead of the method."
        options["reference"] = (Annotated[str | None, typer.Option(help=words)], None)
    options["configuration"] = (Configuration, inspect.Parameter.empty)

    def run(*, configuration: Configuration, reference: str | None = None, **given: Any) -> None:
        step = next((step for step in steps if step.reference == reference), None)
        if step is None:
            raise GkdError(unknown("--reference", str(reference), REFERENCES))
        for name in MAKER:
            if given.get(name) is not None and name not in step.inputs:
                raise GkdError(f"`{step.line}` learns without --{name}: leave it out")
        settings = configuration.read()
        if "DVC_STAGE" in os.environ:  # others follow, and `sources` does not run each time; by hand nobody knows
            from pipelines.dvc import refuse_missing_places

            refuse_missing_places(settings, step)
        out = given.pop("out") or Path(step.output)
        finish(step.run(**{"work": Path("work"), **given}, out=out, params=settings))

    run.__name__, run.__doc__ = main.word, main.help
    run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=kind, default=default)
            for name, (kind, default) in options.items()
        ]
    )
    run.__annotations__ = {name: kind for name, (kind, _) in options.items()}
    return grouped(run)


for word in dict.fromkeys(step.word for step in STEPS):
    app.command(word)(_command([step for step in STEPS if step.word == word]))


@app.command(hidden=True)
@grouped
def sources(out: Out = Path("sources"), *, configuration: Configuration) -> None:
    """Write which source files each step's result depends on; a stage of dvc.yaml."""
    settings = configuration.read()
    from pipelines.dvc import write_sources

    finish(write_sources(out, settings))


@app.command()
def summary(
    report: Report = Path("report"),
    deploy: Deploy = Path("deploy"),
    registration: Registration = Path("registration"),
) -> None:
    """Show the outcome of a run: the table, the gate's decision, the registered version, the report."""
    from pipelines.summary import show_summary

    finish(show_summary(report=report, deploy=deploy, registration=registration))
