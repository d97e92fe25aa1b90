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
        str,
        typer.Option(
            metavar="PLACE",
            help="Folder of images, a sub-folder a class, or train/, val/, test/ of those; an archive of it; a list of "
            "images (.csv, .parquet); a Hugging Face data set on disk; or an address of any (s3://, gs://, https://).",
        ),
    ],
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="pretrained|none|FOLDER",
            help="What the networks start from: published weights, which the first run fetches; noise; or a folder "
            "with the files of those weights, NAME.safetensors. Without: pretrained for colour photos of more than 64 "
            "pixels, where timm is installed (gkd[hub]), else none.",
        ),
    ] = None,
    unlabelled: Annotated[
        Path | None,
        typer.Option(help="Folder of more images, without classes, on which the teacher's answers teach the student."),
    ] = None,
) -> None:
    """Make a project for images of your own: params.yaml with settings that fit, dvc.yaml, a Git and DVC repository."""
    from pipelines.project import create_project

    done = create_project(out, data, weights, unlabelled)
    print(f"gkd: {done['chosen']}", file=sys.stderr)
    for warning in done["warnings"]:
        print(f"gkd: {warning}", file=sys.stderr)
    print(f"next: cd {out} && dvc repro", file=sys.stderr)
    finish(done)
