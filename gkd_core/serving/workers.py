"""Processes for work that holds Python's interpreter lock long: the JSON of large tensors, and pictures.

In the server's own process 8 MiB of JSON would keep all other requests waiting for 0.7 s, and a picture that crashes
its decoder would end the server.
"""

import asyncio
import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from gkd_core.serving.limits import Overloaded

PROCESSES = 2  # started when there is work for them

Result = TypeVar("Result")


class Workers:
    """A process pool that is made anew when one of its processes was killed."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None

    async def run(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """What the function returns; all must be picklable.

        Raises:
            Overloaded: a process was killed meanwhile.
            Exception: what the function raises.
        """
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(PROCESSES, mp_context=context, initializer=_prepare)
        pool = self._pool
        try:
            return await asyncio.get_running_loop().run_in_executor(pool, function, *arguments)
        except BrokenProcessPool:
            if self._pool is pool:
                self._pool = None
            raise Overloaded("worker", "the process that read this request was killed") from None

    def close(self) -> None:
        """End the processes, after what they have begun."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def _prepare() -> None:
    live_as_long_as_parent()
    gc.disable()  # JSON has no cycles, and looking for some is most of the work on a nested tensor


def live_as_long_as_parent() -> None:
    """Of a process of a pool: a stop that is sent to all processes at once does not end it, its parent's end does."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(0)
