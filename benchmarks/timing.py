"""Median times of things run in turn, so that whatever else the machine does hits all of them alike."""

import statistics
import time
from collections.abc import Callable


def side_by_side(candidates: dict[str, Callable[[], object]], *, rounds: int = 15, warmup: int = 2) -> dict[str, float]:
    """Median milliseconds of each candidate over rounds in which every one runs once; warm-up rounds left out."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for i in range(warmup + rounds):
        for name, run in candidates.items():
            start = time.perf_counter()
            run()
            if i >= warmup:
                times[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}
