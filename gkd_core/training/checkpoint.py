"""Checkpoints: written whole, read without pickle's powers, and never resumed by another configuration."""

import io
from pathlib import Path
from typing import Any

import torch

from gkd_core.errors import GkdError
from gkd_core.files import write_bytes


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint atomically: a kill at any moment leaves the last one or this one, never half of either.

    Args:
        content: tensors, numbers, strings and containers of them.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_bytes(path, buffer.getvalue())


def load_checkpoint(path: Path, fingerprint: str) -> dict[str, Any] | None:
    """The checkpoint in `path`, or None when there is none yet.

    Args:
        fingerprint: digest of inputs and configuration; the checkpoint must have been written under the same.
    Raises:
        GkdError: the file is damaged, or belongs to other inputs or another configuration.
    """
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        leftover.unlink()
    if not path.exists():
        return None
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # torch raises zipfile, pickle and runtime errors alike, and advises to load unsafely
        raise GkdError(f"the checkpoint {path} is damaged: delete it to train from the start") from None
    if not isinstance(content, dict) or content.get("fingerprint") != fingerprint:
        raise GkdError(f"the checkpoint {path} belongs to other inputs or another configuration: delete it")
    found: dict[str, Any] = content
    return found
