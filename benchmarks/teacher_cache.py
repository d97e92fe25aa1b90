"""`python -m benchmarks.teacher_cache [--rounds N]`: an epoch with `train.teacher_cache` ÷ the same without.

The epoch is of plain KD, 4 batches of 64 images of 32×32, by crop and flip; none, half or all answers are known.
CPU time of this process, candidates in turn, medians and range of the rounds after one of warm-up.
"""

import argparse
import platform
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from gkd_core.config import TrainingConfig
from gkd_core.data.loader import Batch
from gkd_core.data.prepared import Split
from gkd_core.models.network import Network, NetworkSpec
from gkd_core.schemes import DistillationSpec
from gkd_core.training.answers import HEADER_BYTES
from gkd_core.training.trainer import Trainer, Training

PAIRS = (("resnet20", "resnet8"), ("resnet56", "resnet20"))
BATCH, BATCHES, CLASSES = 64, 4, 100
RECORD_BYTES = 4 * CLASSES + 8
HITS = (0.0, 0.5, 1.0)


def trainer(teacher: str, student: str, cache: Path | None) -> Trainer:
    """Of synthetic images; what a teacher answers costs the same whatever it sees."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (BATCH * BATCHES, 32, 32, 3), dtype=np.uint8)
    split = Split(images, rng.integers(0, CLASSES, len(images)), (0.5, 0.5, 0.5))
    names = tuple(map(str, range(CLASSES)))
    augment = {"crop_padding": 4, "flip": True}
    info = SimpleNamespace(
        classes=names, image_size=32, channels=3, photos=None, augment=augment, unlabelled=None, sha256="synthetic"
    )
    data = SimpleNamespace(train=split, validation=split, unlabelled=None, info=info)
    networks = [
        Network(NetworkSpec(name, "auto", names, 3, 32, (0.5,) * 3, (0.25,) * 3)) for name in (student, teacher)
    ]
    config = TrainingConfig.model_validate(
        {"epochs": 1, "batch_size": BATCH, "device": "cpu", "teacher_cache": cache is not None}
    )
    made = Trainer(Training(networks[0], data, config, DistillationSpec("kd"), (networks[1],), cache=cache))
    if cache is not None:
        line = made.open_cache(made.teacher)
        assert made.cached, line
    return made


def epoch(run: Trainer, batches: list[Batch]) -> float:
    """CPU seconds of the steps."""
    start = time.process_time()
    run.learner.train()
    for batch in batches:
        asked = run.cached(batch) if run.cached else run.teacher(batch.images, batch.indices)
        terms, _ = run.learner(batch, batch.labels, asked, 0.0)
        run.optimizer.zero_grad(set_to_none=True)
        sum(terms.values()).backward()
        run.optimizer.step()
    return time.process_time() - start


def forget(folder: Path, batches: list[Batch], hits: float) -> None:
    """Make rows of these batches zeros, so that the part `hits` of their answers is known."""
    (path,) = folder.glob("*.answers")
    rows = torch.cat([batch.indices * 162 + batch.views for batch in batches])
    lost = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[round(hits * len(rows)) :]
    with path.open("r+b") as stream:
        for row in rows[lost].tolist():
            stream.seek(HEADER_BYTES + row * RECORD_BYTES)
            stream.write(bytes(RECORD_BYTES))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=5)
    rounds = arguments.parse_args().rounds
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {rounds} rounds")
    print("| teacher → student | hits | cached epoch ÷ online epoch |\n|---|---|---|")
    for teacher, student in PAIRS:
        with tempfile.TemporaryDirectory() as folder:
            online, cached = trainer(teacher, student, None), trainer(teacher, student, Path(folder))
            batches = list(online.loader.epoch(0))
            epoch(cached, batches)
            ratios: dict[float, list[float]] = {hits: [] for hits in HITS}
            for number in range(1 + rounds):
                reference = epoch(online, batches)
                for hits in HITS:
                    forget(Path(folder), batches, hits)
                    ratio = epoch(cached, batches) / reference
                    if number:
                        ratios[hits].append(ratio)
            for hits, values in ratios.items():
                spread = f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"
                print(f"| {teacher} → {student} | {100 * hits:.0f} % | {spread} |", flush=True)


if __name__ == "__main__":
    main()
