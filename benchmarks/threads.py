"""Threads: two trainings side by side against one alone, and the number we choose against the best one.

`python -m benchmarks.threads` on an idle machine of at least 2 cores, some minutes. It trains on noise of the shape of
each configuration's images: no data, no weights are fetched. Goals: side by side ≤ 2.2 × alone; every configuration
≥ .95 of the images a second that the best number of threads gives.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional

from gkd_core.config import load_params
from gkd_core.config.recipes import SIZES_KNOWN, planned
from gkd_core.config.schema import Params
from gkd_core.models.macs import multiply_accumulates
from gkd_core.models.registry import create_classifier
from gkd_core.training.threads import computing_with, threads_for, torch_limit

ROOT = Path(__file__).parents[1]
PAIR = ("resnet20", 3, 16, 128)
WARMUP = 2
Step = Callable[[], None]


def step_of(student: str, teacher: str | None, channels: int, side: int, images: int) -> tuple[Step, int]:
    """A training step on noise, and the multiply-accumulates that our number of threads goes by."""
    names = [student] if teacher is None else [student, teacher]
    made = [create_classifier(name, 10, in_channels=channels, image_size=side) for name in names]
    networks = [network.to(memory_format=torch.channels_last) for network in made]
    work = images * max(multiply_accumulates(network, channels, side) for network in networks)
    batch = torch.randn(images, channels, side, side).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (images,))
    trained, *teachers = networks
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.01)

    def step() -> None:
        logits = trained(batch).logits
        loss = functional.cross_entropy(logits, labels)
        for frozen in teachers:
            with torch.no_grad():
                answers = frozen.eval()(batch).logits.softmax(1)
            loss = loss + functional.cross_entropy(logits, answers)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step, work


def milliseconds(step: Step, rounds: int) -> float:
    """Median of a step."""
    times = []
    for number in range(WARMUP + rounds):
        start = time.perf_counter()
        step()
        if number >= WARMUP:
            times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def trainings_at_once(count: int, rounds: int) -> float:
    """Milliseconds a step of so many processes that train at the same time; the slowest one's median."""
    command = [sys.executable, "-m", "benchmarks.threads", "--train", "--rounds", str(rounds)]
    processes = [
        subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(count)
    ]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()  # it is ready
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    return max(float(process.communicate()[0]) for process in processes)


def train(rounds: int) -> None:
    """One of the processes of `trainings_at_once`."""
    step, work = step_of(PAIR[0], None, *PAIR[1:])
    with computing_with(threads_for(work, torch_limit())):
        step()
        print("ready", flush=True)
        sys.stdin.readline()
        print(milliseconds(step, rounds))


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


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=10)
    arguments.add_argument("--train", action="store_true", help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.train:
        train(given.rounds)
        return
    console, cores = Console(width=120), torch_limit()
    load = os.getloadavg()[0]
    policy = os.environ.get("OMP_WAIT_POLICY")
    console.print(f"{cores} cores, torch {torch.__version__}, load {load:.1f}, OMP_WAIT_POLICY {policy}")
    alone, together = (trainings_at_once(count, given.rounds) for count in (1, 2))
    name, _, side, images = PAIR
    console.print(
        f"{name}, {images} images of {side} pixels: alone {alone:.0f} ms a step, two side by side {together:.0f} ms, "
        f"ratio {together / alone:.2f} (goal ≤ 2.2)"
    )
    shapes = dict.fromkeys(
        shape
        for file in (ROOT / "params.yaml", *sorted((ROOT / "configs").glob("*.yaml")))
        for shape in trainings_of(load_params(file))
    )
    candidates = sorted({cores, *(2**power for power in range(cores.bit_length()) if 2**power <= cores)})
    table = Table(title="images a second by number of threads; ours ÷ the best (goal ≥ .95)", title_justify="left")
    for heading in ("training", "work", *map(str, candidates), "ours", "ratio"):
        table.add_column(heading, justify="left" if heading == "training" else "right")
    for student, teacher, channels, side, images in shapes:
        step, work = step_of(student, teacher, channels, side, images)
        ours = threads_for(work, cores)
        speeds: dict[int, list[float]] = {number: [] for number in {*candidates, ours}}
        for _ in range(3):  # in turns, so that what else the machine does hits all of them
            for number, found in speeds.items():
                with computing_with(number):
                    found.append(1000 * images / milliseconds(step, given.rounds))
        best = {number: statistics.median(found) for number, found in speeds.items()}
        by = f" by {teacher}" if teacher else ""
        shown = [f"{best[number]:,.0f}" for number in candidates]
        ratio = best[ours] / max(best.values())
        row = f"{student}{by}, {images} × {side} px"
        table.add_row(row, f"{work / 1e6:,.0f} M", *shown, str(ours), f"{ratio:.2f}")
    console.print(table)


if __name__ == "__main__":
    main()
