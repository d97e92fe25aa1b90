"""Where the body of an infer request is read, so that one long body does not keep the others waiting.

A short one is read at once, a longer one in a thread, and long JSON in a process.
"""

import asyncio
from functools import partial
from typing import Any

from gkd_core.serving.compression import decompress
from gkd_core.serving.protocol import InferRequest, json_length, parse_request
from gkd_core.serving.tensors import TensorSpec
from gkd_core.serving.worker import Begun, Worker, process, thread

INLINE = 64 << 10  # bytes of a body that are read faster than a thread is asked to
ALONE = 512 << 10  # bytes of JSON that would hold the lock for tens of milliseconds


def _nobody(work: "asyncio.Future[Any]") -> None:
    """Told of work that has begun, when nobody counts what it holds."""


class Parser:
    """One thread, and one process from the first long JSON on; each reads one body at a time."""

    def __init__(self) -> None:
        self._thread = Worker("unpacks requests", partial(thread, "parser"))
        self._process = Worker("reads long requests", process)

    async def decompress(self, packed: bytes, encoding: str, limit: int, *, begun: Begun = _nobody) -> bytes:
        """As `compression.decompress`."""
        return await self._thread.run(begun, decompress, packed, encoding, limit)

    async def parse(
        self,
        body: bytes,
        header_length: str | None,
        *,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        max_batch: int,
        begun: Begun = _nobody,
    ) -> InferRequest:
        """As `protocol.parse_request`.

        Args:
            begun: told of the work, should it be done elsewhere.
        Raises:
            Overloaded: the process was ended from outside while it read.
            ProtocolError: as `protocol.parse_request`.
        """
        work = partial(parse_request, body, header_length, inputs=inputs, outputs=outputs, max_batch=max_batch)
        if len(body) <= INLINE:
            return work()
        worker = self._process if json_length(header_length, body) > ALONE else self._thread
        return await worker.run(begun, work)

    def close(self) -> None:
        """After what is being read is read."""
        self._thread.close()
        self._process.close()
