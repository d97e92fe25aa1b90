"""`gkd init`: a project of one's own."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from pipelines.commands.options import finish

app = typer.Typer()


@app.command()
def init(
    out: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to make.")],
    data: Annotated[
        Path, typer.Option(help="Folder of images, a sub-folder a class; or train/, val/, test/ of those.")
    ],
) -> None:
    """Make a project for a folder of images: params.yaml with settings that fit, dvc.yaml, a Git and DVC repository."""
    from pipelines.project import create_project

    done = create_project(out, data)
    for warning in done["warnings"]:
        print(f"gkd: {warning}", file=sys.stderr)
    print(f"next: cd {out} && dvc repro", file=sys.stderr)
    finish(done)
