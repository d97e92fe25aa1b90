"""Run an exported model with onnxruntime. Imports no torch: what serves must not need what trains."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from gkd_core.cores import thread_limit
from gkd_core.errors import GkdError

CPU = "CPUExecutionProvider"


def session(path: Path, threads: int | None = None, provider: str = CPU) -> onnxruntime.InferenceSession:
    """An onnxruntime session, on the CPU unless told otherwise.

    Args:
        threads: threads within an operator; None takes what this process may (`thread_limit`).
        provider: onnxruntime's name of what runs it; operators that it has not run on the CPU.
    Raises:
        GkdError: the file is missing or is no ONNX model, or the provider does not start.
    """
    if not path.is_file():
        raise GkdError(f"{path} does not exist: run `gkd export`, or name the ONNX file")
    return open_session(path.read_bytes(), path, threads, provider)


def open_session(
    content: bytes, path: Path, threads: int | None = None, provider: str = CPU
) -> onnxruntime.InferenceSession:
    """The same from the file's bytes; its path is for errors.

    Raises:
        GkdError: they are no ONNX model, or the provider does not start.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.inter_op_num_threads = 1
    # Threads that spin while they wait would take the time of who reads requests, or is timed beside this session.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.load_model_format", "ONNX")  # and not its own, which nobody looked into
    options.intra_op_num_threads = thread_limit() if threads is None else threads
    try:
        opened = onnxruntime.InferenceSession(content, options, providers=[provider])
    except Exception as error:  # onnxruntime's errors have no common base
        reason = first_line(error)
        raise GkdError(f"{path} is not an ONNX model that onnxruntime can open ({reason}): export it again") from None
    if opened.get_providers()[0] != provider:  # onnxruntime goes on with the CPU
        raise GkdError(f"{provider} does not start on this machine: install its libraries and driver, or leave it out")
    return opened


def first_line(error: Exception) -> str:
    """What a library's exception says, without its traces."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def as_input(model: onnxruntime.InferenceSession, images: NDArray[np.uint8]) -> NDArray[np.uint8] | NDArray[np.float32]:
    """uint8 images [B, H, W, C] in the form the model wants: as they are, or float32 [B, C, H, W] in [0, 1]."""
    if model.get_inputs()[0].type == "tensor(uint8)":
        return np.ascontiguousarray(images)
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)).astype(np.float32) / np.float32(255)


def run_session(
    model: onnxruntime.InferenceSession, images: NDArray[np.uint8], batch_size: int = 256
) -> NDArray[np.float32]:
    """Logits [N, C] float32 of uint8 images [N, H, W, C], whichever input form the model has."""
    logits: NDArray[np.float32] = run_outputs(model, images, ["logits"], batch_size)["logits"]
    return logits


def run_outputs(
    model: onnxruntime.InferenceSession, images: NDArray[np.uint8], names: Sequence[str], batch_size: int = 256
) -> dict[str, NDArray[Any]]:
    """The named outputs [N, …] of uint8 images [N, H, W, C]."""
    batches = range(0, len(images), batch_size)
    parts = [model.run(list(names), {"image": as_input(model, images[i : i + batch_size])}) for i in batches]
    return {name: np.concatenate(found) for name, found in zip(names, zip(*parts, strict=True), strict=True)}
