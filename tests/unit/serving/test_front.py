"""What every request passes: an answer counts when all of it was handed over; a failure is one sentence."""

import asyncio
import json
from contextlib import suppress

import pytest
from starlette.requests import ClientDisconnect

from gkd_core.serving.front import Front
from gkd_core.serving.metrics import Metrics

START = {"type": "http.response.start", "status": 200, "headers": []}


def scope(**headers: str) -> dict:
    raw = [(name.replace("_", "-").encode(), text.encode()) for name, text in headers.items()]
    return {"type": "http", "method": "GET", "path": "/", "headers": raw}


async def nothing() -> dict:
    return {"type": "http.request", "body": b"", "more_body": False}


async def fine(scope, receive, send):
    await send(START)
    await send({"type": "http.response.body", "body": b"fine"})


def ask(front: Front, **headers: str) -> tuple[int, dict[bytes, bytes], bytes]:
    sent = []

    async def keep(message):
        sent.append(message)

    asyncio.run(front(scope(**headers), nothing, keep))
    return sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"]


@pytest.mark.parametrize("last", [0, 1, 2])
def test_an_answer_that_is_cancelled_counts_once_its_last_part_is_sent(last):
    sent = []

    async def app(scope, receive, send):
        await send(START)
        for number in range(last):
            await send({"type": "http.response.body", "body": b"x", "more_body": number != 1})
        await asyncio.sleep(3600)

    async def keep(message):
        sent.append(message)

    async def story() -> Front:
        front = Front(app, Metrics())
        task = asyncio.create_task(front(scope(), nothing, keep))
        while len(sent) <= last:
            await asyncio.sleep(0)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        return front

    front = asyncio.run(story())
    assert (front.accepted, front.answered) == (1, int(last == 2))


def test_a_failure_is_answered_in_one_sentence_and_counted():
    async def app(scope, receive, send):
        raise RuntimeError("secret")

    metrics = Metrics()
    front = Front(app, metrics)
    status, _, body = ask(front)
    assert (status, list(json.loads(body))) == (500, ["error"])
    assert b"secret" not in body
    assert metrics.registry.get_sample_value("gkd_requests_total", {"endpoint": "none", "status": "500"}) == 1
    assert front.answered == 1


def test_a_request_that_never_came_whole_is_not_counted():
    async def app(scope, receive, send):
        raise ClientDisconnect

    async def story() -> Front:
        front = Front(app, Metrics())
        await front(scope(), nothing, nothing)
        return front

    front = asyncio.run(story())
    assert (front.accepted, front.answered) == (0, 0)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"content_length": "0"}, 200),
        ({"content_length": "3"}, 400),
        ({"transfer_encoding": "chunked"}, 400),
    ],
)
def test_a_request_for_an_upgrade_is_answered_unless_its_body_is_lost(headers, status):
    front = Front(fine, Metrics())
    found, answered, _ = ask(front, upgrade="h2c", **headers)
    assert (found, answered[b"connection"]) == (status, b"close")
    assert ask(front, **headers)[0] == 200


def test_answers_while_leaving_ask_to_connect_anew():
    front = Front(fine, Metrics())
    assert b"connection" not in ask(front)[1]
    front.leaving = True
    assert ask(front)[1][b"connection"] == b"close"
