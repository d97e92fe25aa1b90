"""`gkd search`: the best settings by validation, within a budget."""

import math
import sys
from pathlib import Path
from typing import Annotated

import typer

from gkd_core.errors import GkdError
from pipelines.commands.options import Configuration, Data, Out, Teacher, Work, finish, grouped, whole_numbers

app = typer.Typer()


@app.command()
@grouped
def search(
    space: Annotated[Path, typer.Argument(help="YAML: parameters as --set takes them, with ranges or choices.")],
    data: Data = Path("data"),
    teacher: Teacher = Path("teacher"),
    out: Out = Path("search"),
    work: Work = Path("work"),
    trials: Annotated[
        int | None, typer.Option(min=1, help="Settings to try, those of earlier runs included; 20 without a budget.")
    ] = None,
    minutes: Annotated[float | None, typer.Option(min=0, help="Begin no trial after so many minutes.")] = None,
    each: Annotated[
        str | None,
        typer.Option(
            metavar="KEY", help="Each choice of this, distill.method say, is a study with a budget of its own."
        ),
    ] = None,
    seeds: Annotated[str, typer.Option(help="Of each setting's trainings, separated by commas.")] = "0",
    workers: Annotated[int, typer.Option(min=1, max=256, help="Processes side by side on this machine.")] = 1,
    storage: Annotated[
        str | None,
        typer.Option(
            envvar="OPTUNA_STORAGE",
            help="Database of the trials, such as postgresql://HOST/NAME; a SQLite file in --work unless given.",
            show_default=False,
        ),
    ] = None,
    study: Annotated[
        str | None, typer.Option(help="Name in the database; unless given, one for what the trials depend on.")
    ] = None,
    sampler_seed: Annotated[int, typer.Option(min=0, help="Seed of what is drawn.")] = 0,
    prune: Annotated[
        bool, typer.Option("--prune/--no-prune", help="Stop trials that do worse than the median of the others.")
    ] = True,
    *,
    configuration: Configuration,
) -> None:
    """Search the best settings on the validation images: TPE, trials that do worse than the median stopped early."""
    from gkd_core.config.load import read_text
    from gkd_core.config.space import parse_space

    content = parse_space(read_text(space, "another"), str(space))
    settings = configuration.read()
    seeds_of_trainings = whole_numbers(seeds, "--seeds", "0,1")
    if minutes is not None and not 0 < minutes < math.inf:
        raise GkdError(f"--minutes is {minutes:g}: give a number above 0")
    from components import search as step
    from gkd_core.searching.study import Budget
    from pipelines.summary import show_table

    plan = step.Plan(
        data=data,
        teacher=teacher,
        work=work,
        params=settings,
        space=content,
        each=each,
        seeds=seeds_of_trainings,
        storage=storage,
        study=study,
        seed=sampler_seed,
        prune=prune,
    )
    limit = step.TRIALS if trials is None and minutes is None else trials
    found = step.run(plan, out=out, budget=Budget(limit, minutes), workers=workers)
    for title, table in found.tables().items():
        show_table(title, table)
    print(found.sentence(), file=sys.stderr)
    best = found.as_dict()["best"]
    finish({"path": str(out / "search.html"), "params": str(out / "best.yaml"), **best})
