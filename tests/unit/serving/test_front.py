"""What counts as answered: an answer sent to its end, to somebody who was there."""

import asyncio
from contextlib import suppress

import pytest

from gkd_core.serving.connection import GONE
from gkd_core.serving.front import Front
from gkd_core.serving.metrics import Metrics

START = {"type": "http.response.start", "status": 200, "headers": []}


def scope(**state: object) -> dict:
    return {"type": "http", "method": "GET", "path": "/", "headers": [], "state": state}


async def nothing() -> dict:
    return {"type": "http.request", "body": b"", "more_body": False}


def counts(front: Front) -> tuple[int, int, int]:
    return front.accepted, front.answered, front.left


@pytest.mark.parametrize("last", [0, 1, 2])
def test_one_that_is_cancelled_is_not_answered_until_its_last_part_is_sent(last):
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

    assert counts(asyncio.run(story())) == (1, int(last == 2), 0)


def test_one_whose_last_part_is_not_taken_is_not_answered():
    async def app(scope, receive, send):
        await send(START)
        await send({"type": "http.response.body", "body": b"x"})

    async def stuck(message):
        if message["type"] == "http.response.body":
            await asyncio.sleep(3600)

    async def story() -> Front:
        front = Front(app, Metrics())
        with suppress(TimeoutError):
            async with asyncio.timeout(0.05):
                await front(scope(), nothing, stuck)
        return front

    assert counts(asyncio.run(story())) == (1, 0, 0)


def test_one_whose_client_left_is_counted_apart():
    async def app(scope, receive, send):
        scope["state"][GONE] = True  # as the connection does
        await send(START)
        await send({"type": "http.response.body", "body": b"x"})

    async def into_the_void(message):
        pass

    front = Front(app, Metrics())
    asyncio.run(front(scope(), nothing, into_the_void))
    assert counts(front) == (1, 0, 1)
