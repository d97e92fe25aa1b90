"""Candidates in turn in one process, so that what else the machine does hits all of them alike."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

Candidate = Callable[[], object]


def in_turns(
    candidates: Mapping[str, Candidate],
    rounds: int,
    *,
    warmup: int = 1,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, list[float]]:
    """Seconds of each candidate, turn by turn; of the CPU, unless another clock is given.

    Args:
        candidates: what to run, by name.
        rounds: turns that count.
        warmup: turns before them.
        clock: seconds, as they pass for what is measured.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(warmup + rounds):
        for name, run in candidates.items():
            start = clock()
            run()
            if turn >= warmup:
                seconds[name].append(clock() - start)
    return seconds


def ratio(seconds: Sequence[float], reference: Sequence[float]) -> float:
    """Median of the ratios, each of two times of one turn."""
    return statistics.median(a / b for a, b in zip(seconds, reference, strict=True))


def milliseconds(seconds: Sequence[float]) -> str:
    """The median, for a table."""
    median = 1000 * statistics.median(seconds)
    return f"{median:,.0f}" if median >= 100 else f"{median:.3g}"
