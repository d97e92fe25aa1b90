"""Run an exported model with onnxruntime. Imports no torch: what serves must not need what trains."""

from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from gkd_core.errors import GkdError


def session(path: Path, threads: int | None = None) -> onnxruntime.InferenceSession:
    """An onnxruntime session on the CPU.

    Args:
        threads: threads within an operator; null lets onnxruntime choose.
    Raises:
        GkdError: the file is missing or is no ONNX model.
    """
    if not path.is_file():
        raise GkdError(f"{path} does not exist: run `gkd export`, or name the ONNX file")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Idle threads that spin would steal time from the session that is being timed beside this one.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no common base
        reason = str(error).strip().splitlines()[0]
        raise GkdError(f"{path} is not an ONNX model that onnxruntime can open ({reason}): export it again") from None


def as_input(model: onnxruntime.InferenceSession, images: NDArray[np.uint8]) -> NDArray[np.uint8] | NDArray[np.float32]:
    """uint8 images [B, H, W, C] in the form the model wants: as they are, or float32 [B, C, H, W] in [0, 1]."""
    if model.get_inputs()[0].type == "tensor(uint8)":
        return np.ascontiguousarray(images)
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)).astype(np.float32) / np.float32(255)


def run_session(
    model: onnxruntime.InferenceSession, images: NDArray[np.uint8], batch_size: int = 256
) -> NDArray[np.float32]:
    """Logits [N, C] float32 of uint8 images [N, H, W, C], whichever input form the model has."""
    batches = range(0, len(images), batch_size)
    parts = [model.run(["logits"], {"image": as_input(model, images[i : i + batch_size])})[0] for i in batches]
    return np.concatenate(parts)
