"""From findings to the page: the sentences, the tables, the template."""

from functools import partial
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from gkd_core import __version__
from gkd_core.gate import WORDS
from gkd_core.report import figures
from gkd_core.report.decision import decision_section
from gkd_core.report.findings import Findings, percent_level, signed, verdicts
from gkd_core.report.forest import COLORS
from gkd_core.yaml_text import dump_yaml

if TYPE_CHECKING:
    from gkd_core.evaluation.frontier import Frontier

PAGE_BYTES = 5_000_000  # of the whole page, with its pictures
MOST_CLASSES = 2000  # in the table of classes
MARGIN = 10_000  # bytes, for sentences about pictures that were left out


def page_environment() -> Environment:
    """What the templates of this folder are rendered by: all is escaped, and a name that is not given is an error."""
    return Environment(
        loader=PackageLoader("gkd_core.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render_report(findings: Findings) -> str:
    """The whole report as one HTML document: no script, no address, nothing to fetch. All names are escaped.

    Its pictures are as large as `PAGE_BYTES` leave room for.
    """
    environment = page_environment()
    environment.filters |= {"percent": _percent, "count": _count, "bytes": _bytes}
    render = partial(
        environment.get_template("report.html.j2").render,
        findings=findings,
        version=__version__,
        metrics=findings.metrics,
        timings=findings.timings,
        level=percent_level(findings.confidence),
        roles=findings.roles,
        verdicts=verdicts(findings.metrics, findings.confidence),
        tiles=_tiles(findings),
        rows=_rows(findings),
        differences=_differences(findings),
        files=_files(findings),
        smaller=smaller_sentences(findings),
        figures={
            "comparison": figures.comparison(findings),
            "learning": figures.learning_curves(findings),
            "schedule": figures.schedule_and_terms(findings),
            "confusion": figures.confusion(findings),
            "calibration": figures.calibration(findings),
        },
        confusion_told=figures.cells_told(findings),
        worst_first=sorted(findings.per_class, key=lambda row: (row["recall"] is None, row["recall"], row["name"]))[
            :MOST_CLASSES
        ],
        frontier=None if findings.frontier is None else _frontier(findings.frontier),
        decision=decision_section(findings),
        configuration=dump_yaml(findings.configuration),
    )
    if findings.pictures is None:
        return render(sections=[], pictures={})
    sections = findings.pictures.sections()
    words = render(sections=sections, pictures={each: "" for section in sections for each in section.thumbnails()})
    sections, addresses = findings.pictures.fit(PAGE_BYTES - len(words.encode()) - MARGIN)
    return render(sections=sections, pictures=addresses)


def _frontier(frontier: "Frontier") -> dict[str, Any]:
    return {
        "sentence": frontier.sentence(),
        "notes": frontier.notes(),
        "table": frontier.table(),
        "plot": figures.in_page(frontier.plot(), "Accuracy of the students against what they cost", COLORS),
    }


def _tiles(findings: Findings) -> list[tuple[str, str, str]]:
    """Number, what it is, and what it stands beside."""
    student, teacher = findings.metrics["student"], findings.metrics["teacher"]
    onnx, timing = findings.metrics["onnx"], findings.timings["onnx"]
    ratio = teacher["parameters"] / student["parameters"]
    return [
        (_percent(student["top1"]), "top-1 of the student", f"teacher {_percent(teacher['top1'])}"),
        (f"{ratio:.1f} ×", "fewer parameters", f"{_count(student['parameters'])} of {_count(teacher['parameters'])}"),
        (f"{timing['latency_ms_p50']:.3g} ms", "an image", f"95th percentile {timing['latency_ms_p95']:.3g} ms"),
        (_bytes(onnx["onnx_bytes"]), "as ONNX", f"within {onnx['parity_max_abs']:.1e} of torch"),
    ]


def _rows(findings: Findings) -> list[dict[str, Any]]:
    best = max(measured["top1"] for role, measured in findings.metrics.items() if role in findings.roles)
    return [
        {
            "role": role,
            "label": label,
            "best": findings.metrics[role]["top1"] == best,
            **findings.metrics[role],
            **findings.timings[role],
        }
        for role, label in findings.roles.items()
    ]


def _differences(findings: Findings) -> list[dict[str, Any]]:
    """The student's differences to its references by every measure, in percentage points with their intervals."""
    found = []
    for role, label in findings.roles.items():
        measured = findings.metrics["differences"].get(f"student_minus_{role}", {})
        if "balanced_accuracy" in measured:
            by_metric = {metric: measured if metric == "top1" else measured[metric] for metric in WORDS}
            found.append(
                {
                    "label": label,
                    "cells": [
                        f"{signed(100 * one['difference'])} ({signed(100 * one['low'])} to {signed(100 * one['high'])})"
                        for one in by_metric.values()
                    ],
                }
            )
    return found


def smaller_sentences(findings: Findings) -> list[str]:
    """What became of int8 and float16: what is gained where there is a file, why there is none where there is not."""
    sentences = []
    for precision, word in (("int8", "int8"), ("fp16", "float16")):
        if precision not in findings.manifest:
            continue
        if precision not in findings.metrics:
            sentences.append(
                f"There is no {word} file: {findings.manifest[precision].get('reason', 'no reason given')}."
            )
            continue
        measured = findings.metrics[precision]
        ratio = findings.metrics["onnx"]["onnx_bytes"] / measured["onnx_bytes"]
        sentence = (
            f"The {word} file is {ratio:.1f} times smaller and names the same class as float32 on "
            f"{_percent(measured['agreement_with_fp32'])} of the test images"
        )
        if precision in findings.timings:
            speed = findings.timings["onnx"]["latency_ms_p50"] / findings.timings[precision]["latency_ms_p50"]
            pace = f"{speed:.2f} times as fast" if speed >= 1 else f"slower ({1 / speed:.2f} times the time)"
            sentence += f"; for one image on this machine it is {pace}"
        sentences.append(f"{sentence}.")
    return sentences


def _files(findings: Findings) -> list[dict[str, Any]]:
    """The files in the deploy folder as they were measured, float32 first."""
    found = []
    for precision, key in (("float32", "onnx"), ("int8", "int8"), ("float16", "fp16")):
        if key not in findings.metrics:
            continue
        entry = findings.manifest["model" if key == "onnx" else key]
        found.append({"precision": precision, "file": entry["file"], **findings.metrics[key]})
        found[-1]["latency"] = findings.timings.get(key, {}).get("latency_ms_p50")
        if (change := findings.metrics[key].get("difference_to_fp32")) is not None:
            points, low, high = (signed(100 * change[end]) for end in ("difference", "low", "high"))
            found[-1]["change"] = f"{points} ({low} to {high})"
    return found


def _percent(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def _count(number: int) -> str:
    """1,234 · 78.3 k · 1.25 M · 4.12 G"""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if number >= size:
            return f"{number / (1e3 if unit == 'k' else size):.3g} {unit}"
    return f"{number:,}"


def _bytes(size: int) -> str:
    return f"{size / 1e6:.2f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"
