"""What a report is made from."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gkd_core.evaluation.calibration import Reliability

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

    @property
    def roles(self) -> dict[str, str]:
        """The roles that were measured, with their words; the student's names its method."""
        words = {**ROLES, "student": f"student, {self.training['method']}"}
        return {role: words[role] for role in ROLES if role in self.metrics}
