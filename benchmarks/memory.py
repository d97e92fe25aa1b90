"""The most memory that a training holds, as its data grows: images resident, and streamed from the memory map.

Each measurement is a process of its own that draws one epoch from the loader, and trains on the first batches of it:
`python -m benchmarks.memory FOLDER HOW`. Pages of files, which the system drops when it needs the room, are told apart.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from benchmarks.table import ROOT, Goal, Row, Table
from gkd_core.data.augment import Augmentation
from gkd_core.data.loader import Loader
from gkd_core.data.prepared import Split
from gkd_core.models.registry import create_classifier

IMAGES, SIDE, BATCH, TRAINED = 16_384, 32, 128, 3
SIZE = IMAGES * SIDE * SIDE * 3
TIMES = (1, 2, 4)
WAYS = ("streamed", "resident")
GROWTH = 1.1


def make(folder: Path, images: int) -> None:
    """Noise as the prepared format has it, written part by part."""
    shape, rng = (images, SIDE, SIDE, 3), np.random.default_rng(0)
    pixels = np.lib.format.open_memmap(folder / "images.npy", mode="w+", dtype=np.uint8, shape=shape)
    for start in range(0, images, IMAGES):
        part = pixels[start : start + IMAGES]
        part[:] = rng.integers(0, 256, part.shape, dtype=np.uint8)
    pixels.flush()


def status() -> dict[str, int]:
    """Of this process, in bytes."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: 1024 * int(value.split()[0]) for name, value in lines.items() if value.endswith("kB")}


def train(folder: Path, how: str) -> dict[str, int]:
    """Bytes at most: `peak` with pages of files, `anonymous` without."""
    images = np.load(folder / "images.npy", mmap_mode="r")
    split = Split(images, np.zeros(len(images), dtype=np.int64), (0.5, 0.5, 0.5))
    loader = Loader(
        split,
        batch_size=BATCH,
        device="cpu",
        augmentation=Augmentation(crop_padding=4, flip=True),
        shuffle=True,
        num_classes=10,
        resident=how == "resident",
    )
    network = create_classifier("resnet8", 10)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    most = 0
    for number, batch in enumerate(loader.epoch(0)):
        if number < TRAINED:
            optimizer.zero_grad()
            functional.cross_entropy(network(batch.images).logits, batch.labels).backward()
            optimizer.step()
        most = max(most, status()["RssAnon"])
    return {"peak": status()["VmHWM"], "anonymous": most}


def measure(rounds: int = 1) -> Table:
    """Once: memory does not depend on what else the machine does."""
    rows = []
    first: dict[str, int] = {}
    if not Path("/proc/self/status").is_file():
        rows.append(Row(("not measured: this system has no /proc", "", "", "")))
    for times in TIMES if not rows else ():
        with tempfile.TemporaryDirectory() as name:
            make(Path(name), times * IMAGES)
            for how in WAYS:
                command = [sys.executable, "-m", "benchmarks.memory", name, how]
                said = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
                found = json.loads(said)
                held = found["anonymous"]
                cells = (
                    how,
                    f"{times} × {megabytes(SIZE)}",
                    megabytes(found["peak"]),
                    megabytes(held),
                )
                grown = held / first.setdefault(how, held)
                rows.append(Row(cells, grown, Goal(GROWTH) if how == "streamed" and times > 1 else None))
    return Table(
        f"An epoch of the loader over {IMAGES:,} images of {SIDE}×{SIDE} and as many times more, resnet8 trained on "
        f"its first {TRAINED} batches of {BATCH}, in a process of its own.",
        ("images", "data, MB", "peak RSS, MB", "most without pages of files, MB"),
        "the last ÷ at 1 ×",
        rows,
        named=2,
    )


def megabytes(number: int) -> str:
    return f"{number / 1e6:,.0f}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(train(Path(sys.argv[1]), sys.argv[2])))
