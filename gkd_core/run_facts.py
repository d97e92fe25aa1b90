"""What varies from one run or checkout to the next: kept in run.json, in no digest."""

import datetime
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from gkd_core.redact import redact

REVISION = ("rev-parse", "HEAD")
STATUS = ("status", "--porcelain", "--untracked-files=no")


def run_facts(*, seconds: float | None = None, device: torch.device | None = None) -> dict[str, Any]:
    """Git revision and dirty flag, host, platform, CPU, versions, UTC time.

    The revision is that of the checkout one stands in, else of the one that gkd runs from, else None.

    Args:
        seconds: how long the work took.
        device: where it ran.
    """
    revision: str | None = None
    status: str | None = None
    if (checkout := _checkout()) is not None:
        revision, status = _git(checkout, *REVISION), _git(checkout, *STATUS)
    facts: dict[str, Any] = {
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "git_revision": revision,
        "git_dirty": None if status is None else bool(status),
        "host": platform.node(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": metadata.version("torchvision"),
        "command": redact(" ".join([Path(sys.argv[0]).name, *sys.argv[1:]])),
    }
    if seconds is not None:
        facts["seconds"] = round(seconds, 2)
    if device is not None:
        facts["device"] = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
        facts["threads"] = torch.get_num_threads()
    return facts


def where_it_ran(facts: Mapping[str, Any]) -> dict[str, str]:
    """What a table of trainings says of where each was made, from its run.json.

    Returns:
        commit: twelve digits of the revision, with `-dirty` where files that git knows were changed; empty without one.
        hardware: the GPU, or the CPU and its threads.
        torch: its version.
    """
    commit = (facts["git_revision"] or "")[:12] + ("-dirty" if facts["git_dirty"] else "")
    hardware = facts["device"]
    if hardware == "cpu":
        threads = facts["threads"]
        hardware = f"{facts['cpu']}, {threads} thread{'s' * (threads > 1)}"
    return {"commit": commit, "hardware": hardware, "torch": facts["torch"]}


def _cpu(listed: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name, or its kind where the system does not tell.

    Args:
        listed: Linux' own description.
    """
    try:
        for line in listed.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name" and value.strip():
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _checkout() -> Path | None:
    """The folder one stands in, or that of these sources, if git has it under its care."""
    here, sources = Path.cwd(), Path(__file__).parent
    if _git(here, *REVISION) is not None:
        return here
    # Installed packages may lie in somebody else's checkout, which does not know them.
    return None if _git(sources, "ls-files", "--error-unmatch", Path(__file__).name) is None else sources


def _git(folder: Path, *arguments: str) -> str | None:
    """Output of a git command in a folder, or None where there is no git or no checkout."""
    command = ["git", "-C", str(folder), *arguments]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
