"""An epoch with `train.teacher_cache` beside the same without.

The epoch is of plain KD, 4 batches of 64 images of 32×32, by crop and flip; none, half or all answers are known.
"""

import tempfile
import time
from pathlib import Path

import torch

from benchmarks.synthetic import synthetic_data, synthetic_network
from benchmarks.table import Goal, Row, Table
from benchmarks.timing import milliseconds, ratio
from gkd_core.config import TrainingConfig
from gkd_core.data.loader import Batch
from gkd_core.schemes import DistillationSpec
from gkd_core.training.answers import HEADER_BYTES
from gkd_core.training.trainer import Trainer, Training

ROUNDS = 5
PAIRS = (("resnet20", "resnet8"), ("resnet56", "resnet20"))
BATCH, BATCHES, CLASSES = 64, 4, 100
VIEWS = 162
RECORD_BYTES = 4 * CLASSES + 8
ONLINE = "no cache"
HITS = {"none known": 0.0, "half": 0.5, "all": 1.0}


def trainer(teacher: str, student: str, cache: Path | None) -> Trainer:
    """Of synthetic images."""
    data, networks = synthetic_data(BATCH * BATCHES), [synthetic_network(name) for name in (student, teacher)]
    config = TrainingConfig.model_validate(
        {"epochs": 1, "batch_size": BATCH, "device": "cpu", "teacher_cache": cache is not None}
    )
    made = Trainer(Training(networks[0], data, config, DistillationSpec("kd"), (networks[1],), cache=cache))
    if cache is not None:
        assert made.teacher is not None
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
    rows = torch.cat([batch.indices * VIEWS + batch.views for batch in batches])
    lost = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[round(hits * len(rows)) :]
    with path.open("r+b") as stream:
        for row in rows[lost].tolist():
            stream.seek(HEADER_BYTES + row * RECORD_BYTES)
            stream.write(bytes(RECORD_BYTES))


def measure(rounds: int = ROUNDS) -> Table:
    torch.set_num_threads(1)
    rows = []
    for pair in PAIRS:
        with tempfile.TemporaryDirectory() as folder:
            online, cached = trainer(*pair, None), trainer(*pair, Path(folder))
            batches = list(online.loader.epoch(0))
            epoch(cached, batches)
            seconds: dict[str, list[float]] = {name: [] for name in (ONLINE, *HITS)}
            for turn in range(1 + rounds):  # answers are forgotten between two epochs, and that is not timed
                found = {ONLINE: epoch(online, batches)}
                for name, hits in HITS.items():
                    forget(Path(folder), batches, hits)
                    found[name] = epoch(cached, batches)
                for name in seconds if turn else ():
                    seconds[name].append(found[name])
        for name, times in seconds.items():
            goal = Goal(1.0) if name == "all" else None
            rows.append(Row((" → ".join(pair), name, milliseconds(times)), ratio(times, seconds[ONLINE]), goal))
    return Table(
        f"The steps of an epoch of plain KD, {BATCHES} batches of {BATCH} images of 32×32, by what part of the "
        f"teacher's answers the cache knows; one thread; {rounds} turns.",
        ("teacher → student", "answers", "ms of CPU"),
        "÷ no cache",
        rows,
        named=2,
    )
