"""A training step with channels-last weights, as ours have them, beside contiguous ones."""

import torch
from torch.nn import functional

from benchmarks.table import Goal, Row, Table
from benchmarks.timing import Candidate, in_turns, milliseconds, ratio
from gkd_core.models.registry import create_classifier

ROUNDS = 15
IMAGES, SIDE = 128, 32


def step(layout: torch.memory_format) -> Candidate:
    """Of resnet8 by labels alone."""
    images, labels = torch.randn(IMAGES, 3, SIDE, SIDE), torch.randint(0, 10, (IMAGES,))
    network = create_classifier("resnet8", 10).to(memory_format=layout)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)

    def run() -> None:
        optimizer.zero_grad()
        functional.cross_entropy(network(images).logits, labels).backward()
        optimizer.step()

    return run


def measure(rounds: int = ROUNDS) -> Table:
    torch.set_num_threads(1)
    layouts = {"channels last": torch.channels_last, "contiguous": torch.contiguous_format}
    seconds = in_turns({name: step(layout) for name, layout in layouts.items()}, rounds)
    reference = seconds["contiguous"]
    return Table(
        f"A training step of resnet8 on {IMAGES} images of {SIDE}×{SIDE}, one thread; {rounds} turns.",
        ("weights", "ms of CPU"),
        "÷ contiguous",
        [
            Row((name, milliseconds(found)), ratio(found, reference), None if found is reference else Goal(1.0))
            for name, found in seconds.items()
        ],
    )
