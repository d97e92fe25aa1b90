"""How many threads torch computes with."""

import contextlib
from collections.abc import Iterator

import torch

from gkd_core.cores import thread_limit


def torch_limit() -> int:
    """Threads that torch may take here: `thread_limit`, and no more than it has already.

    That is what somebody gave `torch.set_num_threads`, else one for each core, two on one core counted once.
    """
    return min(thread_limit(), torch.get_num_threads())


@contextlib.contextmanager
def computing_with(threads: int) -> Iterator[None]:
    """Within the block torch computes with so many threads; afterwards with as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
