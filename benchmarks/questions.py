"""The questions of `make bench`, each a file here with `measure`, and how one is asked."""

import importlib
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

from benchmarks.table import Table

QUESTIONS = (
    "steps",
    "epoch",
    "teacher_cache",
    "loader",
    "memory",
    "memory_format",
    "transport",
    "onnx_student",
    "predicting",
    "commands",
    "side_by_side",
    "threads",
)


def answer(name: str, rounds: int | None) -> Table:
    """What a question's module measures; without a number of rounds, with its own."""
    measure = importlib.import_module(f"benchmarks.{name}").measure
    table: Table = measure() if rounds is None else measure(rounds)
    return table


def answer_apart(name: str, rounds: int | None) -> Table:
    """The same in a process of its own, which is started anew and not forked: it finds nothing of another question."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(answer, name, rounds).result()
