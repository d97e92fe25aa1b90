"""Real processes, really killed: a training started again ends with the same bits as one that was never killed."""

import functools
import itertools
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from gkd_core.data.loader import Batch
from gkd_core.data.prepared import PreparedData
from gkd_core.files import folder_digest
from tests import forked

EPOCHS = 10
BATCH = 64
PARAMS = {
    "student": {"name": "resnet8"},
    "distill": {"method": "gompertz"},
    "train": {"epochs": EPOCHS, "batch_size": BATCH, "device": "cpu", "ema_decay": 0.9},
}


def terminated(nth: str, *arguments: str) -> None:
    """`gkd`, which gets a SIGTERM in its n-th step."""
    from gkd_core.data.loader import Loader

    epoch, steps = Loader.epoch, itertools.count(1)

    def epoch_with_signal(self: Loader, n: int, start: int = 0) -> Iterator[Batch]:
        for batch in epoch(self, n, start):
            if self.shuffle and next(steps) == int(nth):  # training, not validation
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    Loader.epoch = epoch_with_signal
    forked.command(*arguments)


def kills_itself(moment: str, nth: str, *arguments: str) -> None:
    """`gkd`, which kills itself with SIGKILL in the middle of writing the n-th checkpoint."""
    from gkd_core.training import checkpoint

    write, written = checkpoint.write_bytes, 0

    def write_or_die(path: Path, content: bytes) -> None:
        nonlocal written
        written += 1
        if written == int(nth) and moment == "half":
            path.with_name(f".{path.name}.{os.getpid()}.tmp").write_bytes(content[: len(content) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        if written == int(nth) and moment == "unflushed":
            os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
        write(path, content)
        if written == int(nth) and moment == "written":
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoint.write_bytes = write_or_die
    forked.command(*arguments)


@pytest.fixture(scope="module")
def params_file(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("params") / "params.yaml"
    file.write_text(yaml.safe_dump(PARAMS))
    return file


def command(digits: Path, teacher: Path, params_file: Path, folder: Path, method: str = "gompertz") -> list[str]:
    return ["distill", "--data", str(digits), "--teacher", str(teacher), "--params", str(params_file),
            "--out", str(folder / "student"), "--work", str(folder / "work"),
            "--set", f"distill.method={method}"]  # fmt: skip


def start(arguments: list[str]) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-m", "pipelines.cli", *arguments], stderr=subprocess.PIPE,
                            stdout=subprocess.PIPE, text=True, env=environment)  # fmt: skip


def finished(arguments: list[str], folder: Path) -> str:
    """What it said on stderr."""
    done = forked.gkd(*arguments, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, digits, teacher, params_file) -> Callable[[str], str]:
    """The digest of the student that a method gives when nobody kills it."""

    @functools.cache
    def digest(method: str) -> str:
        folder = tmp_path_factory.mktemp("whole")
        finished(command(digits, teacher, params_file, folder, method), folder)
        assert not list((folder / "work").rglob("*.pt")), "the checkpoint of a finished training stays behind"
        return folder_digest(folder / "student")

    return digest


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gompertz", "crd"])  # crd: its memory of all images must come back too
def test_killed_at_random_moments(method, tmp_path, digits, teacher, params_file, uninterrupted):
    seed = random.SystemRandom().randrange(10**6)
    print(f"moments drawn with seed {seed}")
    moments = random.Random(seed)
    arguments = command(digits, teacher, params_file, tmp_path, method)
    killed = 0
    while killed < 2:
        process = start(arguments)
        for line in process.stderr:
            if "epoch" in line:  # it trains now
                break
        time.sleep(moments.uniform(0.0, 0.5))
        process.kill()
        if process.wait() == 0:  # it was quicker: once more, from the beginning
            shutil.rmtree(tmp_path / "student")
            continue
        killed += 1
        assert not (tmp_path / "student").exists(), "half a folder was left under the final name"
    errors = finished(arguments, tmp_path)
    assert f"epoch 1/{EPOCHS}" not in errors, "it began anew instead of going on"
    assert folder_digest(tmp_path / "student") == uninterrupted(method)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["student", "work"], "a kill left something beside"


@pytest.mark.parametrize("method", ["gompertz", pytest.param("crd", marks=pytest.mark.slow)])
def test_terminated_within_epochs(method, tmp_path, digits, teacher, params_file, uninterrupted):
    """It ends after the very step, twice, and then goes on to the end."""
    arguments = command(digits, teacher, params_file, tmp_path, method)
    steps = math.ceil(len(PreparedData.open(digits).train) / BATCH)
    for nth, epoch, step in ((steps + 3, 2, 3), (steps, 3, 3)):
        done = forked.run(terminated, str(nth), *arguments, cwd=tmp_path)
        assert done.returncode == 128 + signal.SIGTERM
        said = done.stderr.splitlines()
        assert f"SIGTERM: ends after step {step} of epoch {epoch}, which is in the checkpoint" in said[-2]
        assert said[-1] == "gkd: interrupted; run the same command again to go on"
        assert [path.name for path in tmp_path.iterdir()] == ["work"], "half a folder stays behind"
    errors = finished(arguments, tmp_path)
    assert "goes on in epoch 3 after step 3" in errors
    assert f"epoch 2/{EPOCHS}" not in errors
    assert folder_digest(tmp_path / "student") == uninterrupted(method)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["half", "unflushed", "written"])
def test_killed_while_a_checkpoint_is_being_written(moment, tmp_path, digits, teacher, params_file, uninterrupted):
    arguments = command(digits, teacher, params_file, tmp_path)
    assert forked.run(kills_itself, moment, "4", *arguments, cwd=tmp_path).returncode == -signal.SIGKILL
    errors = finished(arguments, tmp_path)
    resumed_at = 5 if moment == "written" else 4
    assert f"epoch {resumed_at}/{EPOCHS}" in errors
    assert f"epoch {resumed_at - 1}/{EPOCHS}" not in errors
    assert folder_digest(tmp_path / "student") == uninterrupted("gompertz")


@pytest.mark.slow
def test_another_configuration_never_resumes_an_old_run(tmp_path, digits, teacher, params_file):
    arguments = command(digits, teacher, params_file, tmp_path)
    assert forked.run(kills_itself, "written", "2", *arguments, cwd=tmp_path).returncode == -signal.SIGKILL
    errors = finished([*arguments, "--set", "train.seed=1", "--set", "train.epochs=1"], tmp_path)
    assert "epoch 1/1" in errors
