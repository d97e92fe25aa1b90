"""How many threads torch computes with: of a training, a number that follows from its work and the cores.

Small work wants few threads: they wait for each other at the end of every operation, and where that takes longer than
the operation, two are slower than one. And the number changes results in their last bits, for sums are added up in
another order. So it is no accident of the machine's load: it is a function of the work of a step and of the cores, it
is written down, and a training that goes on keeps it.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch

from gkd_core.cores import thread_limit
from gkd_core.errors import GkdError
from gkd_core.files import read_json, write_json
from gkd_core.training import distributed

WORK_PER_THREAD = 400_000_000
"""Multiply-accumulates of a forward pass for which another thread is worth its waiting.

Where waiting costs most of the machines that were measured: two threads of an AMD EPYC made .34 to .41 of one thread's
images a second at 200 and 427 million in all, 1.4 times as many at 800. On a Xeon they were worth it from 200 on.
"""
CORES = "cores.json"


def threads_for(work: int, cores: int) -> int:
    """Threads of a training on the CPU: one for each 400 million multiply-accumulates of a forward pass, at least one,
    no more than there are cores.

    Measured on 2 cores: a step of resnet8 on 64 images of 16 pixels (200 million) is slower with two threads than with
    one on the one machine and quicker on the other, of resnet20 on 128 (1,300 million) quicker on both
    (docs/performance.md).

    Args:
        work: multiply-accumulates of the forward pass of a step's largest network, teachers included, for the images
            that this process has of a batch. The largest, not all together: many small operations stay small.
        cores: see `cores_of`.

    >>> threads_for(49_000_000, 8), threads_for(1_300_000_000, 8), threads_for(1_700_000_000, 2)
    (1, 3, 2)
    """
    return max(1, min(work // WORK_PER_THREAD, cores))


def torch_limit() -> int:
    """Threads that torch may take here: `thread_limit`, and no more than it has already.

    That is what somebody gave `torch.set_num_threads`, else one for each core, two on one core counted once.
    """
    return min(thread_limit(), torch.get_num_threads())


def cores_of(space: Path | None) -> int:
    """`torch_limit` of the machine on which the trainings of a workspace began: they go on with as many threads as
    they would have had there.

    Args:
        space: the workspace; None is of no training that could go on.
    Raises:
        GkdError: the file that says so is damaged.
    """
    return torch_limit() if space is None else distributed.of_first(lambda: _kept(space))


def _kept(space: Path) -> int:
    file = space / CORES
    if not file.exists():
        space.mkdir(parents=True, exist_ok=True)
        write_json(file, {"cores": torch_limit()})
    cores = read_json(file, "the workspace of the training", keys=["cores"])["cores"]
    if not isinstance(cores, int) or cores < 1:
        raise GkdError(f"{file} does not say how many cores there were: delete {space} to train from the start")
    return cores


@contextlib.contextmanager
def computing_with(threads: int) -> Iterator[None]:
    """Within the block torch computes with so many threads; afterwards with as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
