"""Pictures are decoded beside the server, no larger than allowed, and as everywhere else."""

import asyncio
import io
import multiprocessing
import threading
from functools import partial

import numpy as np
import pytest
from PIL import Image
from starlette.requests import Request

from components.model_source import FileSource
from gkd_core.data.images import Unreadable, read_image
from gkd_core.serving import parsing, pictures
from gkd_core.serving.app import Serving, classify, infer
from gkd_core.serving.batching import Batcher
from gkd_core.serving.limits import Limits, Overloaded
from gkd_core.serving.metrics import Metrics
from gkd_core.serving.pictures import Decoder
from gkd_core.serving.reload import Served
from gkd_core.serving.worker import Worker, thread
from tests.unit.serving.test_worker import ignore

PIXELS = np.random.default_rng(0).integers(0, 256, (90, 140, 4), dtype=np.uint8)


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def decoder():
    decoder = Decoder(Limits(pictures=2, pixels=90 * 140))
    yield decoder
    decoder.close()


def test_in_a_process_and_as_everywhere(decoder):
    before = set(multiprocessing.active_children())
    for channels in (1, 3):
        array = asyncio.run(decoder.decode(png(PIXELS), 16, channels, begun=ignore))
        assert np.array_equal(array, read_image(io.BytesIO(png(PIXELS)), 16, channels))
    assert len(set(multiprocessing.active_children()) - before) == 1


def test_what_cannot_be_decoded_is_said(decoder):
    with pytest.raises(Unreadable, match=r"91 pixels large, and more than 12,600 are not decoded"):
        asyncio.run(decoder.decode(png(np.zeros((91, 140), np.uint8)), 16, 3, begun=ignore))
    with pytest.raises(Unreadable, match="cannot identify it"):
        asyncio.run(decoder.decode(b"no picture", 16, 3, begun=ignore))


def test_no_more_than_so_many_wait(decoder):
    async def story() -> list:
        return await asyncio.gather(
            *(decoder.decode(png(PIXELS), 16, 3, begun=ignore) for _ in range(3)), return_exceptions=True
        )

    results = asyncio.run(story())
    assert [type(result) for result in results] == [np.ndarray, np.ndarray, Overloaded]
    assert "2 pictures are waiting to be decoded already" in str(results[2])


@pytest.mark.parametrize("endpoint", [classify, infer])
def test_a_body_counts_as_long_as_it_is_worked_on(endpoint, tmp_path, make_deploy, monkeypatch):
    go_on = threading.Event()

    def wait(*_: object, **__: object) -> None:
        assert go_on.wait(60)

    monkeypatch.setattr(pictures, "_decode", wait)
    monkeypatch.setattr(parsing, "parse_request", wait)
    monkeypatch.setattr(parsing, "INLINE", 0)
    size, metrics = 1000, Metrics()
    limits = Limits(timeout=0.05, max_request_bytes=size, memory_bytes=size)
    served = Served(FileSource(make_deploy(tmp_path / "deploy") / "model.onnx"), metrics)
    batcher = Batcher(max_batch=1, max_delay=0, queue=1)
    serving = Serving("birds", served, limits, metrics, batcher, 10)
    serving.decoder._worker = Worker("decodes pictures", partial(thread, "test"))

    async def receive() -> dict:
        return {"type": "http.request", "body": bytes(size), "more_body": False}

    async def ask() -> None:
        path = {"path": "/", "path_params": {"name": "birds"}, "query_string": b""}
        await endpoint(serving, Request({"type": "http", "method": "POST", "headers": [], **path}, receive))

    async def story() -> None:
        with pytest.raises(Overloaded, match=r"no answer within 0\.05 seconds"):
            await ask()
        with pytest.raises(Overloaded, match="hold too many bytes"):
            await ask()
        go_on.set()
        async with asyncio.timeout(60):
            while serving.decoder._worker.load + serving.parser._thread.load:
                await asyncio.sleep(0.001)
        await asyncio.sleep(0)
        serving.budget.take(size)

    asyncio.run(story())
    for one in (serving.decoder, serving.parser, batcher):
        one.close()
