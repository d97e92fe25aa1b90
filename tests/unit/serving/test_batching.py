"""What waits together travels together; what does not fit is told at once; nobody gets another's answer."""

import asyncio
import threading

import numpy as np
import pytest

from gkd_core.serving.batching import Batcher, BatchFacts
from gkd_core.serving.limits import Overloaded


class Doubling:
    """Logits are twice the input; runs begin only when allowed, and are written down."""

    def __init__(self, *, held: bool = False) -> None:
        self.runs: list[list[float]] = []
        self.go = threading.Event()
        if not held:
            self.go.set()

    def answer(self, images):
        assert self.go.wait(10)
        self.runs.append(images.ravel().tolist())
        if -1 in images:
            raise ValueError("a bad one")
        return {"logits": 2 * images, "decision": -images.reshape(len(images), -1)[:, 0]}


def images(*values: float) -> np.ndarray:
    return np.array(values, np.float32).reshape(-1, 1)


def batcher(**changed) -> tuple[Batcher, list[BatchFacts]]:
    seen: list[BatchFacts] = []
    return Batcher(**{"max_batch": 4, "max_delay": 0.0, "queue": 8, "observe": seen.append, **changed}), seen


async def until(condition) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


def test_while_one_runs_the_others_gather():
    async def scene():
        model, (queue, seen) = Doubling(held=True), batcher()
        first = queue.submit(model, images(1))
        rest = [queue.submit(model, images(*values)) for values in ((2,), (3, 4), (5, 6), (7,))]
        assert queue.waiting_images == 6
        model.go.set()
        answers = [(await one)["logits"].ravel().tolist() for one in (first, *rest)]
        queue.close()
        return answers, model.runs, seen

    answers, runs, seen = asyncio.run(scene())
    assert answers == [[2], [4], [6, 8], [10, 12], [14]]
    assert runs == [[1], [2, 3, 4], [5, 6, 7]]  # in order, at most 4 together, none torn apart
    assert [(facts.images, facts.requests) for facts in seen] == [(1, 1), (3, 2), (3, 2)]


def test_without_batching_each_goes_alone():
    async def scene():
        model, (queue, _) = Doubling(held=True), batcher(batching=False)
        waiting = [queue.submit(model, images(value)) for value in (1, 2, 3)]
        model.go.set()
        await asyncio.gather(*waiting)
        queue.close()
        return model.runs

    assert asyncio.run(scene()) == [[1], [2], [3]]


def test_an_incomplete_batch_waits_for_more_and_a_complete_one_does_not():
    async def scene():
        model, (queue, _) = Doubling(), batcher(max_delay=3600.0)
        waiting = [queue.submit(model, images(value)) for value in (1, 2, 3)]
        await asyncio.sleep(0.05)
        assert model.runs == []
        waiting.append(queue.submit(model, images(4)))
        await asyncio.gather(*waiting)
        queue.close()
        return model.runs

    assert asyncio.run(scene()) == [[1, 2, 3, 4]]


def test_the_oldest_waits_no_longer_than_the_delay():
    async def scene():
        model, (queue, seen) = Doubling(), batcher(max_delay=0.05)
        answer = await asyncio.wait_for(queue.submit(model, images(1)), 10)
        queue.close()
        return answer, seen

    answer, seen = asyncio.run(scene())
    assert answer["logits"].tolist() == [[2]]
    assert answer["decision"].tolist() == [-1]
    assert seen[0].waited >= 0.05


def test_a_full_queue_refuses_at_once_and_takes_again_later():
    async def scene():
        model, (queue, _) = Doubling(held=True), batcher(queue=4)
        running = queue.submit(model, images(0))
        waiting = [queue.submit(model, images(1, 2)), queue.submit(model, images(3))]
        with pytest.raises(Overloaded, match="3 images are waiting already, 4 may") as told:
            queue.submit(model, images(4, 5))
        assert (told.value.status, told.value.reason) == (503, "queue")
        waiting.append(queue.submit(model, images(6)))  # one still fits
        model.go.set()
        await asyncio.gather(running, *waiting)
        assert queue.waiting_images == 0
        answer = await queue.submit(model, images(7, 8, 9, 10))
        queue.close()
        return answer

    assert asyncio.run(scene())["logits"].ravel().tolist() == [14, 16, 18, 20]


def test_who_gave_up_is_passed_over():
    async def scene():
        model, (queue, _) = Doubling(held=True), batcher()
        running = queue.submit(model, images(0))
        waiting = [queue.submit(model, images(value)) for value in (1, 2, 3)]
        waiting[0].cancel()
        waiting[1].cancel()
        model.go.set()
        await asyncio.gather(running, waiting[2])
        await until(lambda: queue.waiting_images == 0)
        queue.close()
        return model.runs

    assert asyncio.run(scene()) == [[0], [3]]


def test_a_bad_neighbour_spoils_nothing():
    async def scene():
        model, (queue, _) = Doubling(held=True), batcher()
        running = queue.submit(model, images(0))
        waiting = [queue.submit(model, images(value)) for value in (1, -1, 3)]
        model.go.set()
        answers = await asyncio.gather(running, *waiting, return_exceptions=True)
        queue.close()
        return answers

    first, second, bad, third = asyncio.run(scene())
    assert [one["logits"].item() for one in (first, second, third)] == [0, 2, 6]
    assert [one["decision"].tolist() for one in (first, second, third)] == [[0], [-1], [-3]]
    assert isinstance(bad, ValueError)


def test_two_models_never_share_a_batch():
    async def scene():
        old, new, (queue, _) = Doubling(held=True), Doubling(), batcher()
        waiting = [queue.submit(old, images(0)), queue.submit(old, images(1)), queue.submit(new, images(2))]
        waiting += [queue.submit(new, images(3)), queue.submit(old, images(4))]
        old.go.set()
        await asyncio.gather(*waiting)
        queue.close()
        return old.runs, new.runs

    assert asyncio.run(scene()) == ([[0], [1], [4]], [[2, 3]])


def test_pictures_of_one_size_travel_together_and_the_oldest_always_does():
    async def scene():
        model, (queue, seen) = Doubling(held=True), batcher()
        sizes = [(1, 2), (2, 3), (2, 2), (2, 3), (1, 3), (2, 2)]  # the first is under way at once
        waiting = [queue.submit(model, np.full((1, *size), place, np.float32)) for place, size in enumerate(sizes)]
        model.go.set()
        answers = [(await one)["logits"].shape for one in waiting]
        assert queue.waiting_images == 0
        queue.close()
        return answers, [sorted(set(run)) for run in model.runs], [facts.images for facts in seen]

    answers, runs, counts = asyncio.run(scene())
    assert answers == [(1, 1, 2), (1, 2, 3), (1, 2, 2), (1, 2, 3), (1, 1, 3), (1, 2, 2)]
    assert runs == [[0], [1, 3], [2, 5], [4]]
    assert counts == [1, 2, 2, 1]


def test_large_pictures_go_with_as_many_as_they_may():
    async def scene():
        model, (queue, seen) = Doubling(held=True), batcher()
        waiting = [queue.submit(model, images(value), most=2) for value in range(6)]
        model.go.set()
        await asyncio.gather(*waiting)
        queue.close()
        return [facts.images for facts in seen]

    assert asyncio.run(scene()) == [1, 2, 2, 1]
