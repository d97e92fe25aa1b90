"""`python -m benchmarks [--rounds N]`: prints one table a question, in milliseconds and as ratios to the first row."""

import argparse
import platform
import statistics
import time
import warnings
from collections.abc import Callable

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from gkd_core.data.augment import Augmentation
from gkd_core.data.loader import Loader
from gkd_core.data.prepared import Split
from gkd_core.losses.wasserstein import wasserstein_loss
from gkd_core.models.registry import create_classifier

WARMUP = 2
Candidates = dict[str, Callable[[], object]]


def loading() -> Candidates:
    """An epoch of 2,048 images of 32×32, random crop and flip, batches of 128"""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2048, 32, 32, 3), dtype=np.uint8)
    split = Split(images, rng.integers(0, 10, len(images)), (0.5, 0.5, 0.5))
    augmentation = Augmentation(crop_padding=4, flip=True)
    settings = {"batch_size": 128, "device": "cpu", "augmentation": augmentation, "shuffle": True, "num_classes": 10}
    resident, streamed = (Loader(split, resident=resident, **settings) for resident in (True, False))
    theirs = DataLoader(_Images(split), batch_size=128, shuffle=True)
    return {
        "gkd, resident": lambda: list(resident.epoch(0)),
        "gkd, streamed": lambda: list(streamed.epoch(0)),
        "DataLoader + torchvision.transforms.v2": lambda: list(theirs),
    }


class _Images(Dataset):
    def __init__(self, split: Split) -> None:
        self.split = split
        self.change = v2.Compose(
            [v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, scale=True)]
        )

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return self.change(torch.from_numpy(self.split.images[i]).permute(2, 0, 1)), int(self.split.labels[i])


def memory_format() -> Candidates:
    """A training step of resnet8 on 128 images of 32×32"""
    images, labels = torch.randn(128, 3, 32, 32), torch.randint(0, 10, (128,))

    def step(layout: torch.memory_format) -> Callable[[], object]:
        network = create_classifier("resnet8", 10).to(memory_format=layout)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01)

        def run() -> None:
            optimizer.zero_grad()
            functional.cross_entropy(network(images).logits, labels).backward()
            optimizer.step()

        return run

    return {"channels last": step(torch.channels_last), "contiguous": step(torch.contiguous_format)}


def transport() -> Candidates:
    """W1 of 64 pairs of 8×8 maps with 64 channels, forward and backward"""
    teacher = torch.randn(64, 64, 8, 8)

    def solve(solver: str) -> Callable[[], object]:
        def run() -> None:
            student = torch.randn(64, 64, 8, 8, requires_grad=True)
            wasserstein_loss(student, teacher, solver=solver, seed=0).backward()

        return run

    return {solver: solve(solver) for solver in ("sinkhorn", "sliced", "quantile", "exact")}


def side_by_side(candidates: Candidates, rounds: int) -> dict[str, float]:
    """Median milliseconds of each candidate, run in turn, so that what else the machine does hits all of them alike."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(WARMUP + rounds):
        for name, run in candidates.items():
            start = time.perf_counter()
            run()
            if number >= WARMUP:
                times[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=15)
    rounds = arguments.parse_args().rounds
    warnings.simplefilter("ignore")
    console = Console(width=110)
    console.print(
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    for question in (loading, memory_format, transport):
        times = side_by_side(question(), rounds)
        first = next(iter(times.values()))
        table = Table(title=question.__doc__, title_justify="left")
        for heading in ("", "ms, median", "ratio"):
            table.add_column(heading, justify="left" if not heading else "right")
        for name, milliseconds in times.items():
            table.add_row(name, f"{milliseconds:.1f}", f"{milliseconds / first:.2f}")
        console.print(table)


if __name__ == "__main__":
    main()
