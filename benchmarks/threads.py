"""The number of threads that a training takes, beside the best one: every training of every configuration we ship.

On noise of the shape of its images: no data, no weights are fetched. Numbers of threads take turns step by step.
"""

import statistics
import time
from collections.abc import Iterator

from benchmarks.table import ROOT, Goal, Row, Table
from benchmarks.timing import Candidate, in_turns, ratio
from benchmarks.training_step import step_of
from gkd_core.config import load_params
from gkd_core.config.recipes import SIZES_KNOWN, planned
from gkd_core.config.schema import Params
from gkd_core.training.threads import computing_with, threads_for, torch_limit

ROUNDS = 25
FEWEST = 3
WORK_OF_A_CANDIDATE = 20_000_000_000
"""Multiply-accumulates of forward passes after which a number of threads has had turns enough: large steps take seconds
and vary little."""


def trainings_of(params: Params) -> Iterator[tuple[str, str | None, int, int, int]]:
    """(network, its teacher, channels, side, images) of a configuration's trainings, on what it says of its images."""
    side = params.data.image_size or SIZES_KNOWN.get(params.data.source, 64)
    channels = params.data.channels or (1 if params.data.source == "digits" else 3)
    *teachers, student = planned(params)
    largest = teachers[0].network if teachers else None
    for plan, teacher in [*((plan, None) for plan in teachers), (student, None), (student, largest)]:
        outcome = plan.outcomes()[-1]
        if not isinstance(outcome, str):
            yield plan.network, teacher, channels, side, outcome.batch_size


def turns(work: int, rounds: int) -> int:
    """Of a step with so many multiply-accumulates in its forward pass."""
    return min(rounds, max(FEWEST, WORK_OF_A_CANDIDATE // work))


def numbers(cores: int) -> list[int]:
    """Numbers of threads to try: powers of two, and all cores."""
    return sorted({cores, *(2**power for power in range(cores.bit_length()) if 2**power <= cores)})


def with_threads(step: Candidate, number: int) -> Candidate:
    def run() -> None:
        with computing_with(number):
            step()

    return run


def measure(rounds: int = ROUNDS) -> Table:
    files = [ROOT / "params.yaml", *sorted((ROOT / "configs").glob("*.yaml"))]
    shapes = dict.fromkeys(shape for file in files for shape in trainings_of(load_params(file)))
    cores, rows = torch_limit(), []
    for student, teacher, channels, side, images in shapes:
        step, work = step_of(student, teacher, channels, side, images)
        ours = threads_for(work, cores)
        runs = {str(number): with_threads(step, number) for number in sorted({*numbers(cores), ours})}
        seconds = in_turns(runs, turns(work, rounds), clock=time.perf_counter)
        medians = {number: statistics.median(found) for number, found in seconds.items()}
        best = min(medians, key=lambda number: medians[number])
        speeds = ", ".join(f"{number}: {images / median:,.0f}" for number, median in medians.items())
        by = f" by {teacher}" if teacher else ""
        cells = (f"{student}{by}, {images} × {side} px", f"{work / 1e6:,.0f} M", speeds, str(ours))
        rows.append(Row(cells, ratio(seconds[best], seconds[str(ours)]), Goal(0.95, smallest=True)))
    return Table(
        f"A training step of every shipped configuration, by number of threads; {min(rounds, FEWEST)} to {rounds} "
        f"turns, {cores} cores. The ratio is the median over the turns.",
        ("training", "multiply-accumulates", "images/s by threads", "ours"),
        "÷ the best",
        rows,
    )
