"""Results and errors of other processes come back; a killed one costs a request, and none outlives the server."""

import asyncio
import io
import multiprocessing
import os
import signal
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
from PIL import Image

from gkd_core.data.images import Unreadable, read_image
from gkd_core.serving.limits import Overloaded
from gkd_core.serving.protocol import parse_request
from gkd_core.serving.tensors import ProtocolError, TensorSpec
from gkd_core.serving.workers import Workers

PIXELS = np.random.default_rng(0).integers(0, 256, (90, 140, 4), dtype=np.uint8)


@pytest.fixture
def workers():
    workers = Workers()
    yield workers
    workers.close()


def picture(size: int = 16) -> partial:
    stream = io.BytesIO()
    Image.fromarray(PIXELS).save(stream, "PNG")
    stream.seek(0)
    return partial(read_image, stream, size, 3, max_pixels=90 * 140)


def test_what_is_asked_of_processes_comes_back(workers):
    """One pool for all four: starting processes is what takes long."""
    spec = TensorSpec("image", "UINT8", (-1, 2))
    parse = partial(parse_request, input=spec, outputs=(spec,), max_batch=4, max_pixels=4)
    body = b'{"id": "seven", "inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 2], "data": [7, 255]}]}'

    async def story() -> None:
        parsed = await workers.run(parse, body)
        assert (parsed.id, parsed.images.tolist()) == ("seven", [[7, 255]])
        with pytest.raises(ProtocolError, match="Invalid JSON") as told:
            await workers.run(parse, body[:-2])
        assert told.value.status == 400
        assert np.array_equal(await workers.run(picture()), picture()())
        with pytest.raises(Unreadable):
            await workers.run(partial(read_image, io.BytesIO(b"no picture"), 16, 3))

    asyncio.run(story())


def test_a_killed_process_costs_its_requests_and_no_later_one(workers):
    async def story() -> None:
        before = set(multiprocessing.active_children())
        waiting = asyncio.create_task(workers.run(signal.pause))
        while not (new := set(multiprocessing.active_children()) - before):
            await asyncio.sleep(0.01)
        os.kill(new.pop().pid, signal.SIGKILL)
        with pytest.raises(Overloaded) as told:
            await waiting
        assert told.value.reason == "worker"
        assert await workers.run(pow, 2, 3) == 8

    asyncio.run(story())


def test_a_stop_sent_to_all_processes_does_not_end_one_before_the_server(workers):
    async def story() -> None:
        pid = await workers.run(os.getpid)
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(pid, number)
            assert await workers.run(pow, 2, 3) == 8

    asyncio.run(story())


def test_processes_end_with_a_server_that_was_killed():
    code = (
        "import asyncio, signal\n"
        "from gkd_core.serving.workers import Workers\n"
        "if __name__ == '__main__':\n"
        "    asyncio.run(Workers().run(pow, 2, 3))\n"
        "    print('there', flush=True)\n"
        "    signal.pause()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "there\n"
        server.kill()
        assert server.stdout.read() == ""  # its other end is closed: by the process too, which has it from the server
