"""The bodies of the Open Inference Protocol v2: bytes → images → bytes. Knows nothing of HTTP frameworks.

Tensors travel as JSON, or raw behind the JSON (the binary tensor extension): then the header
`Inference-Header-Content-Length` says where the JSON ends, and the input's `binary_data_size` how many bytes follow.
Zero in the header means that the whole body is the input, raw. A model here has one input, and one output or, where
it decides, four.

Source: the Open Inference Protocol's REST specification, and Triton's extension "binary tensor data".
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gkd_core.errors import unknown
from gkd_core.serving.tensors import DATATYPES, Array, ProtocolError, TensorSpec, from_bytes, from_json

SURROUNDINGS = 64 << 10  # bytes of a body besides the values: names, shapes, parameters, white space
LONGEST_SIDE = 65_535  # of a picture of any size: the filters of one of a million pixels in a row would take gigabytes
SHOWN = 60  # characters of what a client sent that are told back to it


@dataclass(frozen=True)
class InferRequest:
    """What a client asks for.

    Attributes:
        id: the client's own name for the request, sent back as it is.
        images: of the input's shape and datatype.
        wanted: the outputs that are wanted, by name in order, and whether as raw bytes.
    """

    id: str | None
    images: Array
    wanted: dict[str, bool]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True)


class _Parameters(_Strict):
    binary_data_size: int | None = Field(None, ge=0)
    binary_data: bool | None = None
    binary_data_output: bool = False
    classification: int = 0


class _Tensor(_Strict):
    name: str
    datatype: str | None = None
    shape: list[int] = Field([], max_length=8)
    data: list[Any] | None = None
    parameters: _Parameters = _Parameters()


class _Body(_Strict):
    """The JSON of a request; what is not named here is passed over."""

    id: str | None = None
    inputs: list[_Tensor] = Field(min_length=1, max_length=1)
    outputs: list[_Tensor] | None = Field(None, max_length=8)
    parameters: _Parameters = _Parameters()


def largest_body(spec: TensorSpec, max_batch: int, max_pixels: int) -> int:
    """Bytes that a full request can need, as JSON, the longest form: each value's digits, brackets and white space.

    Pictures of any size are to be sent raw: there it is what `max_pixels` pixels need so, in JSON some quarter of them.
    """
    if spec.of_any_size:
        return max_pixels * spec.shape[-1] * DATATYPES[spec.datatype].itemsize + SURROUNDINGS
    width = 8 if DATATYPES[spec.datatype].itemsize == 1 else 32
    return max_batch * prod(spec.shape[1:]) * width + SURROUNDINGS


def json_length(header_length: str | None, body: bytes) -> int:
    """Bytes of a body that are JSON; the rest is raw.

    Args:
        header_length: the value of `Inference-Header-Content-Length`, None when there is none.
    Raises:
        ProtocolError: that value is no number of bytes, or more than there are.
    """
    if header_length is None:
        return len(body)
    if not (header_length.isascii() and header_length.isdigit() and len(header_length) <= 12):
        raise ProtocolError(
            f"Inference-Header-Content-Length is {header_length[:SHOWN]!r}, which is no number of bytes"
        )
    if int(header_length) > len(body):
        raise ProtocolError(
            f"Inference-Header-Content-Length is {int(header_length)}, but the whole body has {len(body)} bytes"
        )
    return int(header_length)


def parse_request(
    body: bytes,
    header_length: str | None = None,
    *,
    input: TensorSpec,
    outputs: Sequence[TensorSpec],
    max_batch: int,
    max_pixels: int,
) -> InferRequest:
    """Read the body of an infer request.

    Args:
        body: without compression.
        header_length: the value of `Inference-Header-Content-Length`, None when there is none.
        input, outputs: of the model.
        max_batch: images allowed in one request.
        max_pixels: of all of them together, where a model takes any size.
    Raises:
        ProtocolError: anything about it is not as it must be; nothing else is raised, whatever the bytes.
    """
    size = json_length(header_length, body)
    raw = memoryview(body)[size:]
    if size == 0 and header_length is not None:
        if input.of_any_size:
            raise ProtocolError(
                f"raw bytes alone do not say how large the pictures of input {input.name!r} are: send their shape in "
                "JSON before them"
            )
        count, rest = divmod(len(raw), input.bytes_per_item)
        if rest or not count:
            raise ProtocolError(
                f"a raw body has {input.bytes_per_item} bytes an image for input {input.name!r}; {len(raw)} is no "
                "multiple of that"
            )
        shape = _checked_shape([count, *input.shape[1:]], input, max_batch, max_pixels)
        return InferRequest(None, from_bytes(raw, input, shape), {output.name: True for output in outputs})
    try:
        request = _Body.model_validate_json(body[:size])
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ProtocolError(f"the body is no infer request: {place}{': ' if place else ''}{first['msg']}") from None
    return InferRequest(
        request.id,
        _images(request.inputs[0], raw, input, max_batch, max_pixels),
        _wanted(request, outputs),
    )


def encode_response(
    found: Mapping[str, Array],
    outputs: Sequence[TensorSpec],
    request: InferRequest,
    *,
    model_name: str,
    model_version: str,
) -> tuple[bytes, int | None]:
    """The body that answers `request`, and how long its JSON is where raw bytes follow it (None where none do).

    Args:
        found: outputs [B, …] by name.
        outputs: of the model.
    Raises:
        ProtocolError: a value to be written as JSON is NaN or infinite.
    """
    datatypes = {output.name: output.datatype for output in outputs}
    entries, tails = [], []
    for name, raw in request.wanted.items():
        values = found[name]
        entry: dict[str, Any] = {"name": name, "datatype": datatypes[name], "shape": list(values.shape)}
        if raw:
            tails.append(np.ascontiguousarray(values, DATATYPES[datatypes[name]]).tobytes())
            entry["parameters"] = {"binary_data_size": len(tails[-1])}
        else:
            entry["data"] = values.ravel().tolist()
        entries.append(entry)
    content: dict[str, Any] = {"model_name": model_name, "model_version": model_version, "outputs": entries}
    if request.id is not None:
        content["id"] = request.id
    try:
        head = json.dumps(content, allow_nan=False, separators=(",", ":")).encode()
    except ValueError:
        raise ProtocolError("the model answers this input with NaN or infinity, which JSON cannot hold") from None
    return head + b"".join(tails), len(head) if tails else None


def _images(entry: _Tensor, raw: memoryview, spec: TensorSpec, max_batch: int, max_pixels: int) -> Array:
    _expect_name("input", entry, [spec])
    if entry.datatype != spec.datatype:
        raise ProtocolError(f"input {spec.name!r} is of datatype {spec.datatype}, not {str(entry.datatype)[:SHOWN]!r}")
    shape = _checked_shape(entry.shape, spec, max_batch, max_pixels)
    size = entry.parameters.binary_data_size
    if (size is None) == (entry.data is None):
        raise ProtocolError(f"input {spec.name!r} must have either `data` or the parameter binary_data_size")
    if len(raw) != (size or 0):
        raise ProtocolError(
            f"input {spec.name!r} announces {size or 0} raw bytes, and {len(raw)} follow the JSON: is the body cut "
            "short, or Inference-Header-Content-Length wrong?"
        )
    return from_json(entry.data, spec, shape) if entry.data is not None else from_bytes(raw, spec, shape)


def _checked_shape(shape: list[int], spec: TensorSpec, max_batch: int, max_pixels: int) -> tuple[int, ...]:
    fits = len(shape) == len(spec.shape) and all(
        side >= 1 and wanted in (-1, side) for side, wanted in zip(shape, spec.shape, strict=True)
    )
    if not fits:
        names = iter(("height", "width"))
        wanted = ", ".join(next(names) if side == -1 else str(side) for side in spec.shape[1:])
        raise ProtocolError(f"input {spec.name!r} has the shape [batch, {wanted}], not {str(shape)[:SHOWN]}")
    if shape[0] > max_batch:
        raise ProtocolError(
            f"a request holds at most {max_batch} images, this one {str(shape[0])[:SHOWN]}: send them in several"
        )
    if spec.of_any_size and max(shape[1:3]) > LONGEST_SIDE:
        raise ProtocolError(f"a picture has at most {LONGEST_SIDE:,} pixels a side, as a JPEG has: make it smaller")
    if spec.of_any_size and prod(shape[:3]) > max_pixels:
        raise ProtocolError(
            f"a request holds pictures of at most {max_pixels:,} pixels together, this one of more: send fewer, or "
            "smaller ones"
        )
    return tuple(shape)


def _wanted(request: _Body, outputs: Sequence[TensorSpec]) -> dict[str, bool]:
    """Those that are asked for, else all, and whether raw."""
    wanted: dict[str, bool] = {}
    raw = request.parameters.binary_data_output
    for entry in request.outputs or ():
        _expect_name("output", entry, outputs)
        if entry.parameters.classification:
            raise ProtocolError(
                "the classification extension is not offered here: ask for the logits, or POST an image to /classify"
            )
        if entry.name in wanted:
            raise ProtocolError(f"output {entry.name!r} is asked for twice: ask once")
        wanted[entry.name] = raw if entry.parameters.binary_data is None else entry.parameters.binary_data
    return wanted or {output.name: raw for output in outputs}


def _expect_name(what: str, entry: _Tensor, specs: Sequence[TensorSpec]) -> None:
    if entry.name not in (names := [spec.name for spec in specs]):
        raise ProtocolError(unknown(what, entry.name[:SHOWN], names))
