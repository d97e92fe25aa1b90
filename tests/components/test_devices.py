"""`train.devices`: real processes, stopped in real ways. On CPUs; with CUDA only what refuses is tried."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from components import distill, launch
from gkd_core.config import parse_params
from gkd_core.errors import GkdError
from gkd_core.files import folder_digest
from gkd_core.training import distributed

EPOCHS = 4
PARAMS = {
    "student": {"name": "resnet8"},
    "distill": {"method": "ce"},
    "train": {"epochs": EPOCHS, "device": "cpu", "devices": 2, "batch_size": 20, "ema_decay": 0.9},
}


@pytest.fixture(autouse=True)
def _one_thread_each(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def params(**train):
    return parse_params(PARAMS | {"train": PARAMS["train"] | train})


def run(data: Path, folder: Path, **train) -> dict:
    return distill.run(data=data, teacher=None, out=folder / "student", work=folder / "work", params=params(**train))


class Started:
    """`gkd distill` on two devices, in the background."""

    def __init__(self, data: Path, folder: Path, *launcher: str, **environment: str) -> None:
        file = folder / "params.yaml"
        file.write_text(yaml.safe_dump(PARAMS))
        places = {"params": file, "data": data, "out": folder / "student", "work": folder / "work"}
        options = [f"--{name}={place}" for name, place in places.items()]
        self.process = subprocess.Popen(
            [sys.executable, *launcher, "-m", "pipelines.cli", "distill", *options],
            stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | environment,
        )  # fmt: skip
        self.lines: list[str] = []

    def wait_for(self, text: str) -> None:
        for line in self.process.stderr:
            self.lines.append(line)
            if text in line:
                return
        raise AssertionError("".join(self.lines))

    def wait_for_handlers(self) -> None:
        """Until SIGTERM is caught."""
        status = Path(f"/proc/{self.process.pid}/status")
        while True:
            caught = next(line for line in status.read_text().splitlines() if line.startswith("SigCgt:"))
            if int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1:
                return

    def workers(self) -> list[int]:
        """In order of rank."""
        found = subprocess.run(["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True).stdout.split()
        return sorted(map(int, found))

    def end(self) -> tuple[int, str, str]:
        """Exit code, stdout, all of stderr."""
        out, errors = self.process.communicate(timeout=250)
        return self.process.returncode, out, "".join(self.lines) + errors


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def told(errors: str) -> list[str]:
    """What is neither progress nor the recipe that was chosen."""
    return [line for line in errors.splitlines() if "img/s" not in line and " recipe " not in line]


@pytest.fixture(scope="module")
def uncut(few_digits, tmp_path_factory) -> str:
    """Digest of the student that nobody stopped."""
    folder = tmp_path_factory.mktemp("uncut")
    run(few_digits, folder)
    return folder_digest(folder / "student")


@pytest.mark.slow
def test_one_killed_stops_all_and_started_again_they_end_with_the_same_bits(tmp_path, few_digits, capfd, monkeypatch):
    monkeypatch.setattr(launch, "usable_cores", lambda: 1)
    whole = tmp_path / "whole"
    facts = run(few_digits, whole)
    assert "2 processes share 1 CPU cores" in capfd.readouterr().err
    assert facts["processes"] == json.loads((whole / "student" / "training.json").read_text())["processes"] == 2
    assert not list((whole / "work").rglob("*.pt")), "the checkpoint of a finished training stays behind"

    folder = tmp_path / "stopped"
    folder.mkdir()
    started = Started(few_digits, folder)
    while len(workers := started.workers()) < 2:
        assert started.process.poll() is None, started.end()
    started.wait_for("epoch 1/")
    os.kill(workers[1], signal.SIGKILL)
    code, out, errors = started.end()
    assert (code, out) == (2, "")
    assert len(told(errors)) == 1
    assert "gkd: process 1 of the training was stopped by SIGKILL" in errors
    assert "run the same command again" in errors

    assert all(map(gone, workers))
    assert sorted(p.name for p in folder.iterdir()) == ["params.yaml", "work"], "half a folder stays behind"

    code, out, errors = Started(few_digits, folder).end()
    assert code == 0, errors
    assert "epoch 1/" not in errors, "it began anew instead of going on"
    assert json.loads(out)["validation_top1"] == facts["validation_top1"]
    assert folder_digest(folder / "student") == folder_digest(whole / "student")


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
# Read by every interpreter that starts: in the eighth step of process 1, the third of epoch 2, comes the signal.
SIGNAL = """
import itertools, os, signal, time
if os.environ.get("RANK") == "1":
    from gkd_core.data.loader import Loader
    epoch, steps = Loader.epoch, itertools.count(1)

    def with_signal(self, n, start=0):
        for batch in epoch(self, n, start):
            if self.shuffle and next(steps) == 8:
                arrived, handler = [], signal.getsignal(signal.SIGTERM)
                signal.signal(signal.SIGTERM, lambda *given: (arrived.append(given), handler(*given)))
                # To this process, or to who started it and through that to this and the other.
                os.kill(os.getpid() if os.environ["WHO"] == "process 1" else os.getppid(), signal.SIGTERM)
                while not arrived:
                    time.sleep(0.01)
            yield batch

    Loader.epoch = with_signal
