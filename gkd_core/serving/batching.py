"""Dynamic batching: what waits while the model is busy goes through it together.

One batch runs at a time, in a thread of its own, so that requests are read meanwhile. When the model is free, the
oldest requests are put together up to `max_batch` images, those of one size where a model takes any; if they are fewer,
the oldest waits for others for at most `max_delay`. The queue is bounded in images, and what does not fit is refused at
once: a client told early can go elsewhere. Images never influence each other, so it makes no difference (beyond float
rounding) who travels with whom.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from gkd_core.serving.limits import Overloaded
from gkd_core.serving.tensors import Array


class Runnable(Protocol):
    """What a batch goes through."""

    def answer(self, images: Array) -> dict[str, Array]:
        """Outputs [B, …] by name of a batch of inputs [B, …]."""


@dataclass(frozen=True)
class BatchFacts:
    """What a batch was: its images and requests, seconds its oldest request waited, seconds it ran."""

    images: int
    requests: int
    waited: float
    ran: float


@dataclass(frozen=True)
class _Waiting:
    model: Runnable
    images: Array
    future: "asyncio.Future[dict[str, Array]]"
    arrived: float
    most: int


class Batcher:
    """The queue before the model.

    Args:
        max_batch: images in one run.
        max_delay: seconds an incomplete batch waits for more.
        queue: images that may wait.
        batching: False sends every request through alone.
        observe: told of every batch.
    """

    def __init__(
        self,
        *,
        max_batch: int,
        max_delay: float,
        queue: int,
        batching: bool = True,
        observe: Callable[[BatchFacts], None] = lambda facts: None,
    ) -> None:
        self._max_batch = max_batch
        self._max_delay = max_delay
        self._queue = queue
        self._batching = batching
        self._observe = observe
        self._waiting: deque[_Waiting] = deque()
        self._images = 0
        self._busy = False
        self._timer: asyncio.TimerHandle | None = None
        self._thread = ThreadPoolExecutor(1, "model")

    @property
    def waiting_images(self) -> int:
        """Images in the queue."""
        return self._images

    def submit(self, model: Runnable, images: Array, *, most: int | None = None) -> "asyncio.Future[dict[str, Array]]":
        """A future of the outputs of `images` by name; cancelled, it is passed over.

        Args:
            most: images of this size that may go together, where that is fewer than `max_batch`.
        Raises:
            Overloaded: the queue is full.
        """
        if self._images + len(images) > self._queue:
            raise Overloaded("queue", f"{self._images} images are waiting already, {self._queue} may")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[dict[str, Array]] = loop.create_future()
        most = self._max_batch if most is None else min(most, self._max_batch)
        self._waiting.append(_Waiting(model, images, future, loop.time(), most))
        self._images += len(images)
        self._start()
        return future

    def close(self) -> None:
        """Stop the thread, once nothing waits any more."""
        self._thread.shutdown()

    def _start(self) -> None:
        """Send the next batch off, if the model is free and the batch is large or old enough."""
        while self._waiting and self._waiting[0].future.done():
            self._images -= len(self._waiting.popleft().images)
        if self._busy or not self._waiting:
            return
        loop = asyncio.get_running_loop()
        if self._batching and self._max_delay > 0 and self._images < self._max_batch:
            due = self._waiting[0].arrived + self._max_delay
            if loop.time() < due:
                if self._timer is None:
                    self._timer = loop.call_at(due, self._overdue)
                return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        batch = self._take()
        self._busy = True
        oldest = loop.time() - batch[0].arrived
        running = loop.run_in_executor(self._thread, _run, batch)
        running.add_done_callback(lambda done: self._finished(batch, oldest, done))

    def _overdue(self) -> None:
        self._timer = None
        self._start()

    def _take(self) -> list[_Waiting]:
        """The oldest requests that are for the same model, of the same size, and fit together.

        Those of another size are passed over and keep their place; the oldest of all is always taken.
        """
        batch, passed = [self._waiting.popleft()], []
        size = len(batch[0].images)
        while self._batching and self._waiting:
            following = self._waiting[0]
            if following.future.done():
                self._images -= len(self._waiting.popleft().images)
                continue
            if following.model is not batch[0].model:
                break
            if following.images.shape[1:] != batch[0].images.shape[1:]:
                passed.append(self._waiting.popleft())
                continue
            if size + len(following.images) > batch[0].most:
                break
            batch.append(self._waiting.popleft())
            size += len(following.images)
        self._waiting.extendleft(reversed(passed))
        self._images -= size
        return batch

    def _finished(self, batch: list[_Waiting], oldest: float, done: "asyncio.Future[_Outcome]") -> None:
        results, seconds = done.result()
        self._observe(BatchFacts(sum(len(one.images) for one in batch), len(batch), oldest, seconds))
        for one, result in zip(batch, results, strict=True):
            if one.future.done():
                continue
            if isinstance(result, Exception):
                one.future.set_exception(result)
            else:
                one.future.set_result(result)
        self._busy = False
        self._start()


_Outcome = tuple[list[dict[str, Array] | Exception], float]


def _run(batch: list[_Waiting]) -> _Outcome:
    """In the model's thread: each request's outputs, or what went wrong with it, and the seconds it took."""
    start = time.perf_counter()
    results: list[dict[str, Array] | Exception]
    try:
        found = batch[0].model.answer(
            np.concatenate([one.images for one in batch]) if len(batch) > 1 else batch[0].images
        )
        ends = np.cumsum([len(one.images) for one in batch])[:-1]
        parts = {name: np.split(values, ends) for name, values in found.items()}
        results = [{name: values[place] for name, values in parts.items()} for place in range(len(batch))]
    except Exception as error:
        # One request must not spoil its neighbours' answers.
        results = [error] if len(batch) == 1 else [_run([one])[0][0] for one in batch]
    return results, time.perf_counter() - start
