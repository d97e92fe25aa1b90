"""Several workers of a search on this machine: processes that share its cores, and end with who started them."""

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from gkd_core import plugins
from gkd_core.cores import thread_limit
from gkd_core.errors import GkdError
from gkd_core.training.interruption import leave

STOP_SECONDS = 30


def run_workers(work: Callable[..., None], count: int, *arguments: Any) -> None:
    """Call `work(*arguments)` in so many processes, and wait until all have ended or one has failed.

    A worker that was killed from outside stops nobody: what it left, others take over.

    Raises:
        GkdError: as one of them.
        RuntimeError: likewise; the text is its traceback.
    """
    context = multiprocessing.get_context("spawn")
    processes: list[BaseProcess] = []
    says: list[Connection] = []
    threads = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(max(1, thread_limit() // count))  # read when torch is loaded, there
    try:
        for _ in range(count):
            receives, sends = context.Pipe(duplex=False)
            started = context.Process(target=_worker, args=(sends, work, arguments, plugins.loaded()))
            started.start()
            sends.close()
            processes.append(started)
            says.append(receives)
        alive = {process.sentinel: (process, receives) for process, receives in zip(processes, says, strict=True)}
        while alive:
            ready = wait(list(alive))
            for sentinel in [each for each in alive if each in ready]:
                ended, said = alive.pop(sentinel)
                ended.join()
                if ended.exitcode and (error := _told(said)) is not None:
                    raise error
    finally:
        if threads is None:
            os.environ.pop("OMP_NUM_THREADS", None)
        else:
            os.environ["OMP_NUM_THREADS"] = threads
        for left in processes:
            left.terminate()
        for left in processes:
            left.join(STOP_SECONDS)
            left.kill()


def _told(receives: Connection) -> Exception | None:
    """What a worker failed of; None where it was killed."""
    try:
        kind, text = receives.recv()
    except EOFError:
        return None
    return GkdError(text) if kind == "GkdError" else RuntimeError(f"in a worker\n{text}")


def _worker(says: Connection, work: Callable[..., None], arguments: tuple[Any, ...], modules: list[str]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the one that started us ends us
    signal.signal(signal.SIGTERM, leave)
    threading.Thread(target=_never_outlive_parent, daemon=True).start()
    os.environ["TTY_COMPATIBLE"] = "0"  # rich: several bars in one terminal are none: lines instead
    try:
        plugins.load(modules)
        work(*arguments)
    except GkdError as error:
        says.send(("GkdError", str(error)))
        sys.exit(error.exit_code)
    except Exception:
        says.send(("other", traceback.format_exc()))
        sys.exit(1)


def _never_outlive_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)
