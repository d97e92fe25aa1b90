"""Pictures are decoded beside the server, no larger than allowed, and as everywhere else."""

import asyncio
import io
import multiprocessing

import numpy as np
import pytest
from PIL import Image

from gkd_core.data.images import Unreadable, read_image
from gkd_core.serving.limits import Limits, Overloaded
from gkd_core.serving.pictures import Decoder
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
