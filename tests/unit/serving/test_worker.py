"""One piece of work at a time; who gives up before it begins leaves nothing; what has begun counts until it ends."""

import asyncio
import multiprocessing
import os
import signal
import threading
from functools import partial

import pytest

from gkd_core.serving.bodies import Body
from gkd_core.serving.limits import Budget, Limits, Overloaded
from gkd_core.serving.worker import Worker, process, thread


def ignore(work: "asyncio.Future") -> None:
    pass


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.fixture
def worker():
    worker = Worker("works", partial(thread, "test"))
    yield worker
    worker.close()


def test_one_after_the_other_and_errors_come_back(worker):
    running, seen = threading.Lock(), []

    def alone(number: int) -> int:
        assert running.acquire(blocking=False)
        seen.append(number)
        running.release()
        return 10 // number

    async def all_of_them() -> list:
        return await asyncio.gather(
            *(worker.run(ignore, alone, number) for number in (1, 2, 0, 5)), return_exceptions=True
        )

    results = asyncio.run(all_of_them())
    assert results[:2] + results[3:] == [10, 5, 2]
    assert isinstance(results[2], ZeroDivisionError)
    assert seen == [1, 2, 0, 5]
    assert worker.load == 0


def test_who_gives_up_frees_nothing_that_is_still_held(worker):
    go_on, ran = threading.Event(), []
    budget = Budget(Limits(max_request_bytes=50, memory_bytes=100))

    def slow(name: str) -> None:
        ran.append(name)
        assert go_on.wait(60)

    async def request(name: str) -> None:
        body = Body(budget)
        try:
            body.take(50)
            async with asyncio.timeout(0.05):
                await worker.run(body.begun, slow, name)
        finally:
            body.leave()

    async def story() -> None:
        both = await asyncio.gather(request("first"), request("second"), return_exceptions=True)
        assert [type(error) for error in both] == [TimeoutError, TimeoutError]
        await settled()
        assert worker.load == 1  # the first is at work for nobody; the second has gone without a trace
        budget.take(50)
        with pytest.raises(Overloaded):
            budget.take(1)
        go_on.set()
        while worker.load:
            await asyncio.sleep(0.001)
        await settled()
        budget.take(50)  # what the first held
        assert await worker.run(ignore, len, "abc") == 3

    asyncio.run(story())
    assert ran == ["first"]


def test_a_body_is_free_when_the_last_work_is_done():
    async def story() -> None:
        budget = Budget(Limits(max_request_bytes=10, memory_bytes=10))
        works = [asyncio.get_running_loop().create_future() for _ in range(3)]
        body = Body(budget)
        body.take(10)
        for work in works:
            body.begun(work)
        works[1].set_result(None)
        body.leave()
        for work in (works[0], works[2]):
            await settled()
            with pytest.raises(Overloaded):
                budget.take(1)
            work.set_result(None)
        await settled()
        budget.take(10)

    asyncio.run(story())


def test_a_process_ended_while_it_has_nothing_to_do_costs_nobody_anything():
    worker = Worker("works", process)

    async def story() -> None:
        before = set(multiprocessing.active_children())
        assert await worker.run(ignore, pow, 2, 3) == 8
        (child,) = set(multiprocessing.active_children()) - before
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        for _ in range(2):
            try:
                assert await worker.run(ignore, pow, 2, 3) == 8
                break
            except Overloaded:  # it was not noticed yet: then the next one goes through
                continue
        else:
            pytest.fail("no new process")

    asyncio.run(story())
    assert worker.load == 0
    worker.close()
