"""What a report is made from."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gkd_core.decision import Decision
from gkd_core.evaluation.calibration import Reliability

if TYPE_CHECKING:
    from gkd_core.evaluation.frontier import Frontier
    from gkd_core.report.pictures import Pictures

# Roles in the order in which they are always shown, with the words for them.
ROLES = {"teacher": "teacher", "baseline": "student alone", "kd": "student, plain KD", "student": "student"}

Row = dict[str, float | None]


@dataclass(frozen=True)
class Findings:
    """Everything the page shows; nothing is computed there that a reader could look for elsewhere.

    Attributes:
        metrics: content of metrics.json; a network that was not trained is not in it.
        timings: content of timings.json.
        classes: names in label order.
        confidence: level of the intervals.
        histories: by role, a row an epoch (history.csv); absent for an imported teacher.
        schedule: rows with epoch, beta, learning_rate of the student's training.
        confusion: [C, C] test images of the student, actual by predicted class.
        reliability: by role.
        per_class: a row a class: name, support, precision, recall, f1, and {role}_recall of the others; None where
            undefined.
        training: the student's training.json.
        manifest: the deploy folder's manifest.json.
        configuration: the sections of params.yaml that the results depend on.
        frontier: students by accuracy and cost, where somebody trained several.
        pictures: of the test split, with what the networks say of them; None shows none.
        decision: of the float32 file, where it has one.
        risk_coverage: its curve on the test images: rows with threshold, coverage and risk.
    """

    metrics: dict[str, Any]
    timings: dict[str, Any]
    classes: tuple[str, ...]
    confidence: float
    histories: dict[str, list[Row]]
    schedule: list[Row]
    confusion: NDArray[np.int64]
    reliability: dict[str, Reliability]
    per_class: list[dict[str, Any]]
    training: dict[str, Any]
    manifest: dict[str, Any]
    configuration: dict[str, Any] = field(default_factory=dict)
    frontier: "Frontier | None" = None
    pictures: "Pictures | None" = None
    decision: Decision | None = None
    risk_coverage: list[dict[str, float]] = field(default_factory=list)

    @property
    def roles(self) -> dict[str, str]:
        """The roles that were measured, with their words; the student's names its method."""
        words = {**ROLES, "student": f"student, {self.training['method']}"}
        return {role: words[role] for role in ROLES if role in self.metrics}


def verdicts(metrics: dict[str, Any], confidence: float) -> list[dict[str, str]]:
    """What the student's differences to its references say, one sentence each, the comparison that counts first.

    Each has `tone`: "good" or "bad" where the interval leaves zero out, else "open".

    Args:
        metrics: content of metrics.json.
        confidence: level of its intervals.
    """
    sentences = []
    for role, other in (("baseline", "the same student trained alone"), ("kd", "the same student taught by plain KD")):
        difference = metrics["differences"].get(f"student_minus_{role}")
        if difference is None:
            continue
        points, low, high = (100 * difference[key] for key in ("difference", "low", "high"))
        if low > 0:
            tone, conclusion = "good", "more than chance explains"
        elif high < 0:
            tone, conclusion = "bad", "worse than chance explains"
        else:
            tone, conclusion = "open", "this test set cannot tell the two apart"
        sentences.append(
            {
                "tone": tone,
                "points": signed(points),
                "headline": f"points over {other}",
                "detail": f"{percent_level(confidence)} interval {signed(low)} to {signed(high)}: {conclusion}.",
            }
        )
    return sentences


def percent_level(confidence: float) -> str:
    """0.95 → 95 %, on one line."""
    return f"{100 * confidence:g}\u00a0%"


def signed(points: float) -> str:
    """+1.39 or −1.39."""
    return f"{points:+.2f}".replace("-", "−")
