"""`gkd verify`: does everything still belong together?"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gkd_core.errors import GkdError
from pipelines.commands.options import PARAMS, Configuration, Overrides, finish

if TYPE_CHECKING:
    from gkd_core.verify import Chain

app = typer.Typer()


@app.command()
def verify(
    target: Annotated[
        str,
        typer.Argument(metavar="DIR|models:/NAME@ALIAS", help="A run's folder, a deploy folder or bundle, a version."),
    ] = ".",
    server: Annotated[str | None, typer.Option(help="Also ask a running server what it serves.", metavar="URL")] = None,
    name: Annotated[
        str | None, typer.Option(help="What the server calls the model; else its registered name, or the bundle's.")
    ] = None,
    params: Annotated[
        Path | None,
        typer.Option(help="The configuration, for `tracking`; by default the one in DIR."),
    ] = None,
    overrides: Overrides = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="What cannot be walked breaks it too; --server stays optional.")
    ] = False,
) -> None:
    """See that data, teacher, student, ONNX file, report, registry and server belong together; exit 1 if not."""
    if name is not None and server is None:
        raise GkdError(f"--name {name!r} says what a server calls the model: give its address by --server, too")
    file = params or (PARAMS if target.startswith("models:/") else Path(target) / PARAMS)
    settings = Configuration(file, overrides).read() if params is not None or file.is_file() else None
    from components.verify import run
    from gkd_core.verify import Broken

    chain = run(target, server=server, name=name, tracking=None if settings is None else settings.tracking)
    gaps = [link for link in chain.links if not link.holds]
    if strict and chain.broken is None and (missing := [f"{gap.name} ({gap.found})" for gap in gaps if gap.wanted]):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        chain.broken = Broken(f"not verified: {missing[0]}{more}; --strict wants all")
    _show(chain, target)
    finish(
        {
            "target": target,
            "verified": chain.broken is None,
            "broken": None if chain.broken is None else str(chain.broken),
            "links": [{"link": link.name, "found": link.found} for link in chain.links if link.holds],
            "not_walked": [{"link": gap.name, "reason": gap.found} for gap in gaps],
        }
    )
    if chain.broken is not None:
        raise chain.broken


def _show(chain: "Chain", target: str) -> None:
    """The links as a table on stderr."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    screen = Console(stderr=True)
    if not screen.is_terminal:
        screen = Console(stderr=True, width=120)
    table = Table(title=f"verify {escape(target)}", title_justify="left")
    for heading in ("link", "", "found"):
        table.add_column(heading)
    for link in sorted(chain.links, key=lambda link: not link.holds):
        table.add_row(link.name, "[green]holds[/]" if link.holds else "[yellow]not verified[/]", escape(link.found))
    if chain.broken is not None:
        table.add_row("", "[red]broken[/]", escape(str(chain.broken)))
    screen.print(table)
