"""`gkd bundle`: a folder that servers take."""

from pathlib import Path
from typing import Annotated

import typer

from pipelines.commands.options import Data, Deploy, Report, Student, finish

app = typer.Typer()


@app.command()
def bundle(
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    data: Data = Path("data"),
    student: Student = Path("student"),
    deploy: Deploy = Path("deploy"),
    report: Report = Path("report"),
    registration: Annotated[
        Path | None, typer.Option(help="Folder of `gkd register`; by default registration, where there is one.")
    ] = None,
    no_registration: Annotated[
        bool, typer.Option("--no-registration", help="Take nothing from the registration folder.")
    ] = False,
    name: Annotated[
        str | None, typer.Option(help="Name of the model on the servers; else that of the registered model.")
    ] = None,
    storage_uri: Annotated[
        str | None, typer.Option(help="For KServe: where the content of triton/ will lie (s3://…, gs://…, pvc://…).")
    ] = None,
    registry_uri: Annotated[
        str | None,
        typer.Option(help="For KServe: models:/NAME@ALIAS or models:/NAME/VERSION; else the registered version."),
    ] = None,
    service_account: Annotated[
        str | None, typer.Option(help="For KServe: the service account whose secrets open a private storage.")
    ] = None,
    precision: Annotated[str, typer.Option(help="Which file the servers take: fp32, int8 or fp16.")] = "fp32",
    canary: Annotated[
        int | None,
        typer.Option(
            metavar="PERCENT",
            help="For KServe: 1 to 99 percent of the requests go to this model, the rest to the one it serves already.",
        ),
    ] = None,
    web: Annotated[
        bool,
        typer.Option("--web", help="A page too that answers in the browser, from any server of static files (15 MB)."),
    ] = False,
    web_runtime: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE.tgz",
            help="What that page runs on, where npm cannot fetch it: an archive of `npm pack`; repeatable.",
        ),
    ] = None,
    image: Annotated[str | None, typer.Option(help="Container image of the server; else GKD_SERVE_IMAGE.")] = None,
) -> None:
    """Put together what Triton, KServe or `gkd serve` need, with README and model card."""
    from components.image import serve_image
    from gkd_core.errors import GkdError
    from gkd_core.export.bundle import write_bundle
    from gkd_core.export.web_runtime import read_runtime

    if registration is not None and no_registration:
        raise GkdError("--registration and --no-registration are both given: give one")
    if registration is None and Path("registration").is_dir() and not no_registration:
        registration = Path("registration")
    if web_runtime and not web:
        raise GkdError("--web-runtime is what the page of --web runs on: give --web too, or leave it out")
    finish(
        write_bundle(
            out,
            data=data,
            student=student,
            deploy=deploy,
            report=report,
            registration=registration,
            name=name,
            storage_uri=storage_uri,
            registry_uri=registry_uri,
            service_account=service_account,
            precision=precision,
            canary=canary,
            web=read_runtime(web_runtime or []) if web else None,
            image=image or serve_image(),
        )
    )
