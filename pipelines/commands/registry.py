"""`gkd registry`: registered students."""

from typing import Annotated

import typer

from pipelines.commands.options import Configuration, finish, grouped

app = typer.Typer(help="Registered students: list them, promote one, go back.", no_args_is_help=True)


@app.command("list")
@grouped
def registry_list(configuration: Configuration) -> None:
    """List the registered versions with aliases, accuracy and the gate's decision."""
    settings = configuration.read()
    from components.registry import list_versions
    from pipelines.summary import show_versions

    versions = list_versions(settings.tracking)
    show_versions(versions)
    finish(versions)


@app.command("promote")
@grouped
def registry_promote(
    version: Annotated[str, typer.Argument(help="A version number, or an alias such as challenger.")],
    reason: Annotated[str, typer.Option(help="Why; kept as a tag.")] = "promoted by hand",
    *,
    configuration: Configuration,
) -> None:
    """Make a version champion; the champion before it stays reachable as previous_champion."""
    settings = configuration.read()
    from components.registry import promote

    finish(promote(settings.tracking, version, reason=reason))


@app.command("rollback")
@grouped
def registry_rollback(configuration: Configuration) -> None:
    """Make previous_champion champion again."""
    settings = configuration.read()
    from components.registry import rollback

    finish(rollback(settings.tracking))
