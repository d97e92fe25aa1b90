"""How much memory there is for images: on a GPU, or on this machine, or in the container that has but a part of it."""

import os
from pathlib import Path

import torch

from gkd_core.control_groups import MEMBERSHIP, ROOT, limiting_groups

# What is left is for weights, activations and whoever else is on the device.
RESIDENT_SHARE_OF_FREE_MEMORY = 0.25
# By version of control groups: limit, use, and what of the use is files read before.
_NAMES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}


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


def free_in_control_group(membership: Path = MEMBERSHIP, root: Path = ROOT) -> int | None:
    """Bytes that this process may still take before the kernel ends it; None where nothing limits it.

    Pages of files that were read before count as free, as Kubernetes counts them. Both versions of control groups; a
    group is limited by those above it too.

    Args:
        membership, root: see `limiting_groups`.
    """
    groups = limiting_groups("memory", membership, root)
    return min((free for group in groups if (free := _free(*group)) is not None), default=None)


def _free(version: int, group: Path) -> int | None:
    limit, use, files = _NAMES[version]
    try:
        most = (group / limit).read_text().strip()
        if most == "max":
            return None
        statistics = dict(line.split(maxsplit=1) for line in (group / "memory.stat").read_text().splitlines())
        taken = int((group / use).read_text()) - int(statistics.get(files, 0))
        return max(0, int(most) - max(0, taken))
    except (OSError, ValueError):
        return None
