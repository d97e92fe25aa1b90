"""A step in several processes of this machine, one a device: it starts itself again in each, and waits.

Each process runs the whole step with its part of every batch (`gkd_core/training/distributed.py`); the first one
writes. What goes wrong in one of them stops all, and is raised here as if it had happened here. A signal to this
process is theirs: they end at the same step, their checkpoint written, and it ends after them. Where torchrun has
started the processes already (a training job on a cluster), nothing is launched: the step joins the others.
"""

import importlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from gkd_core import plugins
from gkd_core.config import Params, TrainingConfig, params_of_sections
from gkd_core.cores import thread_limit, usable_cores
from gkd_core.errors import GkdError
from gkd_core.files import write_json
from gkd_core.training.device import choose_device
from gkd_core.training.distributed import refuse_too_many, started_by_torchrun
from gkd_core.training.interruption import deferred, leave

POLL_SECONDS = 0.1
STOP_SECONDS = 30  # for the others to leave in good order when one has ended; then they are killed


def must_launch(training: TrainingConfig) -> bool:
    """Whether a training wants more processes than this one, and nobody has started them.

    Raises:
        GkdError: this is one pod of several that torchrun should have started.
    """
    if started_by_torchrun():
        return False
    if os.environ.get("PET_NNODES", "1") != "1":  # Kubeflow Trainer says in PET_* how a job's pods belong together
        raise GkdError(
            "this is one pod of a training job of several (PET_NNODES is set), and torchrun has not started it: make "
            "its command `python -m torch.distributed.run -m pipelines.cli …`"
        )
    return training.devices > 1


def launch(step: str, *, params: Params, training: TrainingConfig, **arguments: Any) -> dict[str, Any]:
    """Run a step in `training.devices` processes of this machine.

    Args:
        step: module whose `run` it is.
        training: the section that says on what and on how many.
        arguments: of `run`, beside `params`: paths, texts, None.
    Returns:
        What `run` returns.
    Raises:
        GkdError: this machine has too few devices, a process was killed, or what `run` raised in one of them.
        OSError: likewise.
        RuntimeError: `run` raised something else; the text is its traceback.
    """
    devices = training.devices
    refuse_too_many(devices, training.device)
    if choose_device(training.device).type == "cpu" and devices > usable_cores():
        print(f"train.devices: {devices} processes share {usable_cores()} CPU cores", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="gkd-") as temporary:
        folder = Path(temporary)
        call = {
            "step": step,
            "params": params.model_dump(mode="json"),
            "plugins": plugins.loaded(),
            "paths": {name: str(value) for name, value in arguments.items() if isinstance(value, Path)},
            "others": {name: value for name, value in arguments.items() if not isinstance(value, Path)},
        }
        (folder / "call.json").write_text(json.dumps(call))
        if failed := _run_processes(folder, devices):
            raise _cause(folder, failed)
        result: dict[str, Any] = json.loads((folder / "result.json").read_text())
        return result


