"""`gkd registry`: registered students."""

from typing import Annotated

import typer

from gkd_core.errors import GkdError
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
    reason: Annotated[
        str | None, typer.Option(help="Why; kept as a tag. Else the conditions, or `promoted by hand`.")
    ] = None,
    when: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CONDITION",
            help="Only if NAME>=NUMBER (<=, >, <) holds of its metrics in MLflow, or of live.NAME; repeatable.",
        ),
    ] = None,
    metrics: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="A server that serves the version, for live.NAME; repeatable, counts add up."),
    ] = None,
    *,
    configuration: Configuration,
) -> None:
    """Make a version champion; the champion before it stays reachable as previous_champion.

    With --when a refusal is a result, as the gate's is: exit 0 and `passed: false`, or 1 with gate.on_refusal: fail.
    """
    settings = configuration.read()
    from components.registry import promote, promote_when
    from gkd_core.gate import GateRefused

    if not when:
        if metrics:
            raise GkdError(
                "--metrics is what --when live.NAME… reads, and there is no --when: give one, or leave it out"
            )
        finish(promote(settings.tracking, version, reason=reason or "promoted by hand"))
        return
    found = promote_when(settings.tracking, version, when=when, metrics=metrics or (), reason=reason)
    if not found["passed"] and settings.gate.on_refusal == "fail":
        raise GateRefused(found["sentence"])
    finish(found)


@app.command("rollback")
@grouped
def registry_rollback(configuration: Configuration) -> None:
    """Make previous_champion champion again."""
    settings = configuration.read()
    from components.registry import rollback

    finish(rollback(settings.tracking))
