"""`python -m benchmarks.photos [DIR]`: our loader on photos beside `ImageFolder` and `DataLoader` with two workers.

Both do the same to the same pictures, in turns, an epoch each, on this machine: a random window, a mirror, and what the
recipes fine-tune and photos-from-scratch ask for. Images per second of the clock, and of CPU time, which tells more
where the machine has other work. Then the memory that an epoch of ours holds, in a process of its own,
for a set and for one four times as large. DIR has a folder of pictures for each class; without it, pictures of
500 × 375 pixels are made.
"""

import argparse
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

import gkd_core as gkd
from gkd_core.data.augment import Augmentation
from gkd_core.data.loader import Loader
from gkd_core.data.prepared import PreparedData, Split

SIDE, BATCH, WINDOW = 160, 32, (0.08, 1.0)
RECIPES = {
    "window, mirror, colour jitter": (
        Augmentation(random_resized_crop=WINDOW, flip=True, color_jitter=0.4),
        [v2.ColorJitter(0.4, 0.4, 0.4)],
        [],
    ),
    "window, mirror, TrivialAugment, erasing": (
        Augmentation(random_resized_crop=WINDOW, flip=True, auto="trivial", erasing=0.1),
        [v2.TrivialAugmentWide(interpolation=v2.InterpolationMode.BILINEAR)],
        [v2.RandomErasing(0.1)],
    ),
}


def make_photos(root: Path, count: int) -> None:
    """As many JPEG files of two classes, smooth with some noise, about as large as a camera's of their size."""
    for number in range(count):
        rng = np.random.default_rng(number)
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), dtype=np.int16)
        pixels = np.clip(smooth + rng.integers(-12, 13, smooth.shape), 0, 255).astype(np.uint8)
        folder = root / f"class {number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{number}.jpg", quality=90)


def ours(split: Split, augmentation: Augmentation) -> Loader:
    """Our loader over a prepared split."""
    return Loader(split, batch_size=BATCH, device="cpu", augmentation=augmentation, shuffle=True, num_classes=10)


def cpu_seconds() -> float:
    """Of this process and its children, the loader's workers."""
    pids = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def images_per_second(count: int, epoch: Callable[[], Iterable[object]]) -> tuple[float, float]:
    """Of one epoch, by the clock and by CPU time."""
    start, busy = time.perf_counter(), cpu_seconds()
    for _ in epoch():
        pass
    return count / (time.perf_counter() - start), count / (cpu_seconds() - busy)


def speed(photos: Path, data: PreparedData, rounds: int) -> None:
    """Print images per second of both, and their ratio."""
    for name, (augmentation, on_pixels, on_floats) in RECIPES.items():
        changes = [
            v2.RandomResizedCrop(SIDE, scale=WINDOW), v2.RandomHorizontalFlip(), *on_pixels,
            v2.ToImage(), v2.ToDtype(torch.float32, scale=True), *on_floats,
        ]  # fmt: skip
        files = ImageFolder(str(photos), v2.Compose(changes))
        theirs = DataLoader(files, batch_size=BATCH, shuffle=True, num_workers=2, persistent_workers=True)
        loader = ours(data.train, augmentation)
        found = []
        for turn in range(rounds + 1):
            mine = images_per_second(len(data.train), lambda turn=turn, loader=loader: loader.epoch(turn))
            others = images_per_second(len(files), lambda theirs=theirs: theirs)
            if turn:  # the first is a warm-up
                found.append((*mine, *others, mine[0] / others[0], mine[1] / others[1]))
        clock, busy, their_clock, their_busy, *_ = (statistics.median(column) for column in zip(*found, strict=True))
        print(f"{name}, images per second: gkd {clock:,.0f}, ImageFolder + DataLoader {their_clock:,.0f}; of CPU time")
        print(f"  {busy:,.0f} and {their_busy:,.0f}", end="")
        for what, place in (("ratio", 4), ("of CPU time", 5)):
            ratios = sorted(row[place] for row in found)
            print(f"; {what} {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})", end="")
        print(flush=True)
        del theirs


def memory(prepared: Path) -> None:
    """Print the most memory that an epoch holds, in MB, without pages of files, which the system may drop."""
    loader = ours(PreparedData.open(prepared, check=False).train, next(iter(RECIPES.values()))[0])
    most = 0
    for _ in loader.epoch(0):
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        most = max(most, int(status["RssAnon"].split()[0]))
    print(f"{len(loader.split):,} images to train on: {most / 1000:,.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, nargs="?", metavar="DIR")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=400, help="pictures to make")
    parser.add_argument("--memory", type=Path, metavar="PREPARED", help="only the memory of an epoch of prepared data")
    arguments = parser.parse_args()
    if arguments.memory is not None:
        memory(arguments.memory)
        return
    with tempfile.TemporaryDirectory() as folder:
        photos = arguments.photos
        if photos is None:
            photos = Path(folder, "photos")
            make_photos(photos, arguments.count)
        print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, images of {SIDE} pixels")
        speed(photos, gkd.load_data(photos, image_size=SIDE), arguments.rounds)
        for count in (arguments.count, 4 * arguments.count):
            many, cache = Path(folder, f"{count} photos"), Path(folder, f"{count} prepared")
            make_photos(many, count)
            gkd.load_data(many, image_size=SIDE, store="raw", leakage="allow", cache=cache)
            subprocess.run([sys.executable, "-m", "benchmarks.photos", "--memory", str(cache)], check=True)


if __name__ == "__main__":
    main()
