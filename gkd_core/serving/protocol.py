"""The bodies of the Open Inference Protocol v2: bytes → tensors → bytes. Knows nothing of HTTP frameworks.

Tensors travel as JSON, or raw behind the JSON (the binary tensor extension): then the header
`Inference-Header-Content-Length` says where the JSON ends, and each tensor's `binary_data_size` how many of the
following bytes are its own. Zero there means that the whole body is the one input, raw.

Source: the Open Inference Protocol's REST specification, and Triton's extension "binary tensor data".
"""

import json
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from gkd_core.errors import unknown
from gkd_core.serving.tensors import DATATYPES, Array, ProtocolError, TensorSpec, from_bytes, from_json

SURROUNDINGS = 64 << 10  # bytes of a body besides the values: names, shapes, parameters, white space
SHOWN = 60  # characters of what a client sent that are told back to it


@dataclass(frozen=True)
class InferRequest:
    """What a client asks for.

    Attributes:
        id: the client's own name for the request, sent back as it is.
        inputs: by name, of the model's shapes and datatypes.
        outputs: (name, whether raw) in the order asked for.
    """

    id: str | None
    inputs: dict[str, Array]
    outputs: tuple[tuple[str, bool], ...]


def largest_json(inputs: tuple[TensorSpec, ...], max_batch: int) -> int:
    """Bytes that the JSON of a full request can need, generously: each value's digits, brackets and white space."""
    values = 0
    for spec in inputs:
        width = 8 if DATATYPES[spec.datatype].itemsize == 1 else 32
        values += max_batch * prod(spec.shape[1:]) * width
    return values + SURROUNDINGS


def largest_body(header_length: str | None, inputs: tuple[TensorSpec, ...], max_batch: int) -> int:
    """Bytes that the whole body of a full request can need.

    Args:
        header_length: the value of `Inference-Header-Content-Length`, None when there is none.
    """
    text = largest_json(inputs, max_batch)
    size = _header_length(header_length, None)
    if size is None:
        return text
    raw = max_batch * sum(spec.bytes_per_item for spec in inputs)
    return raw + min(size, text) + SURROUNDINGS  # noise grows when packed; an image too many is better told as that


def json_length(header_length: str | None, body: bytes) -> int:
    """Bytes of a body that are JSON; the rest is raw tensors.

    Args:
        header_length: the value of `Inference-Header-Content-Length`, None when there is none.
    Raises:
        ProtocolError: that value is no number of bytes, or more than there are.
    """
    size = _header_length(header_length, len(body))
    return len(body) if size is None else size


def parse_request(
    body: bytes,
    header_length: str | None = None,
    *,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    max_batch: int,
) -> InferRequest:
    """Read the body of an infer request.

    Args:
        body: without compression.
        header_length: the value of `Inference-Header-Content-Length`, None when there is none.
        inputs, outputs: of the model.
        max_batch: images allowed in one request.
    Raises:
        ProtocolError: anything about it is not as it must be; nothing else is raised, whatever the bytes.
    """
    size = json_length(header_length, body)
    if size == 0 and header_length is not None:
        return _raw_request(body, inputs, outputs, max_batch)
    allowed = largest_json(inputs, max_batch)
    if size > allowed:
        raise ProtocolError(
            f"the JSON is larger than the {allowed} bytes that {max_batch} images can need: send fewer, or raw tensors",
            413,
        )
    raw = memoryview(body)[size:]
    request = _json(body[:size])
    parameters = _parameters(request, "the request")
    return InferRequest(
        id=_id(request),
        inputs=_inputs(request, raw, inputs, max_batch),
        outputs=_outputs(request, outputs, _flag(parameters, "binary_data_output")),
    )


