"""One batch shared out among several processes: which rows are whose, and what a process may ask of the others."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Shards:
    """Who has which rows of a batch. With one process every method is the identity.

    The processes must call the same methods in the same order, as they do when they run the same loss.

    Attributes:
        sizes: rows of each process, in order of rank; process 0 has the first rows of the batch.
        rank: of this process.
        labelled: how many of the batch's rows have a label, all processes together; None is all of them.
    """

    sizes: tuple[int, ...]
    rank: int = 0
    labelled: int | None = None

    @staticmethod
    def of(rows: int, processes: int = 1, rank: int = 0, *, labelled: int | None = None) -> "Shards":
        """A batch of so many rows shared out as evenly as can be, larger parts first."""
        least, over = divmod(rows, processes)
        return Shards(tuple(least + (r < over) for r in range(processes)), rank, labelled)

    @property
    def total(self) -> int:
        """Rows of the whole batch."""
        return sum(self.sizes)

    @property
    def mine(self) -> slice:
        """This process's rows within the batch; of one process all, however many there are."""
        if len(self.sizes) == 1:
            return slice(None)
        start = sum(self.sizes[: self.rank])
        return slice(start, start + self.sizes[self.rank])

    @property
    def weight(self) -> float:
        """What this process's mean counts in the plain mean over processes, so that every sample counts alike."""
        return self.sizes[self.rank] * len(self.sizes) / self.total

    def gather(self, rows: Tensor) -> Tensor:
        """[own rows, …] → [all rows, …], half types as float32; gradients find their way back to their process.

        Every process then computes the same loss of the whole batch, and the gradients that reach a row are summed:
        with each process's loss times `weight`, and gradients averaged over processes, that is the loss's gradient.
        """
        if len(self.sizes) == 1:
            return rows
        from torch.distributed.nn.functional import all_gather  # not there where torch is built without distributed

        if rows.dtype in (torch.float16, torch.bfloat16):
            rows = rows.float()
        largest = max(self.sizes)
        filled = functional.pad(rows, [0, 0] * (rows.ndim - 1) + [0, largest - len(rows)])
        parts = all_gather(filled)  # type: ignore[no-untyped-call]
        return torch.cat([part[:size] for part, size in zip(parts, self.sizes, strict=True)])

    def each(self, value: Tensor) -> Tensor:
        """Every process's value of one shape, [processes, …], without gradient."""
        if len(self.sizes) == 1:
            return value.detach()[None]
        values = [torch.empty_like(value) for _ in self.sizes]
        dist.all_gather(values, value.detach().contiguous())
        return torch.stack(values)

    def mean(self, value: Tensor) -> Tensor:
        """From a mean over own rows the mean over the batch, without gradient."""
        if len(self.sizes) == 1:
            return value.detach()
        mean = value.detach() * (self.sizes[self.rank] / self.total)
        dist.all_reduce(mean)
        return mean

    def common(self, drawn: Tensor) -> Tensor:
        """The first process's tensor, for what was drawn at random for the whole batch; all have the same shape."""
        if len(self.sizes) == 1:
            return drawn
        drawn = drawn.contiguous()
        dist.broadcast(drawn, src=0)
        return drawn


ALONE = Shards((1,))

_current: ContextVar[Shards] = ContextVar("shards", default=ALONE)


def current() -> Shards:
    """Who shares the batch that is being worked on; by default this process has it alone."""
    return _current.get()


@contextlib.contextmanager
def sharing(shards: Shards) -> Iterator[None]:
    """Within the block the batch is shared like this: a loss that looks across samples asks `current` for it."""
    token = _current.set(shards)
    try:
        yield
    finally:
        _current.reset(token)
