"""What varies from one run or checkout to the next: kept in run.json, in no digest."""

import datetime
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from gkd_core.redact import redact


def run_facts(*, seconds: float | None = None, device: torch.device | None = None) -> dict[str, Any]:
    """Git revision and dirty flag (None outside a checkout), host, platform, versions, UTC time.

    Args:
        seconds: how long the work took.
        device: where it ran.
    """
    facts: dict[str, Any] = {
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "git_revision": _git("rev-parse", "HEAD"),
        "git_dirty": None
        if (status := _git("status", "--porcelain", "--untracked-files=no")) is None
        else bool(status),
        "host": platform.node(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": metadata.version("torchvision"),
        "command": redact(" ".join([Path(sys.argv[0]).name, *sys.argv[1:]])),
    }
    if seconds is not None:
        facts["seconds"] = round(seconds, 1)
    if device is not None:
        facts["device"] = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
        facts["threads"] = torch.get_num_threads()
    return facts


def _git(*arguments: str) -> str | None:
    """Output of a git command in the current folder, or None where there is no git or no checkout."""
    try:
        result = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
