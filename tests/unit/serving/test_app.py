"""What the endpoints hand to other processes, how much of it may wait, and for how long."""

import asyncio
import json
from collections.abc import Awaitable, Callable

import numpy as np
import pytest

from components.model_source import FileSource, FolderSource
from gkd_core.serving.app import LONG_JSON, Serving
from gkd_core.serving.batching import Batcher
from gkd_core.serving.limits import Limits
from gkd_core.serving.metrics import Metrics
from gkd_core.serving.reload import Served

IMAGE = {"name": "image", "datatype": "UINT8", "shape": [1, 8, 8, 1], "data": [7] * 64}
INFER = "/v2/models/birds/infer"


@pytest.fixture(scope="module")
def model(tmp_path_factory, make_deploy):
    return make_deploy(tmp_path_factory.mktemp("app") / "deploy") / "model.onnx"


@pytest.fixture
def serving(model, monkeypatch) -> Callable[..., Serving]:
    """A function that makes the endpoints, with given limits and in place of other processes a coroutine."""

    def make(work: Callable[..., Awaitable], **limits) -> Serving:
        metrics = Metrics()
        batcher = Batcher(max_batch=64, max_delay=0, queue=64)
        made = Serving("birds", Served(FileSource(model), metrics, threads=1), Limits(**limits), metrics, batcher)
        monkeypatch.setattr(made._workers, "run", work)
        return made

    return make


async def ask(serving: Serving, path: str, body: bytes = b"picture") -> tuple[int, dict]:
    scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": []}
    sent = []

    async def receive() -> dict:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict) -> None:
        sent.append(message)

    await serving.app(None)(scope, receive, send)
    return sent[0]["status"], json.loads(sent[1]["body"])


def refused(serving: Serving, reason: str) -> float | None:
    return serving._metrics.registry.get_sample_value("gkd_refused_total", {"reason": reason})


def test_no_more_pictures_wait_than_allowed(serving):
    async def story() -> None:
        go_on = asyncio.Event()

        async def decode(function) -> np.ndarray:
            await go_on.wait()
            return np.zeros((8, 8, 1), np.uint8)

        made = serving(decode, pictures=2)
        waiting = [asyncio.create_task(ask(made, "/classify")) for _ in range(2)]
        while made._pictures < 2:
            await asyncio.sleep(0)
        status, answer = await ask(made, "/classify")
        assert (status, list(answer), refused(made, "pictures")) == (503, ["error"], 1)
        go_on.set()
        assert [status for status, _ in await asyncio.gather(*waiting)] == [200, 200]
        assert (await ask(made, "/classify"))[0] == 200
        made.close()

    asyncio.run(story())


def test_an_answer_that_takes_too_long_is_told_503_and_holds_no_place(serving):
    async def story() -> None:
        async def never(function) -> None:
            await asyncio.Event().wait()

        made = serving(never, pictures=1, timeout=0.01)
        for count in (1, 2):
            status, answer = await ask(made, "/classify")
            assert (status, list(answer), refused(made, "time")) == (503, ["error"], count)
        assert refused(made, "pictures") is None
        made.close()

    asyncio.run(story())


@pytest.mark.parametrize(("spaces", "processes"), [(0, 0), (LONG_JSON, 1)])
def test_long_json_is_read_in_another_process(serving, spaces, processes):
    calls = []

    async def here(function):
        calls.append(function)
        return function()

    made = serving(here, max_batch=4096)
    content = json.dumps({"inputs": [IMAGE]}).encode() + b" " * spaces
    assert asyncio.run(ask(made, INFER, content))[0] == 200
    assert len(calls) == processes
    made.close()


def test_a_picture_is_decoded_as_its_model_wants_it(serving, monkeypatch):
    decoded = []

    async def decode(function) -> np.ndarray:
        decoded.append(function.keywords)
        return np.zeros((8, 8, 1), np.uint8)

    made = serving(decode)
    for crop in ("center", "squash"):
        monkeypatch.setattr(made.served.model, "crop", crop)
        assert asyncio.run(ask(made, "/classify"))[0] == 200
    assert [each["crop"] for each in decoded] == ["center", "squash"]
    made.close()


def test_large_pictures_of_any_size_go_through_the_model_a_few_at_a_time(tmp_path, make_deploy):
    deploy = make_deploy(tmp_path / "deploy", channels=3, pixels=True)
    metrics, seen = Metrics(), []
    batcher = Batcher(max_batch=64, max_delay=0, queue=64, observe=lambda facts: seen.append(facts.images))
    limits = Limits(pixels=4800)
    made = Serving("birds", Served(FolderSource(deploy), metrics, threads=1), limits, metrics, batcher)

    def request(height: int, width: int) -> tuple[str, bytes]:
        tensor = {
            "name": "pixels",
            "datatype": "UINT8",
            "shape": [1, height, width, 3],
            "data": [7] * (height * width * 3),
        }
        return "/v2/models/birds-pixels/infer", json.dumps({"inputs": [tensor]}).encode()

    async def story() -> list[tuple[int, dict]]:
        return await asyncio.gather(*(ask(made, *request(*size)) for size in [(20, 30)] + 4 * [(40, 50)] + [(9, 5)]))

    answers = asyncio.run(story())
    assert [(status, answer["model_name"]) for status, answer in answers] == [(200, "birds-pixels")] * 6
    assert seen == [1, 2, 2, 1], "4800 pixels hold two of 40 × 50, and the small one was not held up by its size"
    status, answer = asyncio.run(ask(made, *request(70, 70)))
    assert (status, "at most 4,800 pixels together" in answer["error"]) == (400, True)
    made.close()
