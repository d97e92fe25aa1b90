"""Tensors as the Open Inference Protocol names and carries them: in JSON, and as raw little-endian bytes."""

from dataclasses import dataclass
from itertools import chain
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

DATATYPES: dict[str, np.dtype[Any]] = {
    "UINT8": np.dtype("u1"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "INT64": np.dtype("<i8"),
}


class ProtocolError(Exception):
    """What a client is told: one sentence and an HTTP status."""

    def __init__(self, sentence: str, status: int = 400) -> None:
        super().__init__(sentence)
        self.status = status


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a model; −1 in its shape is the batch, always first, and a side that may be any."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    @property
    def of_any_size(self) -> bool:
        """Whether sides besides the batch may be any."""
        return -1 in self.shape[1:]

    @property
    def bytes_per_item(self) -> int:
        """Raw bytes of one item of the batch, where all have one size."""
        return prod(self.shape[1:]) * DATATYPES[self.datatype].itemsize


def from_json(data: list[Any], spec: TensorSpec, shape: tuple[int, ...]) -> Array:
    """The array that a JSON list holds, flat in row-major order or nested as its shape.

    Nothing is coerced: no fraction into an integer, no text, no truth value; no number outside the datatype's range.

    Args:
        data: what JSON gave.
        shape: checked against `spec` before.
    Raises:
        ProtocolError: what the list holds is not that tensor.
    """
    flat = _flat(data, spec.name, shape)
    dtype = DATATYPES[spec.datatype]
    kinds = set(map(type, flat))
    allowed: set[type] = {int} if dtype.kind in "ui" else {int, float}
    if not kinds <= allowed:
        wrong = sorted(kind.__name__ for kind in kinds - allowed)[0]
        raise ProtocolError(f"input {spec.name!r} holds a value of type {wrong}, which is no {spec.datatype}")
    try:
        with np.errstate(over="ignore"):
            # Pixels are what comes most, and bytes() reads them in a third of the time.
            array = np.frombuffer(bytes(flat), dtype) if dtype == np.uint8 else np.array(flat, dtype=dtype)
    except (OverflowError, ValueError):  # of np.array and of bytes
        raise ProtocolError(f"input {spec.name!r} holds a number outside the range of {spec.datatype}") from None
    return _finite(array.reshape(shape), spec)


def from_bytes(raw: memoryview, spec: TensorSpec, shape: tuple[int, ...]) -> Array:
    """The array in raw bytes, row-major, little-endian; nothing is copied.

    Raises:
        ProtocolError: another number of bytes than the shape needs, or a value that is no finite number.
    """
    needed = prod(shape) * DATATYPES[spec.datatype].itemsize
    if len(raw) != needed:
        raise ProtocolError(
            f"input {spec.name!r} of shape {list(shape)} and datatype {spec.datatype} has {needed} bytes, "
            f"not the {len(raw)} that were sent"
        )
    return _finite(np.frombuffer(raw, DATATYPES[spec.datatype]).reshape(shape), spec)


def _finite(array: Array, spec: TensorSpec) -> Array:
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ProtocolError(f"input {spec.name!r} holds NaN or infinity in {spec.datatype}: send finite numbers")
    return array


def _flat(data: list[Any], name: str, shape: tuple[int, ...]) -> list[Any]:
    if not data or type(data[0]) is not list:
        if len(data) != prod(shape):
            raise ProtocolError(
                f"input {name!r} of shape {list(shape)} has {prod(shape)} values, not the {len(data)} that were sent"
            )
        return data
    level = [data]
    for size in shape:
        if any(type(part) is not list or len(part) != size for part in level):
            raise ProtocolError(f"the nested lists of input {name!r} do not have the shape {list(shape)} it states")
        level = list(chain.from_iterable(level))
    return level
