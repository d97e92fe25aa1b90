"""Two trainings side by side beside one alone: do their threads wait for each other without harm?

Two processes that train as `gkd.train` would, with the number of threads that it would take: in turns one of them
alone, then both at once. `python -m benchmarks.side_by_side` is one of the two.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

from benchmarks.table import ROOT, Goal, Row, Table
from benchmarks.timing import milliseconds, ratio
from benchmarks.training_step import step_of
from gkd_core.training.threads import computing_with, threads_for, torch_limit

ROUNDS = 5
STEPS = 8
NETWORK, CHANNELS, SIDE, BATCH = "resnet20", 3, 16, 128


def train() -> None:
    """One of the processes: for every line that it reads it makes some steps, and prints the median's seconds."""
    step, work = step_of(NETWORK, None, CHANNELS, SIDE, BATCH)
    with computing_with(threads_for(work, torch_limit())):
        for _ in range(2):
            step()
        print("ready", flush=True)
        for _ in sys.stdin:
            seconds = []
            for _ in range(STEPS):
                start = time.perf_counter()
                step()
                seconds.append(time.perf_counter() - start)
            print(statistics.median(seconds), flush=True)


def at_once(processes: Sequence["subprocess.Popen[str]"]) -> float:
    """Seconds of a step of the slowest."""
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    return max(float(_line(process)) for process in processes)


def _line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError("a training of the two ended by itself")
    return line


def measure(rounds: int = ROUNDS) -> Table:
    command = [sys.executable, "-m", "benchmarks.side_by_side"]
    pair = [
        subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    try:
        for process in pair:
            _line(process)
        turns = [(at_once(pair[:1]), at_once(pair)) for _ in range(rounds)]
    finally:
        for process in pair:
            process.communicate()  # no line more: it ends
    alone, both = ([turn[place] for turn in turns] for place in (0, 1))
    found = sorted(two / one for one, two in turns)
    return Table(
        f"A training step of {NETWORK} on {BATCH} images of {SIDE} pixels, median of {STEPS}, of the slower process; "
        f"{rounds} turns, their ratios {found[0]:.2f} to {found[-1]:.2f}. {torch_limit()} cores.",
        ("trainings", "ms by the clock"),
        "÷ alone",
        [
            Row(("alone", milliseconds(alone)), 1.0),
            Row(("two side by side", milliseconds(both)), ratio(both, alone), Goal(2.2)),
        ],
    )


if __name__ == "__main__":
    train()
