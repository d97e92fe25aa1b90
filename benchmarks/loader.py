"""Our loader beside torch's `DataLoader` with torchvision's transforms, on small images."""

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from benchmarks.table import Goal, Row, Table
from benchmarks.timing import in_turns, milliseconds, ratio
from gkd_core.data.augment import Augmentation
from gkd_core.data.loader import Loader
from gkd_core.data.prepared import Split

ROUNDS = 7
IMAGES, SIDE, BATCH = 2048, 32, 128
PEER = "`DataLoader`, `torchvision.transforms.v2`"


def measure(rounds: int = ROUNDS) -> Table:
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (IMAGES, SIDE, SIDE, 3), dtype=np.uint8)
    split = Split(images, rng.integers(0, 10, len(images)), (0.5, 0.5, 0.5))
    augmentation = Augmentation(crop_padding=4, flip=True)
    settings = {"batch_size": BATCH, "device": "cpu", "augmentation": augmentation, "shuffle": True, "num_classes": 10}
    resident, streamed = (Loader(split, resident=resident, **settings) for resident in (True, False))
    theirs = DataLoader(_Images(split), batch_size=BATCH, shuffle=True)
    seconds = in_turns(
        {
            "gkd, resident": lambda: list(resident.epoch(0)),
            "gkd, streamed": lambda: list(streamed.epoch(0)),
            PEER: lambda: list(theirs),
        },
        rounds,
    )
    return Table(
        f"An epoch of {IMAGES:,} images of {SIDE}×{SIDE}, random crop and flip, batches of {BATCH}, one process and "
        f"one thread; {rounds} turns.",
        ("loader", "ms of CPU"),
        "÷ `DataLoader`",
        [
            Row((name, milliseconds(found)), ratio(found, seconds[PEER]), None if name == PEER else Goal(1.0))
            for name, found in seconds.items()
        ],
    )


class _Images(Dataset[tuple[torch.Tensor, int]]):
    def __init__(self, split: Split) -> None:
        self.split = split
        self.change = v2.Compose(
            [v2.RandomCrop(SIDE, padding=4), v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, scale=True)]
        )

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return self.change(torch.from_numpy(self.split.images[i]).permute(2, 0, 1)), int(self.split.labels[i])