"""


@pytest.mark.slow
@pytest.mark.parametrize("who", ["launcher", "process 1", "torchrun"])
def test_terminated_they_end_at_the_same_step_and_go_on_from_it_to_the_same_bits(
    who, tmp_path, few_digits, uncut, tmp_path_factory
):
    at_start = tmp_path_factory.mktemp("at start")
    (at_start / "sitecustomize.py").write_text(SIGNAL)
    launcher = TORCHRUN if who == "torchrun" else ()
    # torchrun kills what has not ended after 30 seconds, which are few on a busy machine.
    patient = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "600"}
    code, _, errors = Started(few_digits, tmp_path, *launcher, PYTHONPATH=str(at_start), WHO=who, **patient).end()
    last = errors.splitlines()[-1]
    # Whoever passes the signal on may reach the other process a step earlier.
    ended = re.search(r"SIGTERM: ends after (step [34]) of epoch 2, which is in the checkpoint", errors)
    assert ended, errors
    if who == "launcher":
        assert (code, last) == (128 + signal.SIGTERM, "gkd: interrupted; run the same command again to go on")
    elif who == "torchrun":  # of which every code but 0 is tried again
        assert code == 1
    else:
        assert code == 2
        assert re.match(r"gkd: process \d of the training was stopped by SIGTERM", last)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["params.yaml", "work"], "half a folder stays behind"

    code, _, errors = Started(few_digits, tmp_path).end()
    assert code == 0, errors
    assert f"goes on in epoch 2 after {ended[1]}" in errors
    assert folder_digest(tmp_path / "student") == uncut


@pytest.mark.slow
@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_signal_while_the_processes_start_stops_all_with_one_sentence(count, tmp_path, few_digits):
    started = Started(few_digits, tmp_path)
    while len(workers := started.workers()) < count:
        assert started.process.poll() is None, started.end()
    if count == 0:
        started.wait_for_handlers()
    started.process.send_signal(signal.SIGTERM)
    code, out, errors = started.end()
    assert (code, out) == (128 + signal.SIGTERM, "")
    assert errors.splitlines() == ["gkd: interrupted; run the same command again to go on"]
    assert all(map(gone, workers))
    assert not (tmp_path / "student").exists()


def test_a_signal_between_start_and_entry_in_the_list_leaves_no_process_behind(monkeypatch, tmp_path):
    started, popen = [], subprocess.Popen

    def start_then_signal(command, **how):
        started.append(popen([sys.executable, "-c", "import sys; sys.stdin.read()"], **how))
        signal.raise_signal(signal.SIGTERM)
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", start_then_signal)
    with pytest.raises(SystemExit) as ended:
        launch._run_processes(tmp_path, 2)
    assert ended.value.code == 128 + signal.SIGTERM
    assert [process.returncode for process in started] == [-signal.SIGTERM] * 2


@pytest.fixture
def ctrl_c():
    """What a terminal's Ctrl-C does; a suite that a shell started in the background would have it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda: signal.raise_signal(signal.SIGINT)
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_once_more_does_not_wait_for_the_checkpoint(monkeypatch, tmp_path, ctrl_c):
    ignores = "import signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); sys.stdin.read()"
    started, popen = [], subprocess.Popen

    class Impatient(popen):
        def terminate(self):
            super().terminate()
            ctrl_c()

    def start_then_signal(command, **how):
        started.append(Impatient([sys.executable, "-c", ignores], stdout=subprocess.PIPE, **how))
        started[-1].stdout.readline()
        if len(started) == 2:
            ctrl_c()
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", start_then_signal)
    with pytest.raises(KeyboardInterrupt):
        launch._run_processes(tmp_path, 2)
    assert [process.returncode for process in started] == [-signal.SIGKILL] * 2


