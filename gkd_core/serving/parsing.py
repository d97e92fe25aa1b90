"""Where the body of an infer request is read, so that one long body does not keep the others waiting.

A short one is read at once, a longer one in a thread. To read JSON holds Python's interpreter lock from its first byte
to its last, seconds for a nested tensor of millions of values: what is that long goes to a process of its own.
"""

import asyncio
import gc
import multiprocessing
import os
import signal
import threading
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial

from gkd_core.serving.compression import decompress
from gkd_core.serving.limits import Overloaded
from gkd_core.serving.protocol import InferRequest, json_length, parse_request
from gkd_core.serving.tensors import TensorSpec

INLINE = 64 << 10  # bytes of a body that are read faster than a thread is asked to
ALONE = 512 << 10  # bytes of JSON that would hold the lock for tens of milliseconds


class Parser:
    """One thread, and one process from the first long JSON on; each reads one body at a time."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "parser")
        self._process: ProcessPoolExecutor | None = None

    async def decompress(self, packed: bytes, encoding: str, limit: int) -> bytes:
        """As `compression.decompress`."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, decompress, packed, encoding, limit)

    async def parse(
        self,
        body: bytes,
        header_length: str | None,
        *,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        max_batch: int,
    ) -> InferRequest:
        """As `protocol.parse_request`.

        Raises:
            Overloaded: the process was ended from outside while it read; the next body gets a new one.
            ProtocolError: as `protocol.parse_request`.
        """
        work = partial(parse_request, body, header_length, inputs=inputs, outputs=outputs, max_batch=max_batch)
        if len(body) <= INLINE:
            return work()
        executor: Executor = self._thread
        if json_length(header_length, body) > ALONE:
            executor = self._process = self._process or _process()
        try:
            return await asyncio.get_running_loop().run_in_executor(executor, work)
        except BrokenProcessPool:
            if self._process is executor:
                self._process = None
            raise Overloaded("parser", "the process that reads long requests was ended") from None

    def close(self) -> None:
        """After what is being read is read."""
        self._thread.shutdown()
        if self._process is not None:
            self._process.shutdown()


def _process() -> ProcessPoolExecutor:
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
