"""What a served model answers, counted by class, beside what it answered on the validation images: drift shows there.
Where the model decides, also how often it said "none of these".

Counting is some operations of numpy a run, in the model's thread; `metrics.py` makes lines of them when somebody asks.
"""

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gkd_core.export.reference import confidences


class Answers:
    """What one model has answered since it was opened.

    Args:
        classes: C names, each once.
        reference: what the manifest has of the validation images; see `gkd_core.export.reference`.
    """

    def __init__(self, classes: tuple[str, ...], reference: Mapping[str, Any]) -> None:
        self.classes = classes
        self.reference = reference
        self._lock = threading.Lock()
        self._predicted = np.zeros(len(classes), np.int64)
        self._confidence = 0.0

    def add(self, logits: NDArray[np.float32]) -> None:
        """Count the answers [B, C] of a run; one with a logit that is not finite names no class."""
        found = confidences(logits)
        named = logits.argmax(axis=1)
        if not (finite := np.isfinite(found)).all():
            found, named = found[finite], named[finite]
        predicted, confidence = np.bincount(named, minlength=len(self.classes)), float(found.sum())
        with self._lock:
            self._predicted += predicted
            self._confidence += confidence

    def read(self) -> tuple[list[int], float]:
        """How many images were given each class, and the sum of their confidences."""
        with self._lock:
            return self._predicted.tolist(), self._confidence


class Decisions:
    """What one model has decided since it was opened.

    Args:
        expected: the part of the validation images that it gave no class, in [0, 1].
    """

    def __init__(self, expected: float) -> None:
        self.expected = expected
        self._lock = threading.Lock()
        self._given = self._none = 0

    def add(self, decided: NDArray[np.int64]) -> None:
        """Count the decisions [B] of a run: a class's number, or −1."""
        none = int((decided < 0).sum())
        with self._lock:
            self._none += none
            self._given += len(decided) - none

    def read(self) -> tuple[int, int]:
        """How many images were given a class, and how many none."""
        with self._lock:
            return self._given, self._none
