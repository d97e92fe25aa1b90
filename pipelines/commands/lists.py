"""What there is to choose from: methods, schemes, parameters."""

from typing import Annotated

import typer

from gkd_core.errors import GkdError
from pipelines.commands.options import finish

app = typer.Typer()


@app.command()
def methods(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="As docs/methods.md.")] = False,
) -> None:
    """List the distillation methods and schemes with their hyperparameters."""
    from pipelines.catalogue import method_rows, methods_markdown, scheme_rows, show_methods

    if as_json and markdown:
        raise GkdError("--json and --markdown are both given: give one")
    if as_json:
        finish([*method_rows(), *scheme_rows()])
    elif markdown:
        print(methods_markdown(), end="")
    else:
        show_methods()


@app.command()
def params(
    markdown: Annotated[bool, typer.Option("--markdown", help="As the table in docs/parameters.md.")] = False,
) -> None:
    """List all parameters of params.yaml with defaults and meaning."""
    from pipelines.catalogue import parameters_markdown, show_parameters

    if markdown:
        print(parameters_markdown(), end="")
    else:
        show_parameters()
