"""Tables for people: the outcome of a run, registered versions, a comparison."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gkd_core.files import read_json
from gkd_core.records import read_gate, read_metrics, read_version

ROWS = {
    "teacher": "teacher",
    "baseline": "student alone",
    "kd": "student, plain KD",
    "student": "student",
}


def console() -> Console:
    """As wide as the terminal, and wide enough for a table where there is none."""
    screen = Console()
    return screen if screen.is_terminal else Console(width=120)


def show_summary(*, report: Path, deploy: Path, registration: Path) -> dict[str, Any]:
    """Print the comparison, the gate's decision, the registered version and the report's path.

    Returns:
        The same as nested values, for the last line of output.
    Raises:
        GkdError: a step has not run yet.
    """
    metrics = read_metrics(report)
    timed = {role: {"latency_ms_p50": float} for role in ROWS if role in metrics}
    timings = read_json(report / "timings.json", "the report folder", shape=timed)
    described = {"model": {"file": str, "size_bytes": int}, "method": str, "parity": {"max_abs": float}}
    manifest = read_json(deploy / "manifest.json", "the deploy folder", shape=described)
    gate, version = read_gate(registration), read_version(registration)

    screen = console()
    table = Table(
        title=f"{metrics['data']['source']}, {metrics['data']['test_images']} test images", title_justify="left"
    )
    confidence = metrics["data"].get("confidence")
    level = "interval" if confidence is None else f"{100 * confidence:g} % interval"
    table.add_column("network")
    for heading in ("top-1", level, "balanced", "macro-F1", "parameters", "ONNX size", "latency p50"):
        table.add_column(heading, justify="right")
    for key, label in ROWS.items():
        if key not in metrics:
            continue
        row = metrics[key]
        table.add_row(
            f"{label}, {manifest['method']}" if key == "student" else label,
            f"{100 * row['top1']:.2f} %",
            f"{100 * row['top1_low']:.2f} – {100 * row['top1_high']:.2f}",
            *(f"{100 * row[name]:.2f} %" if name in row else "–" for name in ("balanced_accuracy", "macro_f1")),
            f"{row['parameters']:,}",
            f"{row['onnx_bytes'] / 1e6:.2f} MB",
            f"{timings[key]['latency_ms_p50']:.3f} ms",
        )
    screen.print(table)
    verdict = "[green]passed[/]" if gate["passed"] else "[yellow]refused[/]"
    screen.print(f"gate      {verdict}")
    for check in gate["reasons"]:
        screen.print(f"          {'✓' if check['passed'] else '✗'} {check['sentence']}", highlight=False)
    screen.print(
        f"registry  {version['name']} version {version['version']}, alias {version['alias'] or 'none'}", highlight=False
    )
    screen.print(f"ONNX      {deploy / manifest['model']['file']}", highlight=False)
    screen.print(f"report    {report / 'report.html'}", highlight=False)
    return {
        **{key: {"top1": metrics[key]["top1"]} for key in ROWS if key in metrics},
        "onnx": {
            "path": str(deploy / manifest["model"]["file"]),
            "bytes": manifest["model"]["size_bytes"],
            "parity_max_abs": manifest["parity"]["max_abs"],
        },
        "gate": {"passed": gate["passed"]},
        "registry": {"name": version["name"], "version": version["version"], "alias": version["alias"]},
        "report": {"path": str(report / "report.html")},
    }


def show_versions(versions: list[dict[str, Any]]) -> None:
    """Print registered versions, newest first."""
    table = Table()
    for heading in ("version", "aliases", "top-1", "gate", "created", "method", "manifest"):
        table.add_column(heading)
    for row in versions:
        top1 = row.get("top1")
        table.add_row(
            str(row["version"]),
            ", ".join(row["aliases"]),
            "" if top1 is None else f"{100 * float(top1):.2f} %",
            str(row.get("gate", "")),
            str(row.get("created", "")),
            str(row.get("method", "")),
            str(row.get("manifest", ""))[:12],
        )
    console().print(table)


def show_comparison(pairs: dict[str, list[dict[str, Any]]], reference: str, metric: str = "top1") -> None:
    """Print a comparison's standings, a table a pair of teacher and student."""
    from gkd_core.evaluation.comparison import ACCURACY, expect_metric, table  # scipy is not in every installation
    from gkd_core.gate import WORDS

    words = WORDS[expect_metric(metric)]
    for pair, rows in pairs.items():
        headings, *lines = table(rows, reference)
        headings[headings.index(ACCURACY)] = f"{words}, {ACCURACY}"
        show_table(pair, [headings, *lines])


def show_table(title: str, lines: Sequence[Sequence[str]]) -> None:
    """Print a table whose first column names what a row is about, and whose last says something of it.

    Args:
        lines: the headings, then the cells of each row.
    """
    headings, *rows = lines
    shown = Table(title=escape(title), title_justify="left")
    for place, heading in enumerate(headings):
        shown.add_column(escape(heading), justify="right" if 0 < place < len(headings) - 1 else "left")
    for cells in rows:
        shown.add_row(*map(escape, cells))
    console().print(shown)
