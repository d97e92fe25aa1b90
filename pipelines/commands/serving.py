"""`gkd serve` and `gkd predict`: a finished student at work. Neither needs torch."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gkd_core.errors import GkdError
from pipelines.commands.options import finish

if TYPE_CHECKING:
    from gkd_core.serving.app import Serving

app = typer.Typer()

MODEL_HELP = "An ONNX file, a folder of `gkd export` or `gkd bundle`, or models:/NAME@ALIAS."
Precision = Annotated[
    str,
    typer.Option(
        help="Which of a folder's models: fp32, int8 or fp16. It runs on the CPU; fp16 is for Triton on a GPU."
    ),
]
TrackingUri = Annotated[
    str | None, typer.Option(help="MLflow's address for models:/…; else MLFLOW_TRACKING_URI, else ./mlflow.db.")
]

DAY = 86400.0


def _number(value: float) -> float:
    if math.isnan(value):  # it is neither below the least nor above the most
        raise typer.BadParameter("nan is no number.")
    return value


def _time(least: float, help: str, most: float = DAY) -> Any:
    return typer.Option(min=least, max=most, callback=_number, help=help)


def refuse_unread_address(model: str, tracking_uri: str | None) -> None:
    """Raises: GkdError: the address of a registry is given, and the model is not from one."""
    if tracking_uri is not None and not model.startswith("models:/"):
        raise GkdError(f"--tracking-uri is where models:/… are looked up, and {model} is none: leave it out")


@app.command()
def serve(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    name: Annotated[str | None, typer.Option(help="Of the model in paths; else its registered name.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is every one.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8080,
    precision: Precision = "fp32",
    tracking_uri: TrackingUri = None,
    poll_seconds: Annotated[float, _time(0.05, "Between polls for another model.")] = 10.0,
    max_batch: Annotated[
        int, typer.Option(min=1, max=1 << 16, help="Images in one request, and in one run of the model.")
    ] = 64,
    max_delay_ms: Annotated[
        float, _time(0, "How long an incomplete batch waits for more while the model is free.", most=60_000)
    ] = 0.0,
    batching: Annotated[bool, typer.Option(help="Put requests that wait together into one run.")] = True,
    queue: Annotated[
        int, typer.Option(min=1, max=1 << 20, help="Images that may wait; what comes on top is answered with 503.")
    ] = 512,
    threads: Annotated[
        int | None,
        typer.Option(min=1, max=1024, help="Within the model; else all cores but one, which reads requests."),
    ] = None,
    timeout: Annotated[float, _time(0.01, "Seconds a request may wait for its answer.")] = 30.0,
    max_request_bytes: Annotated[
        int, typer.Option(min=1024, max=1 << 31, help="Of a body, packed or unpacked.")
    ] = 16_777_216,
    max_pixels: Annotated[
        int, typer.Option(min=1, max=1 << 26, help="Of a picture, or of all in a request to NAME-pixels.")
    ] = 16_000_000,
    max_connections: Annotated[
        int, typer.Option(min=1, max=1 << 20, help="What comes on top is answered with 503.")
    ] = 1000,
    drain_seconds: Annotated[float, _time(0, "After SIGTERM: not ready, but still taking requests for so long.")] = 1.0,
    token_file: Annotated[
        Path | None,
        typer.Option(help="Holds the bearer token, read once at the start; else GKD_TOKEN; else there is none."),
    ] = None,
    log_requests: Annotated[bool, typer.Option(help="Log every request, not only failures.")] = False,
) -> None:
    """Serve a student over the Open Inference Protocol v2, with a page to try it at /.

    A changed file or a moved alias is served without a restart. Prints its address as JSON once it listens; logs go to
    stderr, metrics are at /metrics.
    """
    from components.model_source import default_name, open_source
    from gkd_core.cores import thread_limit
    from gkd_core.serving.authorisation import read_token
    from gkd_core.serving.limits import Limits
    from gkd_core.serving.logs import start_logging
    from gkd_core.serving.server import Settings
    from gkd_core.serving.server import serve as run

    if max_delay_ms and not batching:
        raise GkdError(f"--max-delay-ms {max_delay_ms:g} is how long a batch waits, and --no-batching makes none")
    refuse_unread_address(model, tracking_uri)
    if queue < max_batch:
        raise GkdError(f"--queue {queue} is smaller than --max-batch {max_batch}: a full request would never fit")
    token = read_token(token_file)
    source = open_source(model, precision=precision, tracking_uri=tracking_uri)
    settings = Settings(
        name=default_name(model) if name is None else name,
        host=host,
        port=port,
        limits=Limits(
            max_batch=max_batch,
            queue=queue,
            max_request_bytes=max_request_bytes,
            memory_bytes=max(16 * max_request_bytes, 4 * max_pixels),  # one request of pictures of any size, at least
            timeout=timeout,
            connections=max_connections,
            pixels=max_pixels,
        ),
        max_delay=max_delay_ms / 1000,
        batching=batching,
        threads=threads or max(1, thread_limit() - 1),
        poll_seconds=poll_seconds,
        drain_seconds=drain_seconds,
        token=token,
        log_requests=log_requests,
    )

    def started(url: str, serving: "Serving") -> None:
        now = serving.served.model
        print(
            json.dumps({"url": url, "name": serving.name, "version": now.version, "model_sha256": now.sha256}),
            flush=True,
        )

    start_logging()
    finish(run(source, settings, started=started))


@app.command()
def predict(
    images: Annotated[
        list[str],
        typer.Argument(help="Pictures; with -o also folders, lists (.csv, .parquet) and addresses.", metavar="IMAGES…"),
    ],
    model: Annotated[str, typer.Option(help=MODEL_HELP)] = "deploy",
    top: Annotated[int, typer.Option(min=1, help="Classes to show of each.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="A table instead: .csv, .parquet or .jsonl, a row a picture.")
    ] = None,
    sort_into: Annotated[
        Path | None, typer.Option(help="With -o: a new folder, to put the pictures into by class.")
    ] = None,
    copy: Annotated[
        bool | None, typer.Option("--copy/--link", help="What is put there; links unless copies are asked for.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, max=256, help="With -o: processes that decode; else one a core.")
    ] = None,
    precision: Precision = "fp32",
    tracking_uri: TrackingUri = None,
) -> None:
    """Classify pictures: class names, probabilities and the decision, on the screen or as a table.

    A table is written whole; stopped before that, the same command goes on where it was (docs/predicting.md).
    """
    refuse_unread_address(model, tracking_uri)
    _refuse_unread_options(images, out, sort_into, copy, workers, as_json)
    from components.model_source import load_model

    if out is not None:
        from gkd_core.prediction.predict import predict_to_table

        loaded = load_model(model, precision=precision, tracking_uri=tracking_uri)
        finish(predict_to_table(loaded, images, out, top=top, processes=workers, sort_into=sort_into, copy=bool(copy)))
        return
    from gkd_core.serving.classify import classify_files

    loaded = load_model(model, precision=precision, tracking_uri=tracking_uri)
    files = [Path(image) for image in images]
    found = classify_files(loaded, files, top)
    if as_json:
        finish([{"image": str(image), **answer} for image, answer in zip(files, found, strict=True)])
        return
    from gkd_core.decision import WORDS

    width = max(len(row["class"]) for answer in found for row in answer["predictions"])
    for image, answer in zip(files, found, strict=True):
        print(f"{image}: {WORDS}" if answer.get("decision", "") is None else image)
        for row in answer["predictions"]:
            print(f"  {row['class']:<{width}}  {100 * row['probability']:6.2f} %")


def _refuse_unread_options(
    images: list[str], out: Path | None, sort_into: Path | None, copy: bool | None, workers: int | None, as_json: bool
) -> None:
    """Raises: GkdError: options that nothing reads, or places that are answered with a table alone."""
    if out is not None and as_json:
        raise GkdError("--json is for the screen, and -o writes a table: leave one out, or name a .jsonl")
    if copy is not None and sort_into is None:
        raise GkdError(f"--{'copy' if copy else 'link'} is how pictures are put into a folder: give --sort-into")
    if out is not None:
        return
    for name, given in (("--sort-into", sort_into), ("--workers", workers)):
        if given is not None:
            raise GkdError(f"{name} is for a table, which -o names: give -o out.csv")
    from gkd_core.data.sources.address import is_address
    from gkd_core.data.sources.listing import ENDINGS

    for image in images:
        what = "an address" if is_address(image) else "a folder" if Path(image).is_dir() else "a list"
        if what != "a list" or image.lower().endswith(ENDINGS):
            raise GkdError(f"{image} is {what}: say where the table of its pictures goes, -o out.csv")
