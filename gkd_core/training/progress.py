"""What a training shows while it runs, on stderr: a bar in a terminal, plain lines elsewhere."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


class TrainingProgress:
    """Loss terms, β, images per second and time left.

    Args:
        name: what is being trained, e.g. "student resnet8 (gompertz)".
        steps: of the whole training.
        done: steps that an earlier, interrupted run has already made.
        line_seconds: without a terminal, the longest silence between two lines.
        shown: show anything at all; of several processes one does.
    """

    def __init__(self, name: str, *, steps: int, done: int = 0, line_seconds: float = 30.0, shown: bool = True) -> None:
        self.name, self._steps, self._done, self._first = name, steps, done, done
        self._start = self._last_line = time.monotonic()
        self._images = 0
        self._line_seconds = line_seconds
        self._shown = shown
        console = Console(stderr=True)
        self._bar: Progress | None = None
        self._task = TaskID(0)
        if console.is_terminal and shown:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeRemainingColumn(compact=True),
                TextColumn("{task.fields[state]}"),
                console=console,
                transient=True,
            )
            self._task = self._bar.add_task(name, total=steps, completed=done, state="")

    def __enter__(self) -> "TrainingProgress":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    @property
    def images_per_second(self) -> float:
        """Mean throughput of this run so far."""
        elapsed = time.monotonic() - self._start
        return self._images / elapsed if elapsed > 0 else 0.0

    def advance(self, images: int, *, state: str | None = None) -> None:
        """One step done. `state` is a text of the latest loss terms, or None when they were not fetched."""
        self._done += 1
        self._images += images
        if self._bar:
            if state is not None:
                state = f"{state}  {self.images_per_second:,.0f} img/s"
                self._bar.update(self._task, advance=1, state=state)
            else:
                self._bar.advance(self._task)
        elif state is not None and time.monotonic() - self._last_line > self._line_seconds:
            self._line(f"step {self._done}/{self._steps}  {state}")

    def epoch(self, text: str) -> None:
        """One line for a finished epoch; it stays on the screen."""
        if self._bar:
            self._bar.console.print(f"[bold]{self.name}[/]  {text}", highlight=False)
        else:
            self._line(text)

    def _line(self, text: str) -> None:
        if not self._shown:
            return
        self._last_line = time.monotonic()
        made = self._done - self._first
        left = (self._steps - self._done) * (self._last_line - self._start) / made if made else 0.0
        speed = f"  {self.images_per_second:,.0f} img/s  {left:.0f} s left" if made else ""
        print(f"{self.name}  {text}{speed}", file=sys.stderr, flush=True)
