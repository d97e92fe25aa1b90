"""Several processes that train one network together, each with its share of every batch: torchrun starts them.

All of them run the same program and hold the same weights. What one process alone may do (read and write checkpoints,
show progress) is done by the first. With one process everything here is a no-op.
"""

import contextlib
import inspect
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gkd_core.errors import GkdError
from gkd_core.training.device import choose_device

T = TypeVar("T")

# What torchrun tells each process that it starts.
TOLD = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def started_by_torchrun() -> bool:
    """Whether this process was started as one of those that train together, here or in a cluster's training job."""
    return all(name in os.environ for name in TOLD)


def _one_of_several() -> bool:
    return started_by_torchrun() and int(os.environ["WORLD_SIZE"]) > 1


@contextlib.contextmanager
def joined(device: str) -> Iterator[None]:
    """Within the block the processes that torchrun started know each other; elsewhere nothing happens.

    Args:
        device: what they train on, as `choose_device` takes it. CUDA tensors travel by NCCL, all others by gloo.
    """
    if not _one_of_several() or dist.is_initialized():
        yield
        return
    cuda = choose_device(device).type == "cuda"
    if cuda:
        torch.cuda.set_device(own_device(device))
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    yield
    # Not after an error: the other processes may be waiting for this one, and it must not wait for them.
    dist.destroy_process_group()


def processes() -> int:
    """How many train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is, counted from 0."""
    return dist.get_rank() if processes() > 1 else 0


def own_device(name: str) -> torch.device:
    """The device of this process: with several and CUDA, the one of its number on this machine.

    Raises:
        GkdError: the device is not there, or cannot be shared out among processes.
    """
    device = choose_device(name)
    if not _one_of_several():
        return device
    place = int(os.environ["LOCAL_RANK"])
    refuse_too_many(int(os.environ.get("LOCAL_WORLD_SIZE", place + 1)), name)
    return torch.device("cuda", place) if device.type == "cuda" else device


def refuse_too_many(devices: int, name: str) -> None:
    """Raises: GkdError: this machine has fewer devices of the kind than are asked for."""
    device = choose_device(name)
    if device.type == "mps":
        raise GkdError(
            f"train.devices is {devices}, but there is one MPS device: set train.device to cpu, or train.devices to 1"
        )
    if device.type == "cuda" and devices > torch.cuda.device_count():
        raise GkdError(
            f"train.devices is {devices}, but this machine shows {torch.cuda.device_count()} CUDA devices: lower it, "
            "or make more of them visible (CUDA_VISIBLE_DEVICES)"
        )


def replicated(module: nn.Module) -> nn.Module:
    """The module with gradients averaged over processes; on CUDA its batch norms see the whole batch.

    Weights and buffers become the first process's. The module's own batch norms are replaced in place; parameters stay
    the same objects, and a state dict keeps its names.
    """
    if processes() == 1:
        return module
    if next(module.parameters()).device.type == "cuda":  # SyncBatchNorm refuses CPU tensors
        module = synchronised(module)
    # Buffers are made equal once an epoch (`share_buffers`), not at each step: a loss's memory may be large.
    # Looking for unused parameters costs a walk over the graph; it allows a method to leave some out, and keeps
    # gradients in the same buckets from the first step on, so that a resumed training adds them in the same order.
    known = inspect.signature(DistributedDataParallel).parameters
    at_each_step = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # its older name
    return DistributedDataParallel(module, find_unused_parameters=True, **{at_each_step: False})  # type: ignore[arg-type]


def synchronised(module: nn.Module) -> nn.Module:
    """The module with batch norms that see the batch of all processes: in place, around the same parameters."""
    return cast(nn.Module, nn.SyncBatchNorm.convert_sync_batchnorm(module))  # type: ignore[no-untyped-call]


def share_buffers(*modules: nn.Module | None) -> None:
    """Give all processes the first one's buffers: running statistics, where batch norms saw only a part."""
    if processes() > 1:
        for module in modules:
            for buffer in [] if module is None else module.buffers():
                dist.broadcast(buffer, src=0)


def total(tensor: Tensor) -> Tensor:
    """The sum over processes."""
    if processes() == 1:
        return tensor
    tensor = tensor.clone()
    dist.all_reduce(tensor)
    return tensor


def of_first(make: Callable[[], T]) -> T:
    """What the first process makes, for all; the others do not call `make`. It must be picklable."""
    if processes() == 1:
        return make()
    box: list[Any] = [make() if rank() == 0 else None]
    dist.broadcast_object_list(box, src=0)
    return cast(T, box[0])


def of_each(value: T) -> list[T]:
    """Every process's value, in order of rank. It must be picklable."""
    if processes() == 1:
        return [value]
    values: list[Any] = [None] * processes()
    dist.all_gather_object(values, value)
    return values


class Vote:
    """The largest number that any process says, told to all of them a call later.

    So nobody waits: between two calls, a step apart, the answer has come by itself. With one process it is its own
    number, at once. All processes call alike. The numbers travel by gloo whatever the device is.
    """

    def __init__(self) -> None:
        self._asked: tuple[Tensor, Any] | None = None

    def __call__(self, number: int) -> int:
        """Say a number; what the call before came to, 0 for the first."""
        if processes() == 1:
            return number
        answer, said = self.settle(), torch.tensor(number)
        self._asked = said, dist.all_reduce(said, op=dist.ReduceOp.MAX, async_op=True)
        return answer

    def settle(self) -> int:
        """What the last call came to; nothing is on its way then."""
        if self._asked is None:
            return 0
        said, work = self._asked
        self._asked = None
        work.wait()
        return int(said)


def wait_for_all() -> None:
    """Until every process is here."""
    if processes() > 1:
        dist.barrier()


def own_random_numbers(seed: int) -> None:
    """Set every process but the first to random numbers of its own (dropout, say), after weights were drawn alike."""
    if rank():
        torch.manual_seed(seed + (rank() << 32))
