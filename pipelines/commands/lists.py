"""What there is to choose from: methods, schemes, parameters."""

from pathlib import Path
from typing import Annotated

import typer

from gkd_core.errors import GkdError
from pipelines.commands.options import PARAMS, Configuration, finish, grouped

app = typer.Typer()


@app.command()
def methods(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="As docs/methods.md.")] = False,
    params: Annotated[
        Path | None, typer.Option(help="Whose plugins are listed, too; ./params.yaml where it is there.")
    ] = None,
) -> None:
    """List the distillation methods and schemes with their hyperparameters, and what plugins bring."""
    from gkd_core.config import load_plugins
    from gkd_core.plugins import load_installed
    from pipelines.catalogue import method_rows, methods_markdown, plugin_rows, scheme_rows, show_methods

    if as_json and markdown:
        raise GkdError("--json and --markdown are both given: give one")
    if markdown:
        print(methods_markdown(), end="")
        return
    load_installed()
    if params is not None or PARAMS.is_file():
        load_plugins(params or PARAMS)
    if as_json:
        finish([*method_rows(), *scheme_rows(), *plugin_rows()])
    else:
        show_methods()


@app.command()
@grouped
def params(
    markdown: Annotated[bool, typer.Option("--markdown", help="As the table in docs/parameters.md.")] = False,
    effective: Annotated[bool, typer.Option("--effective", help="What a run of --params would use, and why.")] = False,
    data: Annotated[
        Path | None, typer.Option(help="With --effective: folder of `gkd prepare`; ./data where it is there.")
    ] = None,
    *,
    configuration: Configuration,
) -> None:
    """List all parameters of params.yaml with defaults and meaning, or those that a run would use."""
    from pipelines.catalogue import parameters_markdown, show_parameters

    if effective and markdown:
        raise GkdError("--effective and --markdown are both given: give one")
    if not effective and (data is not None or configuration != Configuration()):
        raise GkdError("--params, --set and --data say what --effective shows: add it, or leave them out")
    if effective:
        from pipelines.effective import show_effective

        finish(show_effective(configuration.read(), data))
    elif markdown:
        print(parameters_markdown(), end="")
    else:
        show_parameters()
