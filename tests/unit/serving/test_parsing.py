"""Where a body is read: at once, in a thread, in a process; what comes out is the same."""

import asyncio
import json
import multiprocessing
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from gkd_core.serving import parsing
from gkd_core.serving.limits import Overloaded
from gkd_core.serving.parsing import ALONE, INLINE, Parser
from gkd_core.serving.tensors import ProtocolError, TensorSpec

SIDE = 64
GIVEN = {
    "inputs": (TensorSpec("image", "UINT8", (-1, SIDE, SIDE, 3)),),
    "outputs": (TensorSpec("logits", "FP32", (-1, 10)),),
    "max_batch": 64,
}
IMAGES = np.random.default_rng(0).integers(0, 256, (24, SIDE, SIDE, 3), dtype=np.uint8)


def body(count: int, **changed) -> bytes:
    images = IMAGES[:count]
    entry = {"name": "image", "datatype": "UINT8", "shape": list(images.shape), "data": images.tolist()} | changed
    return json.dumps({"id": "seven", "inputs": [entry]}).encode()


@pytest.fixture
def parser():
    parser = Parser()
    yield parser
    parser.close()


def read(parser: Parser, content: bytes, header_length: str | None = None):
    return asyncio.run(parser.parse(content, header_length, **GIVEN))


@pytest.mark.parametrize(
    ("count", "sizes", "processes"), [(1, (0, INLINE), 0), (2, (INLINE, ALONE), 0), (24, (ALONE, 1 << 30), 1)]
)
def test_the_same_tensors_wherever_they_are_read(parser, count, sizes, processes):
    content = body(count)
    assert sizes[0] < len(content) <= sizes[1]
    before = set(multiprocessing.active_children())
    parsed = read(parser, content)
    assert len(set(multiprocessing.active_children()) - before) == processes
    assert np.array_equal(parsed.inputs["image"], IMAGES[:count])
    assert (parsed.id, parsed.outputs) == ("seven", (("logits", False),))


def test_raw_tensors_need_no_process_however_many(parser):
    raw = IMAGES.tobytes() * 2
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": "image",
                    "datatype": "UINT8",
                    "shape": [48, SIDE, SIDE, 3],
                    "parameters": {"binary_data_size": len(raw)},
                }
            ]
        }
    ).encode()
    assert len(head + raw) > ALONE
    before = multiprocessing.active_children()
    assert np.array_equal(read(parser, head + raw, str(len(head))).inputs["image"][24:], IMAGES)
    assert np.array_equal(read(parser, raw, "0").inputs["image"][:24], IMAGES)
    assert multiprocessing.active_children() == before


@pytest.mark.parametrize(
    ("content", "sentence", "status"),
    [
        (body(24)[:-2], "the body is not JSON", 400),
        (body(24, datatype="FP32"), "is of datatype UINT8", 400),
        (b'{"inputs": [' + b" " * (30 << 20) + b"]}", "the JSON is larger than", 413),
    ],
)
def test_what_is_wrong_is_told_from_the_process_too(parser, content, sentence, status):
    with pytest.raises(ProtocolError, match=sentence) as told:
        read(parser, content)
    assert told.value.status == status


def test_a_process_ended_from_outside_costs_one_request(parser, monkeypatch):
    monkeypatch.setattr(parsing, "parse_request", wait_for_ever)

    async def ended() -> None:
        before = set(multiprocessing.active_children())
        reading = asyncio.create_task(parser.parse(body(24), None, **GIVEN))
        while not (new := set(multiprocessing.active_children()) - before):
            await asyncio.sleep(0.01)
        os.kill(new.pop().pid, signal.SIGKILL)
        with pytest.raises(Overloaded, match="was ended: try again in a moment"):
            await reading

    asyncio.run(ended())
    monkeypatch.undo()
    assert np.array_equal(read(parser, body(24)).inputs["image"], IMAGES)


def wait_for_ever(*_: object, **__: object) -> None:
    signal.pause()


def test_a_stop_that_all_processes_are_told_does_not_end_it_before_the_server(parser):
    before = set(multiprocessing.active_children())
    read(parser, body(24))
    (process,) = set(multiprocessing.active_children()) - before
    for asked in (signal.SIGTERM, signal.SIGINT):
        os.kill(process.pid, asked)
        assert np.array_equal(read(parser, body(24)).inputs["image"], IMAGES)
    assert process.is_alive()


def test_the_process_ends_with_a_server_that_was_killed():
    code = (
        "import signal\n"
        "from tests.unit.serving.test_parsing import *\n"
        "if __name__ == '__main__':\n"
        "    read(Parser(), body(24))\n"
        "    print('there', flush=True)\n"
        "    signal.pause()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "there\n"
        server.kill()
        assert server.stdout.read() == ""  # its other end is closed: by the process too, which has it from the server