def encode_response(
    arrays: dict[str, Array],
    specs: tuple[TensorSpec, ...],
    request: InferRequest,
    *,
    model_name: str,
    model_version: str,
) -> tuple[bytes, int | None]:
    """The body that answers `request`, and how long its JSON is where raw tensors follow it (None where none do).

    Raises:
        ProtocolError: a value to be written as JSON is NaN or infinite.
    """
    types = {spec.name: spec.datatype for spec in specs}
    described: list[dict[str, Any]] = []
    tails: list[bytes] = []
    for name, binary in request.outputs:
        array = arrays[name]
        entry: dict[str, Any] = {"name": name, "datatype": types[name], "shape": list(array.shape)}
        if binary:
            tails.append(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).tobytes())
            entry["parameters"] = {"binary_data_size": len(tails[-1])}
        else:
            entry["data"] = array.ravel().tolist()
        described.append(entry)
    content: dict[str, Any] = {"model_name": model_name, "model_version": model_version, "outputs": described}
    if request.id is not None:
        content["id"] = request.id
    try:
        head = json.dumps(content, allow_nan=False, separators=(",", ":")).encode()
    except ValueError:
        raise ProtocolError("the model answers this input with NaN or infinity, which JSON cannot hold") from None
    return b"".join([head, *tails]), len(head) if tails else None


def _header_length(value: str | None, available: int | None) -> int | None:
    if value is None:
        return None
    if not (value.isascii() and value.isdigit() and len(value) <= 12):
        raise ProtocolError(f"Inference-Header-Content-Length is {_shown(value)}, which is no number of bytes")
    if available is not None and int(value) > available:
        raise ProtocolError(
            f"Inference-Header-Content-Length is {int(value)}, but the whole body has {available} bytes"
        )
    return int(value)


def _raw_request(
    body: bytes, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], max_batch: int
) -> InferRequest:
    if len(inputs) != 1:
        raise ProtocolError("a raw body (Inference-Header-Content-Length 0) needs a model with a single input")
    spec = inputs[0]
    count, rest = divmod(len(body), spec.bytes_per_item)
    if rest or not count:
        raise ProtocolError(
            f"a raw body has {spec.bytes_per_item} bytes an image for input {spec.name!r}; {len(body)} is no multiple "
            "of that"
        )
    shape = _checked_shape([count, *spec.shape[1:]], spec, max_batch)
    array = from_bytes(memoryview(body), spec, shape)
    return InferRequest(None, {spec.name: array}, tuple((output.name, True) for output in outputs))


def _json(body: bytes) -> dict[str, Any]:
    try:
        content = json.loads(body.decode(), parse_constant=_no_constant, object_pairs_hook=_object)
    except UnicodeDecodeError:
        raise ProtocolError("the body is not UTF-8, so it is no JSON") from None
    except RecursionError:
        raise ProtocolError("the JSON is nested too deeply") from None
    except ValueError as error:  # json.JSONDecodeError, and a number of too many digits
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "a number has too many digits"
        place = f" at character {error.pos}" if isinstance(error, json.JSONDecodeError) else ""
        raise ProtocolError(f"the body is not JSON: {reason}{place}") from None
    if type(content) is not dict:
        raise ProtocolError("the JSON is no object with `inputs`")
    return content


def _no_constant(name: str) -> None:
    raise ProtocolError(f"{name} is no number in JSON: send finite numbers")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ProtocolError("an object in the JSON has the same key twice")
    return content


def _id(request: dict[str, Any]) -> str | None:
    name = request.get("id")
    if name is not None and type(name) is not str:
        raise ProtocolError("the request's `id` is no text")
    return name


def _parameters(owner: dict[str, Any], whose: str) -> dict[str, Any]:
    parameters = owner.get("parameters", {})
    if type(parameters) is not dict:
        raise ProtocolError(f"the `parameters` of {whose} are no object")
    return parameters


def _flag(parameters: dict[str, Any], name: str, default: bool = False) -> bool:
    value = parameters.get(name, default)
    if type(value) is not bool:
        raise ProtocolError(f"the parameter {name} is neither true nor false")
    return value


def _entries(request: dict[str, Any], key: str) -> list[dict[str, Any]]:
    entries = request.get(key, [])
    if type(entries) is not list or any(type(entry) is not dict for entry in entries):
        raise ProtocolError(f"`{key}` is no list of objects")
    names = [entry.get("name") for entry in entries]
    if any(type(name) is not str for name in names):
        raise ProtocolError(f"an entry of `{key}` has no `name`")
    return entries


def _known(entries: list[dict[str, Any]], what: str, specs: tuple[TensorSpec, ...]) -> list[TensorSpec]:
    """The specs of the entries, in their order; each known, none twice."""
    by_name = {spec.name: spec for spec in specs}
    found: list[TensorSpec] = []
    for entry in entries:
        name = entry["name"]
        if name not in by_name:
            raise ProtocolError(unknown(what, name[:SHOWN], by_name))
        if by_name[name] in found:
            raise ProtocolError(f"{what} {name!r} is there twice")
        found.append(by_name[name])
    return found


