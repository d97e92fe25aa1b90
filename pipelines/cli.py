"""`gkd`, the command line. Heavy imports happen inside commands: `gkd --help` answers at once.

Progress goes to stderr; the last line on stdout is JSON. Exit codes: 0 done (a gate's refusal included), 1 the gate
refused and `gate.on_refusal` is fail, 2 something given is wrong.
"""

import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gkd_core import __version__
from gkd_core.errors import GkdError

if TYPE_CHECKING:
    from gkd_core.config import Params

app = typer.Typer(
    name="gkd",
    help="Distil a large image classifier into a small one: measured, packaged as ONNX, registered.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
registry = typer.Typer(help="Registered students: list them, promote one, go back.", no_args_is_help=True)
app.add_typer(registry, name="registry")

ParamsFile = Annotated[Path, typer.Option("--params", help="The configuration.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a parameter; repeatable.")
]
Data = Annotated[Path, typer.Option(help="Folder of `gkd prepare`.")]
Teacher = Annotated[Path, typer.Option(help="Folder of `gkd teacher`.")]
Student = Annotated[Path, typer.Option(help="Folder of `gkd distill`.")]
Baseline = Annotated[Path, typer.Option(help="Folder of `gkd distill --reference baseline`.")]
Kd = Annotated[Path, typer.Option(help="Folder of `gkd distill --reference kd`.")]
Deploy = Annotated[Path, typer.Option(help="Folder of `gkd export`.")]
Report = Annotated[Path, typer.Option(help="Folder of `gkd evaluate`.")]
Registration = Annotated[Path, typer.Option(help="Folder of `gkd register`.")]
Out = Annotated[Path, typer.Option(help="Folder to write.")]
Work = Annotated[Path, typer.Option(help="Checkpoints live here.")]
PARAMS = Path("params.yaml")


def main() -> None:
    """Entry point: runs the command, turns what the user can mend into one sentence and exit code 2."""
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, _stopped)
    try:
        app()
    except GkdError as error:
        print(f"gkd: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:  # no permission, no space, a folder where a file should be
        where = f"{error.filename}: " if error.filename else ""
        print(f"gkd: {where}{error.strerror or error}: mend that and run the same command again", file=sys.stderr)
        sys.exit(2)


def _stopped(number: int, frame: object) -> None:
    """Leave in good order: what is half-written is swept away, a training's last checkpoint stays."""
    signal.signal(number, signal.SIG_IGN)
    print("gkd: interrupted; run the same command again to go on", file=sys.stderr)
    raise SystemExit(128 + number)


def _params(file: Path, overrides: list[str] | None) -> "Params":
    from gkd_core.config import load_params

    return load_params(file, overrides or [])


def _finish(summary: Any) -> None:
    print(json.dumps(summary, default=str))


def _version(show: bool) -> None:
    if show:
        print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    pass


@app.command()
def prepare(out: Out = Path("data"), params: ParamsFile = PARAMS, overrides: Overrides = None) -> None:
    """Read the images, split them, and write the prepared format."""
    settings = _params(params, overrides)
    from components import prepare as step

    _finish(step.run(out=out, params=settings))


@app.command()
def teacher(
    data: Data = Path("data"),
    out: Out = Path("teacher"),
    work: Work = Path("work"),
    params: ParamsFile = PARAMS,
    overrides: Overrides = None,
) -> None:
    """Train the teacher, or check and import `teacher.source`."""
    settings = _params(params, overrides)
    from components import teacher as step

    _finish(step.run(data=data, out=out, work=work, params=settings))


@app.command()
def distill(
    data: Data = Path("data"),
    teacher: Annotated[
        Path | None, typer.Option(help="Folder of `gkd teacher`; needed unless the method learns without one.")
    ] = None,
    out: Out = Path("student"),
    work: Work = Path("work"),
    reference: Annotated[
        str | None, typer.Option(help="`baseline` (student alone) or `kd` (plain soft labels) instead of the method.")
    ] = None,
    params: ParamsFile = PARAMS,
    overrides: Overrides = None,
) -> None:
    """Train the student by `distill.method`, or one of the references it is compared with."""
    from gkd_core.errors import unknown

    if reference not in (None, "baseline", "kd"):
        raise GkdError(unknown("--reference", str(reference), ["baseline", "kd"]))
    settings = _params(params, overrides)
    from components import distill as step

    _finish(step.run(data=data, teacher=teacher, out=out, work=work, params=settings, reference=reference))  # type: ignore[arg-type]


@app.command()
def export(
    data: Data = Path("data"),
    teacher: Teacher = Path("teacher"),
    student: Student = Path("student"),
    out: Out = Path("deploy"),
    params: ParamsFile = PARAMS,
    overrides: Overrides = None,
) -> None:
    """Package the student as ONNX, check it against torch, and write its manifest."""
    settings = _params(params, overrides)
    from components import export as step

    _finish(step.run(data=data, teacher=teacher, student=student, out=out, params=settings))


@app.command()
def evaluate(
    data: Data = Path("data"),
    teacher: Teacher = Path("teacher"),
    baseline: Baseline = Path("baseline"),
    kd: Kd = Path("kd"),
    student: Student = Path("student"),
    deploy: Deploy = Path("deploy"),
    out: Out = Path("report"),
    params: ParamsFile = PARAMS,
    overrides: Overrides = None,
) -> None:
    """Measure all networks and the final ONNX on the test split, and write the report."""
    settings = _params(params, overrides)
    from components import evaluate as step

    _finish(
        step.run(
            data=data,
            teacher=teacher,
            baseline=baseline,
            kd=kd,
            student=student,
            deploy=deploy,
            out=out,
            params=settings,
        )
    )


@app.command()
def register(
    teacher: Teacher = Path("teacher"),
    baseline: Baseline = Path("baseline"),
    kd: Kd = Path("kd"),
    student: Student = Path("student"),
    deploy: Deploy = Path("deploy"),
    report: Report = Path("report"),
    out: Out = Path("registration"),
    params: ParamsFile = PARAMS,
    overrides: Overrides = None,
) -> None:
    """Log the runs in MLflow, register the student as challenger, and let the gate decide on champion."""
    settings = _params(params, overrides)
    from components import register as step

    _finish(
        step.run(
            teacher=teacher,
            baseline=baseline,
            kd=kd,
            student=student,
            deploy=deploy,
            report=report,
            out=out,
            params=settings,
        )
    )


@app.command()
def summary(
    report: Report = Path("report"),
    deploy: Deploy = Path("deploy"),
    registration: Registration = Path("registration"),
) -> None:
    """Show the outcome of a run: the table, the gate's decision, the registered version, the report."""
    from pipelines.summary import show_summary

    _finish(show_summary(report=report, deploy=deploy, registration=registration))


@app.command()
def methods(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="As docs/methods.md.")] = False,
) -> None:
    """List the distillation methods and arrangements with their hyperparameters."""
    from pipelines.catalogue import arrangement_rows, method_rows, methods_markdown, show_methods

    if as_json:
        _finish([*method_rows(), *arrangement_rows()])
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


@registry.command("list")
def registry_list(params: ParamsFile = PARAMS, overrides: Overrides = None) -> None:
    """List the registered versions with aliases, accuracy and the gate's decision."""
    settings = _params(params, overrides)
    from components.registry import list_versions
    from pipelines.summary import show_versions

    versions = list_versions(settings.tracking)
    show_versions(versions)
    _finish(versions)


@registry.command("promote")
def registry_promote(
    version: Annotated[str, typer.Argument(help="A version number, or an alias such as challenger.")],
    reason: Annotated[str, typer.Option(help="Why; kept as a tag.")] = "promoted by hand",
    params: ParamsFile = PARAMS,
    overrides: Overrides = None,
) -> None:
    """Make a version champion; the champion before it stays reachable as previous_champion."""
    settings = _params(params, overrides)
    from components.registry import promote

    _finish(promote(settings.tracking, version, reason=reason))


@registry.command("rollback")
def registry_rollback(params: ParamsFile = PARAMS, overrides: Overrides = None) -> None:
    """Make previous_champion champion again."""
    settings = _params(params, overrides)
    from components.registry import rollback

    _finish(rollback(settings.tracking))


if __name__ == "__main__":
    main()
