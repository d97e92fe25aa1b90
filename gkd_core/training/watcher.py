"""Who is told of a training while it runs. The library knows no tracking server; whoever watches may."""

from pathlib import Path
from typing import Any, Protocol


class Watcher(Protocol):
    """Follows trainings, one after the other; of several processes the first one's is told.

    What it is told changes nothing in the training, and it raises nothing.
    """

    def begin(self, name: str, facts: dict[str, Any], work: Path | None, history: list[dict[str, float]]) -> None:
        """A training begins, or goes on after the epochs of `history`.

        Args:
            name: what is trained, such as "student resnet8 (gompertz)".
            facts: of the training, as far as they are known.
            work: the checkpoint lives there; None without one.
        """

    def epoch(self, row: dict[str, float], images_per_second: float) -> None:
        """An epoch is over and its checkpoint written: the history's new row, and how fast this process trained it; 0
        where nothing of it was left to train.
        """

    def end(self, history: list[dict[str, float]]) -> None:
        """The training came to its end; a learner may have changed the history."""
