"""`gkd check`: what is wrong with a data set?"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.commands.options import PARAMS, Configuration, Out, Overrides, finish

if TYPE_CHECKING:
    from gkd_core.config import Params
    from gkd_core.data.health import Health

app = typer.Typer()


@app.command()
def check(
    place: Annotated[
        str | None,
        typer.Argument(
            metavar="FOLDER",
            help="Folder of images, or an archive or a list of them, or an address; else `data` of the configuration.",
        ),
    ] = None,
    out: Out = Path("health"),
    fix_list: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write what to remove, and why, as CSV.")
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|torchvision:WEIGHTS", help="Also look for wrong labels: by the embeddings of this network."
        ),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings are errors, too.")] = False,
    params: Annotated[Path | None, typer.Option(help="The configuration; without FOLDER params.yaml is read.")] = None,
    overrides: Overrides = None,
) -> None:
    """Look for duplicates, leaks between splits, unreadable and empty pictures, and scarce classes; exit 1 on an error.

    An error is what `gkd prepare` would refuse; all else is a warning. A configuration that names a file or a folder
    which is not there (`decide.unknown`, `student.weights`, …) is refused.
    """
    settings = _settings(place, params, overrides or [])
    if place is None:
        from pipelines.dvc import refuse_missing_places

        refuse_missing_places(settings)
    from components.check import run
    from gkd_core.data.health import removals

    option = "data.root" if place is None else "FOLDER"
    health = run(out=out, params=settings, fix_list=fix_list, teacher=teacher, option=option)
    _show(health, out / "health.html")
    found = health.by_kind()
    finish(
        {
            "path": str(out),
            "images": len(health.looks),
            "errors": len(health.errors),
            "left_out": len(health.source.left_out),
            "findings": {kind: len(each) for kind, each in found.items()},
            "to_remove": len(removals(health)),
            "fix_list": None if fix_list is None else str(fix_list),
        }
    )
    if health.errors or (strict and health.findings):
        raise typer.Exit(1)


def _settings(place: str | None, params: Path | None, overrides: list[str]) -> "Params":
    """What is given; beside a place nobody needs a params.yaml, and one that lies about is of other images."""
    from gkd_core.config import override, parse_params

    if place is None:
        return Configuration(params or PARAMS, overrides).read()
    from gkd_core.data.sources import files_of

    given = [override("data.source", files_of(place)), override("data.root", place), *overrides]
    return parse_params({}, given) if params is None else Configuration(params, given).read()


def _show(health: "Health", page: Path) -> None:
    """The findings as a table on stderr."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    screen = Console(stderr=True)
    if not screen.is_terminal:
        screen = Console(stderr=True, width=120)
    title = f"{len(health.looks):,} images, {len(health.source.classes)} classes; more in {page}"
    table = Table(title=escape(title), title_justify="left")
    for heading in ("", "found", "such as"):
        table.add_column(heading)
    for kind, found in health.by_kind().items():
        first = max(found, key=lambda finding: finding.error)
        names = ", ".join(look.name for look in first.looks[:2])
        colour = "red" if first.error else "yellow"
        table.add_row(
            f"[{colour}]{kind}[/]", str(len(found)), escape(f"{names}: {first.detail}" if names else first.detail)
        )
    if left_out := health.source.left_out:
        table.add_row("left out", str(len(left_out)), escape(f"{left_out[0].name}: {left_out[0].reason}"))
    if not health.findings:
        table.add_row("[green]nothing[/]", "", "")
    screen.print(table)
