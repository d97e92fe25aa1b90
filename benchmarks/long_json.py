"""`python -m benchmarks.long_json`: how long one long JSON body keeps all other requests waiting, by where it is read.

A task that wants to run every millisecond stands for the others; its longest pause is told.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from functools import partial

from gkd_core.serving.protocol import InferRequest, parse_request
from gkd_core.serving.tensors import TensorSpec
from gkd_core.serving.workers import Workers

SHAPE = (16, 224, 224, 3)
GIVEN = {
    "input": TensorSpec("image", "UINT8", (-1, *SHAPE[1:])),
    "outputs": (TensorSpec("logits", "FP32", (-1, 10)),),
    "max_batch": 64,
    "max_pixels": 1,  # of models that take any size
}


def nested(shape: tuple[int, ...]) -> list:
    return [17] * shape[0] if len(shape) == 1 else [nested(shape[1:])] * shape[0]


async def longest_pause(read: Callable[..., Awaitable[InferRequest]], body: bytes) -> tuple[float, float]:
    """Seconds: of the longest pause, and of the reading as a whole."""
    reading = asyncio.ensure_future(read(partial(parse_request, body, **GIVEN)))
    begin = last = time.perf_counter()
    longest = 0.0
    while not reading.done():
        await asyncio.sleep(0.001)
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    assert isinstance(reading.result(), InferRequest)
    return longest, time.perf_counter() - begin


async def compare(body: bytes, label: str) -> None:
    """Two rows of the table."""
    workers = Workers()
    pauses: dict[str, float] = {}
    for place, read in (("a process", workers.run), ("a thread", asyncio.to_thread)):
        await longest_pause(read, body)  # the process is started
        found = [await longest_pause(read, body) for _ in range(5)]
        pauses[place], whole = (sorted(column)[2] for column in zip(*found, strict=True))
        ratio = pauses[place] / pauses["a process"]
        print(f"| {label} | {place} | {1000 * pauses[place]:,.0f} | {1000 * whole:,.0f} | {ratio:.0f} |")
    workers.close()


def main() -> None:
    entry = {"name": "image", "datatype": "UINT8", "shape": list(SHAPE)}
    print("| body | read in | longest pause of others, ms | read after, ms | ratio of pauses |\n" + "|---" * 5 + "|")
    for kind, data in (("nested", nested(SHAPE)), ("flat", [17] * (16 * 224 * 224 * 3))):
        body = json.dumps({"inputs": [entry | {"data": data}]}, separators=(",", ":")).encode()
        asyncio.run(compare(body, f"{kind}, {len(body) / 2**20:.1f} MiB"))


if __name__ == "__main__":
    main()
