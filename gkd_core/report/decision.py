"""The report's section on the decision: what is given a class, how often it is the right one, what is refused."""

from typing import Any

from markupsafe import Markup

from gkd_core.report.figures import VARIABLES, drawing, svg
from gkd_core.report.findings import Findings

FILES = (("float32", None), ("int8", "int8"), ("float16", "fp16"))


def decision_section(findings: Findings) -> dict[str, Any] | None:
    """What the template shows; None where the model gives every image a class."""
    if findings.decision is None or "decision" not in findings.metrics:
        return None
    measured = [
        (file, findings.metrics["decision"] if key is None else findings.metrics[key]["decision"])
        for file, key in FILES
        if key is None or "decision" in findings.metrics.get(key, {})
    ]
    return {
        "sentences": list(findings.decision.words()),
        "rows": [{"file": file, **each} for file, each in measured],
        "unknown": findings.metrics["decision"].get("unknown"),
        "plot": risk_coverage_figure(findings),
    }


def risk_coverage_figure(findings: Findings) -> Markup:
    """Risk by coverage, and coverage and precision by threshold, with what was chosen."""
    curve, decision, color = findings.risk_coverage, findings.decision, VARIABLES["student"]
    measured = findings.metrics["decision"]
    coverage = [100 * row["coverage"] for row in curve]
    risk = [100 * row["risk"] for row in curve]
    with drawing("decision", 2, height=3.2) as (figure, axes):
        left, right = axes
        left.step(coverage, risk, where="post", color=color)
        if measured["precision"] is not None:
            chosen = 100 * measured["coverage"], 100 * (1 - measured["precision"])
            left.plot(*chosen, "o", color=VARIABLES["ink"], markersize=7, label="this model's threshold")
            left.legend(loc="best")
        if measured["asked"] == "precision":
            left.axhline(100 * (1 - measured["target"]), linestyle="--", color=VARIABLES["muted"], linewidth=1)
        left.set(
            title="Risk and coverage",
            xlabel="images that are given a class, %",
            ylabel="of these wrong, %",
            xlim=(0, 102),
            ylim=(0, None),
        )
        levels = [row["threshold"] for row in curve]
        right.plot(levels, coverage, color=VARIABLES["muted"], label="given a class")
        right.plot(levels, [100 - each for each in risk], color=color, label="of these right")
        if decision is not None and decision.threshold is not None and decision.thresholds is None:
            right.axvline(decision.threshold, linestyle="--", color=VARIABLES["ink"], linewidth=1)
        right.set(title="By threshold", xlabel="smallest score", ylabel="%", ylim=(0, 104))
        right.legend(loc="center right")
        return svg(figure, "Risk by coverage, and coverage and precision by threshold")
