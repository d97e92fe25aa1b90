"""Progress of long work on stderr: a bar in a terminal, a plain line now and then without one."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

PLAIN_SECONDS = 10.0


@contextlib.contextmanager
def progress(description: str, total: int, unit: str = "") -> Iterator[Callable[[int], None]]:
    """A function that is told how much more is done.

    Args:
        description: what is going on.
        total: the whole amount.
        unit: what is counted.
    """
    console = Console(stderr=True)
    if console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(description, total=total)
            yield lambda amount: bar.advance(task, amount)
        return
    done, last = 0, time.monotonic()

    def advance(amount: int) -> None:
        nonlocal done, last
        done += amount
        if time.monotonic() - last >= PLAIN_SECONDS:
            last = time.monotonic()
            print(f"{description}: {_amount(done, unit)} of {_amount(total, unit)}", file=sys.stderr)

    yield advance


def _amount(count: int, unit: str) -> str:
    return f"{count:,}{f' {unit}' if unit else ''}"
