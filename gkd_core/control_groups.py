"""The control groups of this process, by which a container or a pod has but a part of its machine."""

import os
from collections.abc import Iterator
from pathlib import Path

MEMBERSHIP = Path("/proc/self/cgroup")  # the kernel's list of the groups of this process
ROOT = Path("/sys/fs/cgroup")  # where they are mounted


def limiting_groups(controller: str, membership: Path = MEMBERSHIP, root: Path = ROOT) -> Iterator[tuple[int, Path]]:
    """The folders of the groups that may limit this process, innermost first: a group is limited by those above it too.

    Args:
        controller: "memory" or "cpu".
        membership, root: where the kernel tells of them.
    Yields:
        Version of control groups, 1 or 2, which says how the files in the folder are named; and the folder, which need
        not be there.
    """
    try:
        # A group may have any bytes in its name, as a file may.
        lines = [line.split(":", 2) for line in os.fsdecode(membership.read_bytes()).splitlines()]
    except OSError:
        return
    for _, controllers, place in (line for line in lines if len(line) == 3):
        if controllers == "":
            version, top = 2, root
        elif controller in controllers.split(","):
            # Controllers that share a mount (cpu,cpuacct) have a link of their own beside it, as a rule.
            # Some sandboxes let nobody look, which `exists` would raise.
            version, top = 1, root / (controller if os.access(root / controller, os.F_OK) else controllers)
        else:
            continue
        inside = Path(place.lstrip("/"))
        # In a container the group's own files are at the top, whatever the kernel calls it.
        for folder in (inside, *inside.parents):
            yield version, top / folder
