"""Work that takes long, beside the event loop: in a thread or a process, one piece at a time.

Reading JSON and decoding pictures hold Python's interpreter lock, for seconds if they are large: what may be that long
goes to a process of its own. What waits for its turn waits here, and not in the executor: who gives up leaves nothing
behind. What has begun cannot be ended, and counts until it is done, whether somebody still waits for it or not.
"""

import asyncio
import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any, TypeVar

from gkd_core.serving.limits import Overloaded

Result = TypeVar("Result")
Begun = Callable[["asyncio.Future[Any]"], None]  # told of work that has begun: it holds what it was given until it ends


class Worker:
    """One thread or process.

    Args:
        what: it does, for the sentence when it is ended.
        opened: makes the executor, when there is something to do for the first time.
    """

    def __init__(self, what: str, opened: Callable[[], Executor]) -> None:
        self._what = what
        self._opened = opened
        self._executor: Executor | None = None
        self._turn = asyncio.Lock()
        self.load = 0  # pieces of work that wait, or have begun and are not done

    async def run(self, begun: Begun, function: Callable[..., Result], *arguments: Any) -> Result:
        """What the function returns; in a process all must be picklable.

        Raises:
            Overloaded: the process was ended from outside while it worked; the next work gets a new one.
            Exception: what the function raises.
        """
        self.load += 1
        try:
            await self._turn.acquire()
        except BaseException:
            self.load -= 1
            raise
        try:
            work = self._begin(partial(function, *arguments))
        except BaseException:
            self._free()
            raise
        work.add_done_callback(self._done)
        begun(work)
        await asyncio.wait((work,))  # cancelled, it lets the work go on
        try:
            return work.result()
        except BrokenProcessPool:
            raise Overloaded("worker", f"the process that {self._what} was ended") from None

    def close(self) -> None:
        """After what has begun is done."""
        if self._executor is not None:
            self._executor.shutdown()

    def _begin(self, call: Callable[[], Result]) -> "asyncio.Future[Result]":
        loop = asyncio.get_running_loop()
        self._executor = self._executor or self._opened()
        try:
            return loop.run_in_executor(self._executor, call)
        except BrokenProcessPool:  # it was ended while it had nothing to do
            self._executor = self._opened()
            return loop.run_in_executor(self._executor, call)

    def _done(self, work: "asyncio.Future[Any]") -> None:
        if not work.cancelled() and isinstance(work.exception(), BrokenProcessPool):
            self._executor = None
        self._free()

    def _free(self) -> None:
        self.load -= 1
        self._turn.release()


def thread(name: str) -> Executor:
    """An executor with one thread."""
    return ThreadPoolExecutor(1, name)


def process() -> Executor:
    """An executor with one process, which ends with the server."""
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), initializer=_prepare)


def _prepare() -> None:
    """In the process: it ends with the server, however that ends, and not before."""
    for asked in (signal.SIGINT, signal.SIGTERM):  # a terminal or a service manager may ask all processes at once
        signal.signal(asked, signal.SIG_IGN)
    gc.disable()  # JSON has no cycles, and to look for some is most of the work on a nested tensor
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(0)
