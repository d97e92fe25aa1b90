"""A step in several processes: it starts itself again under torchrun, once for every device, and waits.

Each process runs the whole step with its part of every batch (`gkd_core/training/distributed.py`); the first one
writes. What goes wrong in one of them stops all, and is raised here as if it had happened here. In a job where torchrun
has started the processes already, nothing is launched: the step joins the others.
"""

import contextlib
import importlib
import json
import logging
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gkd_core.config import Params, TrainingConfig, parse_params
from gkd_core.errors import GkdError
from gkd_core.training.device import choose_device
from gkd_core.training.distributed import refuse_too_many, started_by_torchrun

SECONDS_BETWEEN_LOOKS = 0.5
STOPS = (signal.SIGINT, signal.SIGTERM)
# A training job on a cluster (Kubeflow Trainer) says in PET_* how its pods belong together; torchrun reads them itself.
IN_A_JOB = "PET_NNODES"


def must_launch(training: TrainingConfig) -> bool:
    """Whether a training wants more processes than this one, and nobody has started them."""
    return not started_by_torchrun() and (training.devices > 1 or IN_A_JOB in os.environ)


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
    if IN_A_JOB not in os.environ:
        refuse_too_many(devices, training.device)
        if choose_device(training.device).type == "cpu" and devices > _cores():
            print(f"train.devices: {devices} processes share {_cores()} CPU cores", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="gkd-") as temporary:
        folder = Path(temporary)
        call = {
            "step": step,
            "params": params.model_dump(mode="json", exclude_unset=True),
            "paths": {name: str(value) for name, value in arguments.items() if isinstance(value, Path)},
            "others": {name: value for name, value in arguments.items() if not isinstance(value, Path)},
            "launcher": os.getpid(),
        }
        (folder / "call.json").write_text(json.dumps(call))
        _run_and_wait(folder, devices)
        result: dict[str, Any] = json.loads((folder / "result.json").read_text())
        return result


def _run_and_wait(folder: Path, devices: int) -> None:
    """Raises: what went wrong in a process; a signal to this process goes to the others, then to its own handler."""
    from torch.distributed import run as torchrun  # slow to import, and only several devices need it
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    arguments = ["--max-restarts", "0", "--log-dir", str(folder / "torchrun")]
    if IN_A_JOB not in os.environ:
        arguments += ["--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", str(devices)]
    try:
        with _as_it_was(threads=max(1, _cores() // devices)):
            torchrun.run(torchrun.parse_args([*arguments, "-m", __name__, str(folder)]))
    except ChildFailedError as failed:
        exits = {number: failure.exitcode for number, failure in failed.failures.items()}
        raise _what_happened(folder, exits) from None
    except SignalException as stopped:
        signal.raise_signal(stopped.sigval)
        raise GkdError(f"stopped by {stopped.sigval.name}: run the same command again to go on") from None


def _what_happened(folder: Path, exits: dict[int, int]) -> Exception:
    """The first cause; that the others then lost their connection is none.

    Args:
        exits: exit code by rank, of the processes that ended before torchrun stopped the rest.
    """
    reports = sorted(
        (json.loads(file.read_text()) for file in folder.glob("error-*.json")), key=lambda report: report["time"]
    )
    for report in reports:
        if report["kind"] == "GkdError":
            error = GkdError(report["text"])
            error.exit_code = report["exit_code"]
            return error
        if report["kind"] == "OSError":
            return OSError(*report["arguments"])
    stops = {-signal.SIGKILL: signal.SIGKILL} | {128 + number: number for number in STOPS}
    stops |= {-number: number for number in signal.Signals if -number not in stops}
    for code, number in stops.items():
        for rank, ended in exits.items():
            if ended == code:
                memory = ", perhaps for want of memory" if number == signal.SIGKILL else ""
                return GkdError(
                    f"process {rank} of the training was stopped by {signal.Signals(number).name}{memory}, and the "
                    "others with it: run the same command again to go on after the last whole epoch"
                )
    if reports:
        return RuntimeError(f"in a process of the training\n{reports[0]['text']}")
    return RuntimeError(f"processes of the training ended with exit codes {exits} by rank")


@contextlib.contextmanager
def _as_it_was(threads: int) -> Iterator[None]:
    """A block for torchrun, which sets signal handlers and variables, and tells of a failure in many lines.

    Args:
        threads: for each process, where the user has not said how many (OMP_NUM_THREADS).
    """
    main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in (*STOPS, signal.SIGHUP, signal.SIGQUIT)} if main else {}
    variables = dict(os.environ)
    silenced = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # no advice on settings chosen on purpose
    try:
        yield
    finally:
        logging.disable(silenced)
        for name in set(os.environ) - set(variables):
            del os.environ[name]
        os.environ.update(variables)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main(folder: Path) -> None:
    """One of the processes: leaves result.json or error-RANK.json in `folder`, and nothing on stderr but progress."""
    call = json.loads((folder / "call.json").read_text())
    for number in STOPS:
        signal.signal(number, _leave)
    threading.Thread(target=_never_outlive, args=(call["launcher"],), daemon=True).start()
    try:
        run = importlib.import_module(call["step"]).run
        paths = {name: Path(path) for name, path in call["paths"].items()}
        facts = run(**paths, **call["others"], params=parse_params(call["params"]))
    except SystemExit as stop:
        os._exit(stop.code if isinstance(stop.code, int) else 1)  # see below
    except Exception as error:
        report: dict[str, Any] = {"kind": "other", "text": traceback.format_exc(), "time": time.time()}
        if isinstance(error, GkdError):
            report |= {"kind": "GkdError", "text": str(error), "exit_code": error.exit_code}
        elif isinstance(error, OSError):
            report |= {"kind": "OSError", "arguments": [error.errno, error.strerror or str(error), error.filename]}
        (folder / f"error-{os.environ['RANK']}.json").write_text(json.dumps(report, default=str))
        sys.stderr.flush()
        os._exit(1)  # what communicates in the background may wait for the others, and they for this one
    if os.environ["LOCAL_RANK"] == "0":
        (folder / "result.json").write_text(json.dumps(facts, default=str))


def _leave(number: int, frame: object) -> None:
    signal.signal(number, signal.SIG_IGN)
    raise SystemExit(128 + number)


def _never_outlive(launcher: int) -> None:
    """A launcher that was killed stops nobody any more, and the next one would meet its orphans at work."""
    while os.getppid() == launcher:
        time.sleep(SECONDS_BETWEEN_LOOKS)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
