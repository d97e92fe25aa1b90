"""Whether an ONNX file is all there is to a model, found out before onnxruntime opens it.

A tensor may lie in another file, which onnxruntime then reads: whatever the server may read, answered as weights, and
nothing that the model's digest speaks of. onnxruntime has no option against that, so the file's tensors are looked at
here: a walk over the protobuf messages that lead to one, which needs no package for ONNX and decodes nothing.
"""

from collections.abc import Iterator

# The fields, by number, through which a message holds tensors: onnx.proto, IR version 14.
MESSAGES = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: "TensorProto",
        6: "GraphProto",
        10: "TensorProto",
        11: "GraphProto",
        22: "SparseTensorProto",
        23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
}
NAME = 8  # of TensorProto
EXTERNAL_DATA, DATA_LOCATION = 13, 14
MOST_FIELDS = 1 << 22  # some seconds; a model of a thousand layers has a tenth of it

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


class Strange(Exception):
    """The bytes are no ONNX model, or more than is worth looking at."""


def tensor_elsewhere(content: bytes) -> str | None:
    """The name of a tensor that lies in another file; None where the file holds all.

    Stricter than a reader of protobuf: a tensor that so much as mentions another place counts, and what an ONNX model
    never has (groups, numbers that go on without end) is not passed over.

    Raises:
        Strange: it is no protobuf, or has more than `MOST_FIELDS` fields.
    """
    waiting = [("ModelProto", 0, len(content))]
    fields = 0
    while waiting:
        kind, start, end = waiting.pop()
        name, elsewhere = "", False
        for number, wire, value, after in _fields(content, start, end):
            fields += 1
            if fields > MOST_FIELDS:
                raise Strange(f"it has more than {MOST_FIELDS} fields")
            if kind == "TensorProto":
                elsewhere |= number == EXTERNAL_DATA or (number == DATA_LOCATION and (wire, value) != (VARINT, 0))
                if number == NAME and wire == BYTES:
                    name = content[value : min(after, value + 100)].decode(errors="replace")
            elif wire == BYTES and number in MESSAGES[kind]:
                waiting.append((MESSAGES[kind][number], value, after))
        if elsewhere:
            return name or "without a name"
    return None


def _fields(content: bytes, position: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Number, wire type, value (of bytes: where they start) and where the next field starts."""
    while position < end:
        tag, position = _varint(content, position, end, 5)
        number, wire = tag >> 3, tag & 7
        value = position
        if wire == VARINT:
            value, position = _varint(content, position, end, 10)
        elif wire == BYTES:
            size, value = _varint(content, position, end, 5)
            position = value + size
        elif wire in (FIXED64, FIXED32):
            position += 8 if wire == FIXED64 else 4
        else:
            raise Strange("it is no protobuf as ONNX models are")
        if position > end or not 0 < number < 1 << 29:
            raise Strange("it is no protobuf as ONNX models are")
        yield number, wire, value, position


def _varint(content: bytes, position: int, end: int, longest: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 7 * longest, 7):
        if position >= end:
            break
        byte = content[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise Strange("it is no protobuf as ONNX models are")
