"""`gkd pipeline compile|run`: the steps as a Kubeflow pipeline, as a file or on this machine."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from pipelines.commands.groups import grouped
from pipelines.commands.options import Arguments, Configuration, Parallelism, finish

app = typer.Typer(
    help="The steps as a Kubeflow pipeline: a file, a run here, a run on a cluster.", no_args_is_help=True
)

Which = Annotated[str, typer.Option("--pipeline", help="distillation, or sweep (methods × pairs × seeds).")]


@app.command("compile")
@grouped
def compile_(
    out: Annotated[Path, typer.Option("--out", "-o", help="YAML file to write.")],
    profile: Annotated[
        str | None,
        typer.Option(help="What the cluster gives: cpu, gpu, multi-gpu, multi-node, or a file; none asks for nothing."),
    ] = None,
    pipeline: Which = "distillation",
    parallelism: Parallelism = None,
    *,
    configuration: Configuration,
) -> None:
    """Write the pipeline as YAML for Kubeflow Pipelines; params.yaml and --set become its arguments' defaults."""
    from pipelines.compiled import compile_pipeline

    done = compile_pipeline(
        out,
        params=configuration.params,
        overrides=configuration.overrides,
        profile=profile,
        which=pipeline,
        parallelism=parallelism,
        warn=True,
    )
    warn_of_moving_image()
    finish(done)


@app.command("run")
@grouped
def run(
    runner: Annotated[str, typer.Option(help="subprocess (no Docker), or docker.")] = "subprocess",
    out: Annotated[Path, typer.Option(help="Folder for the artifacts, the checkpoints and the log.")] = Path(
        "pipeline-run"
    ),
    pipeline: Which = "distillation",
    parallelism: Parallelism = None,
    *,
    arguments: Arguments,
    user: Annotated[str | None, typer.Option(help="UID:GID that containers run as; you without.")] = None,
    configuration: Configuration,
) -> None:
    """Run the pipeline on this machine, through kfp's local runner; the artifacts stay in --out."""
    if runner == "docker":
        from components.image import image
        from pipelines.compiled import refuse_no_image

        refuse_no_image(image())
        warn_of_moving_image()
    from pipelines.local import run_pipeline

    done = run_pipeline(
        runner=runner,
        params=configuration.params,
        overrides=configuration.overrides,
        out=out,
        which=pipeline,
        arguments=arguments.given(),
        user=user,
        parallelism=parallelism,
    )
    from pipelines.summary import show_summary

    if pipeline == "distillation":
        done |= show_summary(report=out / "report", deploy=out / "deploy", registration=out / "registration")
    finish(done)


def warn_of_moving_image() -> None:
    """Say on stderr that the image may be another one tomorrow."""
    from components.image import image, moving

    if moving(image()):
        print(
            f"gkd: GKD_IMAGE is {image()}, which may be another image tomorrow, and a cluster's cache would not "
            "notice: give a version, a commit or a digest (NAME@sha256:…)",
            file=sys.stderr,
        )