def _run_processes(folder: Path, count: int) -> dict[int, int]:
    """Start them, wait until all have ended or one has failed, and leave none behind.

    Who asks this process to end has the patience that a checkpoint takes, or kills it, and the others with it.

    Returns:
        Exit code by rank, of the processes that failed by themselves.
    """
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # slow to import, and only several devices need it

    # Through it they find each other. It listens before they start, as torchrun's does, so nobody can take its port.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment = {
        "TORCH_CPP_LOG_LEVEL": "ERROR",  # no advice on settings chosen on purpose
        **os.environ,
        "OMP_NUM_THREADS": str(max(1, thread_limit() // count)),
        "MASTER_ADDR": store.host,
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
    }
    lifeline, held = os.pipe()  # its reading end sees the end of this process, however it comes
    processes: list[subprocess.Popen[bytes]] = []
    try:
        with deferred() as stop:  # between start and entry in the list, too
            try:
                for rank in map(str, range(count)):
                    processes.append(
                        subprocess.Popen(
                            [sys.executable, "-m", __name__, str(folder)],
                            env=environment | {"RANK": rank, "LOCAL_RANK": rank},
                            stdin=lifeline,
                            start_new_session=True,  # Ctrl-C reaches this process alone, which tells the others
                        )
                    )
                while None in (codes := [process.poll() for process in processes]) and not any(codes):
                    if stop.number:
                        break
                    time.sleep(POLL_SECONDS)
                # Who failed before the one just seen has ended by now.
                codes = [process.poll() for process in processes]
                return {rank: code for rank, code in enumerate(codes) if code}
            finally:
                _stop(processes)
    finally:
        os.close(lifeline)
        os.close(held)


def _stop(processes: list[subprocess.Popen[bytes]]) -> None:
    """Ask them to end, which they do together, however long their checkpoint takes; then kill who has not.

    Who is left a while after the first waits for that one, and will for long. Asked once more, this one does not wait.
    """
    end = math.inf
    try:
        for process in processes:
            process.terminate()  # does nothing to one that has ended
        while None in (codes := [process.poll() for process in processes]) and time.monotonic() < end:
            if any(code is not None for code in codes):
                end = min(end, time.monotonic() + STOP_SECONDS)
            time.sleep(POLL_SECONDS)
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _cause(folder: Path, exits: dict[int, int]) -> Exception:
    """The first cause; that the others then lost their connection is none.

    Args:
        exits: exit code by rank, of the processes that failed by themselves.
    """
    reports = [json.loads(file.read_text()) for file in folder.glob("error-*.json")]
    reports.sort(key=lambda report: report["time"])
    for report in reports:
        if report["kind"] == "GkdError":
            error = GkdError(report["text"])
            error.exit_code = report["exit_code"]
            return error
        if report["kind"] == "OSError":
            return OSError(*report["arguments"])
    for rank, code in sorted(exits.items(), key=lambda item: item[1] != -signal.SIGKILL):
        number = -code if code < 0 else code - 128  # `leave` ends with 128 + number
        if number in set(signal.Signals):
            memory = ", perhaps for want of memory" if number == signal.SIGKILL else ""
            return GkdError(
                f"process {rank} of the training was stopped by {signal.Signals(number).name}{memory}, and the "
                "others with it: run the same command again to go on from the last checkpoint"
            )
    if reports:
        return RuntimeError(f"in a process of the training\n{reports[0]['text']}")
    return RuntimeError(f"processes of the training ended with exit codes {exits} by rank")


def main(folder: Path) -> None:
    """One of the processes: leaves result.json or error-RANK.json in `folder`, and nothing on stderr but progress."""
    signal.signal(signal.SIGTERM, leave)
    threading.Thread(target=_never_outlive_launcher, daemon=True).start()
    call = json.loads((folder / "call.json").read_text())
    try:
        plugins.load(call["plugins"])
        run = importlib.import_module(call["step"]).run
        paths = {name: Path(path) for name, path in call["paths"].items()}
        facts = run(**paths, **call["others"], params=params_of_sections(call["params"]))
    except SystemExit as stop:
        os._exit(stop.code if isinstance(stop.code, int) else 1)  # see below
    except Exception as error:
        report: dict[str, Any] = {"kind": "other", "text": traceback.format_exc(), "time": time.time()}
        if isinstance(error, GkdError):
            report |= {"kind": "GkdError", "text": str(error), "exit_code": error.exit_code}
        elif isinstance(error, OSError):
            filename = None if error.filename is None else str(error.filename)
            report |= {"kind": "OSError", "arguments": [error.errno, error.strerror or str(error), filename]}
        write_json(folder / f"error-{os.environ['RANK']}.json", report)
        sys.stderr.flush()
        os._exit(1)  # what communicates in the background may wait for the others, and they for this one
    if os.environ["RANK"] == "0":
        (folder / "result.json").write_text(json.dumps(facts, default=str))


def _never_outlive_launcher() -> None:
    """A launcher that was killed stops nobody any more, and the next one would meet its orphans at work."""
    os.read(sys.stdin.fileno(), 1)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
