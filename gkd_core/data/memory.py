"""How much memory there is for images: on a GPU, or on this machine, or in the container that has but a part of it."""

import os
from pathlib import Path

import torch

# What is left is for weights, activations and whoever else is on the device.
RESIDENT_SHARE_OF_FREE_MEMORY = 0.25
_V2 = ("memory.max", "memory.current", "inactive_file")  # limit, use, and what of the use is files read before
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def fits(size_bytes: int, device: torch.device) -> bool:
    """Whether a split of this size may live on the device: a quarter of the memory that is free now."""
    return size_bytes <= RESIDENT_SHARE_OF_FREE_MEMORY * _free_bytes(device)


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory())
    page = os.sysconf("SC_PAGE_SIZE")
    try:
        machine = page * os.sysconf("SC_AVPHYS_PAGES")
    except ValueError:  # macOS does not tell what is free
        machine = page * os.sysconf("SC_PHYS_PAGES") // 2
    group = free_in_control_group()
    return machine if group is None else min(machine, group)


def free_in_control_group(
    membership: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> int | None:
    """Bytes that this process may still take before the kernel ends it; None where nothing limits it.

    Pages of files that were read before count as free, as Kubernetes counts them. Both versions of control groups; a
    group is limited by those above it too.

    Args:
        membership: the kernel's list of the groups of this process.
        root: where the groups are mounted.
    """
    try:
        lines = [line.split(":", 2) for line in membership.read_text().splitlines()]
    except OSError:
        return None
    found: list[int] = []
    for _, controllers, place in (line for line in lines if len(line) == 3):
        if controllers == "":
            top, names = root, _V2
        elif "memory" in controllers.split(","):
            top, names = root / "memory", _V1
        else:
            continue
        inside = Path(place.lstrip("/"))
        # In a container the group's own files are at the top, whatever the kernel calls it.
        found += [free for folder in (inside, *inside.parents) if (free := _free(top / folder, *names)) is not None]
    return min(found, default=None)


def _free(group: Path, limit: str, use: str, files: str) -> int | None:
    try:
        most = (group / limit).read_text().strip()
        if most == "max":
            return None
        statistics = dict(line.split(maxsplit=1) for line in (group / "memory.stat").read_text().splitlines())
        taken = int((group / use).read_text()) - int(statistics.get(files, 0))
        return max(0, int(most) - max(0, taken))
    except (OSError, ValueError):
        return None
