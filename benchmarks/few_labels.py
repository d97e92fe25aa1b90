"""CIFAR-10 with a tenth of its labels: what a student gains from the other pictures, which a teacher answers.

    python -m benchmarks.few_labels write CIFAR FOLDER   # FOLDER/labelled/{train,test}/CLASS/*.png, FOLDER/unlabelled/
    python -m benchmarks.few_labels run [--params configs/cifar10-few-labels.yaml] [--seeds 0,1,2]

`run` reads data/ and teacher/, as `gkd prepare` and `gkd teacher` leave them, and trains the student with every seed:
alone, by plain KD on the labelled pictures, by plain KD on these for twice as many epochs (as many pictures as the last
sees), and by plain KD with as many pictures without a label as with one in every batch. What is done stands in a file,
so a run that was stopped goes on.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torchvision
from PIL import Image

from benchmarks.long_tailed import train_one
from gkd_core.config import load_params
from gkd_core.data.prepared import PreparedData

SHARE = 0.1
CASES = {
    "student alone": ("ce", 1, 0.0),
    "KD, labelled pictures": ("kd", 1, 0.0),
    "KD, labelled pictures, twice the epochs": ("kd", 2, 0.0),
    "KD, half of every batch without labels": ("kd", 1, 0.5),
}
"""Method, times the epochs of the parameters, `train.unlabelled_fraction`."""


def write(cifar: Path, folder: Path, seed: int) -> None:
    """An image folder of a tenth of the training images of each class and all test images, and one of the others.

    Args:
        cifar: holds cifar-10-batches-py.
        folder: is made.
        seed: of the choice.
    """
    draw = np.random.default_rng(seed)
    (folder / "unlabelled").mkdir(parents=True)
    for split in ("train", "test"):
        source = torchvision.datasets.CIFAR10(cifar, train=split == "train")
        labels = np.array(source.targets)
        for i, name in enumerate(source.classes):
            rows = draw.permutation(np.flatnonzero(labels == i))
            kept = len(rows) if split == "test" else round(SHARE * len(rows))
            place = folder / "labelled" / split / name
            place.mkdir(parents=True)
            for k, row in enumerate(rows.tolist()):
                where = place if k < kept else folder / "unlabelled"
                Image.fromarray(source.data[row]).save(where / f"{row:05}.png", compress_level=1)


def run(params: Path, data: Path, teacher: Path, results: Path, seeds: list[int]) -> None:
    """Train what is not in `results`, a JSON object a line, and print the table."""
    prepared, epochs = PreparedData.open(data), load_params(params).train.epochs or 1
    done = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    for seed in seeds:
        for case, (method, times, fraction) in CASES.items():
            if any((row["case"], row["seed"]) == (case, seed) for row in done):
                continue
            start = time.process_time()
            changed = {"epochs": times * epochs, **({"unlabelled_fraction": fraction} if method == "kd" else {})}
            found, where = train_one(params, teacher, prepared, method, seed, **changed)
            seconds = round(time.process_time() - start, 1)
            done.append({"case": case, "seed": seed, "top1": found.top1, "cpu_seconds": seconds, **where})
            with results.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(done[-1]) + "\n")
    print("| | top-1, mean ± sd | each seed | CPU seconds |\n|---|---|---|---|")
    for case in CASES:
        rows = sorted(
            (row for row in done if row["case"] == case and row["seed"] in seeds), key=lambda row: row["seed"]
        )
        values = [100 * row["top1"] for row in rows]
        spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
        seconds = statistics.mean(row["cpu_seconds"] for row in rows)
        each = ", ".join(f"{value:.2f}" for value in values)
        print(f"| {case} | {statistics.mean(values):.2f}{spread} | {each} | {seconds:.0f} |")


def main() -> None:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    writes = commands.add_parser("write")
    writes.add_argument("cifar", type=Path)
    writes.add_argument("folder", type=Path)
    writes.add_argument("--seed", type=int, default=0)
    runs = commands.add_parser("run")
    runs.add_argument("--params", type=Path, default=Path("configs/cifar10-few-labels.yaml"))
    runs.add_argument("--data", type=Path, default=Path("data"))
    runs.add_argument("--teacher", type=Path, default=Path("teacher"))
    runs.add_argument("--results", type=Path, default=Path("few-labels.jsonl"))
    runs.add_argument("--seeds", default="0,1,2")
    given = parser.parse_args()
    if given.command == "write":
        write(given.cifar, given.folder, given.seed)
    else:
        run(given.params, given.data, given.teacher, given.results, [int(seed) for seed in given.seeds.split(",")])


if __name__ == "__main__":
    main()
