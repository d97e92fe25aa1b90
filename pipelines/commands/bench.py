"""`gkd bench`: what a model costs on the machine at hand. Needs no torch."""

from pathlib import Path
from typing import Annotated

import typer

from pipelines.commands.options import comma_separated, finish, whole_numbers
from pipelines.commands.serving import MODEL_HELP, Precision, TrackingUri, refuse_unread_address

app = typer.Typer(help="Measure on this machine.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """A group even while it has one command."""


@app.command()
def deploy(
    model: Annotated[str, typer.Option(help=MODEL_HELP)] = "deploy",
    out: Annotated[Path, typer.Option(help="File to write, for gate.deploy_bench.")] = Path("deploy-bench.json"),
    providers: Annotated[
        str, typer.Option(help="onnxruntime's execution providers (cpu, cuda, openvino …), separated by commas.")
    ] = "cpu",
    threads: Annotated[str, typer.Option(help="onnxruntime's threads, numbers separated by commas.")] = "1",
    batches: Annotated[
        str, typer.Option(help="Images in a run, numbers separated by commas; the gate reads 1.")
    ] = "1,8,32",
    runs: Annotated[int, typer.Option(help="Timed runs of each.")] = 200,
    warmup: Annotated[int, typer.Option(help="Runs of each before any is timed.")] = 10,
    precision: Precision = "fp32",
    tracking_uri: TrackingUri = None,
) -> None:
    """Latency and throughput of an exported model on this machine, into a file that the gate reads.

    Every provider is measured with every number of threads and every batch. The gate reads the first of them with one
    image.
    """
    refuse_unread_address(model, tracking_uri)
    counts, sizes = whole_numbers(threads, "--threads", "1,2"), whole_numbers(batches, "--batches", "1,8,32")
    from components import bench as step
    from pipelines.summary import show_table

    found = step.run(
        model=model,
        out=out,
        providers=comma_separated(providers),
        threads=counts,
        batches=sizes,
        runs=runs,
        warmup=warmup,
        precision=precision,
        tracking_uri=tracking_uri,
    )
    show_table(f"{found.model['file']} on {found.hardware['processor']}, {found.runs} runs each", found.table())
    finish({"path": str(out), **found.as_dict()})
