"""`python -m benchmarks [--rounds N]`: prints one table a question, in milliseconds and as ratios to the first row."""

import argparse
import platform
import warnings

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.loading import loading
from benchmarks.memory_format import memory_format
from benchmarks.transport import transport

QUESTIONS = (loading, memory_format, transport)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=15)
    rounds = arguments.parse_args().rounds
    warnings.simplefilter("ignore")
    console = Console(width=110)
    console.print(
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    for question in QUESTIONS:
        times = question(rounds)
        first = next(iter(times.values()))
        table = Table(title=question.__doc__, title_justify="left")
        for heading in ("", "ms, median", "ratio"):
            table.add_column(heading, justify="left" if not heading else "right")
        for name, milliseconds in times.items():
            table.add_row(name, f"{milliseconds:.1f}", f"{milliseconds / first:.2f}")
        console.print(table)


if __name__ == "__main__":
    main()
