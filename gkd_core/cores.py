"""How many cores this process may use, and how its threads wait for one. Imports no torch: who serves asks too.

Threads beyond the cores do harm: OpenMP's wait for each other by spinning, on the very cores that the others need. Two
trainings side by side on two cores were 16 times as slow as one (docs/performance.md).
"""

import math
import os
import re
from pathlib import Path

from gkd_core.control_groups import MEMBERSHIP, ROOT, limiting_groups


def usable_cores(membership: Path = MEMBERSHIP, root: Path = ROOT) -> int:
    """Cores that this process may use: those it is bound to, or what the CPU quota of its control groups comes to.

    A quota is rounded up, so half a core counts as one; of nested groups the smallest holds. What a pod requests is no
    quota, only what it is limited to.

    Args:
        membership, root: see `limiting_groups`.
    """
    return min(_bound(), quota_cores(membership, root) or _bound())


def quota_cores(membership: Path = MEMBERSHIP, root: Path = ROOT) -> int | None:
    """The CPU quota of the control groups (version 1 or 2) in cores, rounded up; None where there is none."""
    found = [quota for group in limiting_groups("cpu", membership, root) if (quota := _quota(*group)) is not None]
    return max(1, math.ceil(min(found))) if found else None


def thread_limit() -> int:
    """Threads that this process may compute with: its usable cores, or OMP_NUM_THREADS where that is less.

    Of several processes that torchrun started on this machine each has its part of the cores.
    """
    return min(_share(), _number("OMP_NUM_THREADS") or _share())


def pool_size() -> int:
    """Threads of a pool that reads, decodes or resizes pictures: this process's part of the cores, 16 at most.

    OMP_NUM_THREADS, which torchrun sets to 1 to keep processes out of each other's way, is not meant for these.
    """
    return min(16, _share())


def set_thread_defaults() -> None:
    """Say to OpenMP and BLAS, in the environment, what the user has not: wait without spinning, keep to the quota.

    They read it when they are loaded, so before torch is first imported. Processes that this one starts have it too.
    OpenMP sees by itself which cores a process is bound to, but no quota.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if (quota := quota_cores()) is not None and quota < _bound():
        os.environ.setdefault("OMP_NUM_THREADS", str(quota))


def _share() -> int:
    return max(1, usable_cores() // max(1, _number("LOCAL_WORLD_SIZE") or 1))


def _bound() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _quota(version: int, group: Path) -> float | None:
    try:
        if version == 2:
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        return None if quota in ("max", "-1") else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _number(variable: str) -> int | None:
    """A whole number above 0 from the environment; of a list (OpenMP's for nested regions) the first."""
    found = re.match(r"\s*(\d+)", os.environ.get(variable, ""))
    return int(found[1]) or None if found else None