def _inputs(
    request: dict[str, Any], raw: memoryview, specs: tuple[TensorSpec, ...], max_batch: int
) -> dict[str, Array]:
    entries = _entries(request, "inputs")
    known = _known(entries, "input", specs)
    for spec in specs:
        if spec not in known:
            raise ProtocolError(f"the request lacks the input {spec.name!r}")
    arrays: dict[str, Array] = {}
    place = 0
    for entry, spec in zip(entries, known, strict=True):
        if entry.get("datatype") != spec.datatype:
            raise ProtocolError(
                f"input {spec.name!r} is of datatype {spec.datatype}, not {_shown(entry.get('datatype'))}"
            )
        shape = _checked_shape(entry.get("shape"), spec, max_batch)
        parameters = _parameters(entry, f"input {spec.name!r}")
        _refuse_shared_memory(parameters)
        size = parameters.get("binary_data_size")
        if (size is None) == ("data" not in entry):
            raise ProtocolError(f"input {spec.name!r} must have either `data` or the parameter binary_data_size")
        if size is None:
            arrays[spec.name] = from_json(entry["data"], spec, shape)
            continue
        if type(size) is not int or size < 0:
            raise ProtocolError(f"the binary_data_size of input {spec.name!r} is no number of bytes")
        if size > len(raw) - place:
            raise ProtocolError(
                f"input {spec.name!r} announces {size} raw bytes, but only {len(raw) - place} follow the JSON: "
                "is the body cut short, or Inference-Header-Content-Length missing?"
            )
        arrays[spec.name] = from_bytes(raw[place : place + size], spec, shape)
        place += size
    if place != len(raw):
        raise ProtocolError(f"{len(raw) - place} raw bytes follow the JSON that no input claims")
    if len({len(array) for array in arrays.values()}) > 1:
        raise ProtocolError("the inputs have batches of different size")
    return arrays


def _checked_shape(shape: Any, spec: TensorSpec, max_batch: int) -> tuple[int, ...]:
    wanted = [("batch" if side == -1 else side) for side in spec.shape]
    fits = (
        type(shape) is list
        and len(shape) == len(spec.shape)
        and all(type(side) is int and side > 0 for side in shape)
        and shape[1:] == list(spec.shape[1:])
    )
    if not fits:
        shown = ", ".join(map(str, wanted))
        raise ProtocolError(f"input {spec.name!r} has the shape [{shown}], not {_shown(shape)}")
    if shape[0] > max_batch:
        raise ProtocolError(
            f"a request holds at most {max_batch} images, this one {_shown(shape[0])}: send them in several"
        )
    return tuple(shape)


def _outputs(request: dict[str, Any], specs: tuple[TensorSpec, ...], binary: bool) -> tuple[tuple[str, bool], ...]:
    entries = _entries(request, "outputs") if request.get("outputs") is not None else []
    known = _known(entries, "output", specs)
    chosen = []
    for entry, spec in zip(entries, known, strict=True):
        parameters = _parameters(entry, f"output {spec.name!r}")
        _refuse_shared_memory(parameters)
        if parameters.get("classification"):
            raise ProtocolError(
                "the classification extension is not offered here: ask for the logits, or POST an image to /classify"
            )
        chosen.append((spec.name, _flag(parameters, "binary_data", binary)))
    return tuple(chosen) or tuple((spec.name, binary) for spec in specs)


def _refuse_shared_memory(parameters: dict[str, Any]) -> None:
    if any(name.startswith("shared_memory") for name in parameters):
        raise ProtocolError("shared memory is not offered here: send the tensor in the request")


def _shown(value: Any) -> str:
    """What a client sent, in few characters; long lists and numbers are not written out first."""
    if type(value) is list:
        value = value[:8] if all(type(side) in (int, float, bool, str) for side in value[:8]) else "a nested list"
    if type(value) is int and abs(value) > 10**SHOWN:
        return "a huge number"
    if type(value) is list:
        return f"[{', '.join(_shown(side) for side in value)}]"
    if type(value) is dict:
        return "an object"
    text = json.dumps(value[:SHOWN] if type(value) is str else value)
    return text if len(text) <= 8 * SHOWN else text[: 8 * SHOWN]
