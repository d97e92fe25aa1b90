"""`gkd`, the command line. Heavy imports happen inside commands: `gkd --help` answers at once.

Progress goes to stderr; the last line on stdout is JSON. Exit codes: 0 done (a gate's refusal included), 1 the gate
refused and `gate.on_refusal` is fail, `gkd verify` found a link that does not hold, or `gkd check` found what prepare
refuses, 2 something given is wrong.
"""

import signal
import sys
import warnings
from typing import Annotated

import typer

from gkd_core import __version__
from gkd_core.errors import GkdError
from gkd_core.redact import redact
from pipelines.commands import (
    bench,
    bundle,
    check,
    compare,
    lists,
    pipeline,
    project,
    registry,
    search,
    serving,
    steps,
    verify,
)

app = typer.Typer(
    name="gkd",
    help="Distil a large image classifier into a small one: measured, packaged as ONNX, registered.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(project.app)
app.add_typer(check.app)
app.add_typer(steps.app)
app.add_typer(bundle.app)
app.add_typer(bench.app, name="bench")
app.add_typer(compare.app)
app.add_typer(search.app)
app.add_typer(lists.app)
app.add_typer(registry.app, name="registry")
app.add_typer(serving.app)
app.add_typer(verify.app)
app.add_typer(pipeline.app, name="pipeline")


def main() -> None:
    """Entry point: runs the command, turns what the user can fix into one sentence and exit code 2."""
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, _stopped)
    warnings.formatwarning = lambda message, *_, **__: f"gkd: {message}\n"
    try:
        app()
    except GkdError as error:
        print(f"gkd: {redact(str(error))}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:  # no permission, no space, a folder where a file should be
        where = f"{error.filename}: " if error.filename else ""
        print(f"gkd: {where}{error.strerror or error}: fix that and run the same command again", file=sys.stderr)
        sys.exit(2)


def _stopped(number: int, frame: object) -> None:
    """Leave in good order: what is half-written is swept away, a training's last checkpoint stays."""
    signal.signal(number, signal.SIG_IGN)
    print("gkd: interrupted; run the same command again to go on", file=sys.stderr)
    raise SystemExit(128 + number)


def _version(show: bool) -> None:
    if show:
        print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    pass


if __name__ == "__main__":
    main()
