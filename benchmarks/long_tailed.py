"""Classes of very different size: a long-tailed CIFAR-10, and what `train.balance` makes of it.

    python -m benchmarks.long_tailed write CIFAR FOLDER         # FOLDER/train/CLASS/*.png, FOLDER/test/CLASS/*.png
    python -m benchmarks.long_tailed run [--params configs/cifar10-long-tailed.yaml] [--cases ce:none,…] [--seeds 0,1,2]

`write` keeps of class i of the training images n_i = 5000 · factor^(−i/9), the first class whole and the last a 50th of
it, drawn by a seed; the 10,000 test images stay as they are, 1,000 a class. Source of the set: Cui et al. 2019, §5.1
(arXiv:1901.05555).

`run` reads data/ and teacher/, as `gkd prepare` and `gkd teacher` leave them, trains the student by each method and
balance with every seed, measures each once on the test images, and prints a table. What is done
stands in a file, so a run that was stopped goes on.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torchvision
from PIL import Image

import gkd_core as gkd
from gkd_core.config import load_params
from gkd_core.data.prepared import PreparedData
from gkd_core.evaluation.evaluate import Evaluation, evaluate
from gkd_core.models.create import create_model
from gkd_core.models.network import load_network
from gkd_core.records import read_teacher
from gkd_core.run_facts import where_it_ran

BALANCES = ("none", "weights", "sampler", "logit-adjustment")
CASES = [f"{method}:{balance}" for method in ("ce", "kd") for balance in BALANCES]
RAREST = 3


def write(cifar: Path, folder: Path, *, factor: float, seed: int) -> list[int]:
    """An image folder with `train/` and `test/`; how many training images each class has.

    Args:
        cifar: holds cifar-10-batches-py.
        folder: is made.
        factor: size of the largest class over that of the smallest.
        seed: of the choice.
    """
    draw = np.random.default_rng(seed)
    kept = []
    for split in ("train", "test"):
        source = torchvision.datasets.CIFAR10(cifar, train=split == "train")
        labels = np.array(source.targets)
        for i, name in enumerate(source.classes):
            rows = np.flatnonzero(labels == i)
            if split == "train":
                count = round(len(rows) * factor ** (-i / (len(source.classes) - 1)))
                rows = np.sort(draw.permutation(rows)[:count])
                kept.append(count)
            (folder / split / name).mkdir(parents=True)
            for row in rows:
                Image.fromarray(source.data[row]).save(folder / split / name / f"{row:05}.png", compress_level=1)
    return kept


def train_one(
    params: Path, teacher: Path, data: PreparedData, method: str, seed: int, **changed: object
) -> tuple[Evaluation, dict[str, str]]:
    """One student, trained as the parameters say but for `changed` of their section train, measured on the test; and
    of which commit and on what."""
    config = load_params(params)
    student = create_model(config.student.name, data=data, seed=seed)
    own = {"seed", "schedule"}  # what is called schedule here is β's, and cosine the default
    settings = {name: getattr(config.train, name) for name in config.train.model_fields_set - own}
    settings["augment"] = config.train.augment.model_dump(exclude_unset=True)
    teachers = None
    if method != "ce":
        teachers = [load_network(teacher / name, data.info.classes) for name in read_teacher(teacher)["networks"]]
    result = gkd.distill(student, teachers, data, method=method, seed=seed, **{**settings, **changed})
    return evaluate(student, data.test), where_it_ran(result.run_facts())


def run(params: Path, data: Path, teacher: Path, results: Path, cases: list[tuple[str, str]], seeds: list[int]) -> None:
    """Train what is not in `results`, a JSON object a line, and print the table."""
    prepared = PreparedData.open(data)
    done = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    rarest = np.argsort(np.bincount(prepared.train.labels, minlength=len(prepared.info.classes)))[:RAREST]
    for seed in seeds:  # seed by seed: stopped half-way, whole seeds can be compared
        for method, balance in cases:
            if any((row["method"], row["balance"], row["seed"]) == (method, balance, seed) for row in done):
                continue
            start = time.process_time()
            found, where = train_one(params, teacher, prepared, method, seed, balance=balance)
            row = {
                "method": method, "balance": balance, "seed": seed, "top1": found.top1,
                "balanced_accuracy": found.balanced_accuracy, "macro_f1": found.macro_f1,
                "rarest": float(found.per_class.recall[rarest].mean()),
                "recall": [round(float(value), 4) for value in found.per_class.recall],
                "cpu_seconds": round(time.process_time() - start, 1), **where,
            }  # fmt: skip
            done.append(row)
            with results.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(row) + "\n")
    names = ", ".join(prepared.info.classes[i] for i in rarest)
    print(f"| method | balance | balanced accuracy | macro-F1 | recall of {names} |\n|---|---|---|---|---|")
    for method, balance in cases:
        rows = [row for row in done if (row["method"], row["balance"]) == (method, balance) and row["seed"] in seeds]
        cells = [_spread([100 * row[key] for row in rows]) for key in ("balanced_accuracy", "macro_f1", "rarest")]
        print(f"| {method} | {balance} | {' | '.join(cells)} |")


def _spread(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}" if values else ""


def main() -> None:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    writes = commands.add_parser("write")
    writes.add_argument("cifar", type=Path)
    writes.add_argument("folder", type=Path)
    writes.add_argument("--factor", type=float, default=50.0)
    writes.add_argument("--seed", type=int, default=0)
    runs = commands.add_parser("run")
    runs.add_argument("--params", type=Path, default=Path("configs/cifar10-long-tailed.yaml"))
    runs.add_argument("--data", type=Path, default=Path("data"))
    runs.add_argument("--teacher", type=Path, default=Path("teacher"))
    runs.add_argument("--results", type=Path, default=Path("long-tailed.jsonl"))
    runs.add_argument("--cases", default=",".join(CASES), help="METHOD:BALANCE, separated by commas")
    runs.add_argument("--seeds", default="0,1,2")
    given = parser.parse_args()
    if given.command == "write":
        print(write(given.cifar, given.folder, factor=given.factor, seed=given.seed))
    else:
        seeds = [int(seed) for seed in given.seeds.split(",")]
        cases = [(method, balance) for method, _, balance in (case.partition(":") for case in given.cases.split(","))]
        run(given.params, given.data, given.teacher, given.results, cases, seeds)


if __name__ == "__main__":
    main()