def test_a_pod_of_several_that_torchrun_did_not_start_is_refused(monkeypatch):
    monkeypatch.setenv("PET_NNODES", "2")
    with pytest.raises(GkdError, match=r"torch\.distributed\.run"):
        launch.must_launch(params().train)
    monkeypatch.setenv("PET_NNODES", "1")
    assert launch.must_launch(params().train)


@pytest.mark.slow
def test_what_a_process_refuses_is_raised_as_the_steps_own_sentence(tmp_path, few_digits):
    taught = parse_params(PARAMS | {"distill": {"method": "kd"}})
    with pytest.raises(GkdError, match=r"^distill\.method kd learns from a teacher: pass --teacher FOLDER$"):
        distill.run(data=few_digits, teacher=None, out=tmp_path / "student", work=tmp_path / "work", params=taught)
    assert not any(tmp_path.iterdir())


def report(folder: Path, rank: int, **content) -> None:
    (folder / f"error-{rank}.json").write_text(json.dumps({"kind": "other", "text": "", "time": rank} | content))


def test_the_cause_is_told_rather_than_its_consequences(tmp_path):
    report(tmp_path, 0, text="RuntimeError: connection closed by peer")
    assert "connection closed" in str(launch._cause(tmp_path, {0: 1}))
    killed = launch._cause(tmp_path, {0: 1, 1: -signal.SIGKILL})
    assert "process 1 of the training was stopped by SIGKILL, perhaps for want of memory" in str(killed)
    stopped = launch._cause(tmp_path, {0: 1, 3: 128 + signal.SIGTERM})
    assert "process 3 of the training was stopped by SIGTERM, and" in str(stopped)
    report(tmp_path, 2, kind="OSError", arguments=[28, "No space left on device", "work/checkpoint.pt"])
    full = launch._cause(tmp_path, {0: 1, 1: -signal.SIGKILL})
    assert isinstance(full, OSError)
    assert full.filename == "work/checkpoint.pt"


@pytest.mark.slow
def test_processes_do_not_outlive_a_killed_launcher(tmp_path, few_digits):
    started = Started(few_digits, tmp_path)
    started.wait_for("epoch 1/")
    started.process.kill()
    started.process.stderr.read()  # ends when the last process that holds it open is gone
    assert not (tmp_path / "student").exists()


def test_more_devices_than_there_are_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(distributed, "choose_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(GkdError, match=r"train\.devices is 2, but this machine shows 1 CUDA devices"):
        run(tmp_path, tmp_path, device="auto")


def test_each_process_has_the_device_of_its_number(monkeypatch):
    monkeypatch.setattr(distributed, "choose_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert distributed.own_device("auto") == torch.device("cuda"), "alone, nothing is chosen"
    job = {"RANK": "6", "LOCAL_RANK": "2", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}
    for name, value in (job | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}).items():
        monkeypatch.setenv(name, value)
    assert distributed.own_device("auto") == torch.device("cuda:2")
    assert not launch.must_launch(params().train), "in a job others have started the processes"
    monkeypatch.setattr(distributed, "choose_device", lambda name: torch.device("mps"))
    with pytest.raises(GkdError, match="one MPS device"):
        distributed.own_device("auto")


@pytest.mark.parametrize(
    ("train", "sentence"),
    [
        ({"devices": 3}, "train: batch_size \\(20\\) must be a multiple of devices \\(3\\)"),
        ({"devices": 20}, "at least 2 images for each"),
        ({"device": "cuda:1"}, "device cuda:1 names one device but devices is 2"),
        ({"device": "mps"}, "device is mps, of which there is one, but devices is 2"),
    ],
)
def test_what_does_not_go_together_is_refused(train, sentence):
    with pytest.raises(GkdError, match=sentence):
        params(**train)


def test_one_device_is_what_it_was_and_several_are_another_configuration():
    digests = {params(devices=devices).digest("student", "train") for devices in (1, 2)}
    assert len(digests) == 2
    one = params(devices=1)
    assert one.digest("train") == parse_params(
        {"train": {k: v for k, v in PARAMS["train"].items() if k != "devices"}}
    ).digest("train")
    assert "devices" not in json.dumps(one.model_dump(mode="json", include={"gate"}))
