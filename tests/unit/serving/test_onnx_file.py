"""A tensor in another file is found wherever a model may have one."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf.descriptor import Descriptor
from onnx import AttributeProto, TensorProto, helper
from onnx import TrainingInfoProto as Training

from gkd_core.serving import onnx_file
from gkd_core.serving.onnx_file import DATA_LOCATION, EXTERNAL_DATA, MESSAGES, NAME, Strange, tensor_elsewhere


def inside(name: str = "inside") -> onnx.TensorProto:
    return helper.make_tensor(name, TensorProto.FLOAT, [2], [1.0, 2.0])


def outside() -> onnx.TensorProto:
    tensor = TensorProto(name="outside", data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="weights")
    return tensor


def sparse(*tensors: onnx.TensorProto) -> onnx.SparseTensorProto:
    return onnx.SparseTensorProto(values=tensors[0], indices=tensors[1], dims=[4])


def graph(*tensors: onnx.TensorProto, nodes: tuple[onnx.NodeProto, ...] = (), **more) -> onnx.GraphProto:
    found = helper.make_graph(list(nodes), "g", [], [], list(tensors))
    found.sparse_initializer.extend(more.get("sparse", ()))
    return found


def node(**attribute) -> onnx.NodeProto:
    found = onnx.NodeProto(op_type="Constant", output=["c"])
    found.attribute.append(AttributeProto(name="value", **attribute))
    return found


def model(main: onnx.GraphProto, **more) -> onnx.ModelProto:
    return onnx.ModelProto(ir_version=10, graph=main, **more)


PLACES = {
    "initializer": lambda tensor: model(graph(inside("first"), tensor)),
    "sparse initializer": lambda tensor: model(graph(sparse=[sparse(tensor, inside())])),
    "its indices": lambda tensor: model(graph(sparse=[sparse(inside(), tensor)])),
    "constant": lambda tensor: model(graph(nodes=(node(t=tensor),))),
    "constants": lambda tensor: model(graph(nodes=(node(tensors=[inside(), tensor]),))),
    "sparse constant": lambda tensor: model(graph(nodes=(node(sparse_tensor=sparse(tensor, inside())),))),
    "sparse constants": lambda tensor: model(graph(nodes=(node(sparse_tensors=[sparse(inside(), tensor)]),))),
    "branch": lambda tensor: model(graph(nodes=(node(g=graph(nodes=(node(g=graph(tensor)),))),))),
    "branches": lambda tensor: model(graph(nodes=(node(graphs=[graph(), graph(tensor)]),))),
    "function": lambda tensor: model(graph(), functions=[onnx.FunctionProto(name="f", node=[node(t=tensor)])]),
    "function's attribute": lambda tensor: model(
        graph(), functions=[onnx.FunctionProto(attribute_proto=[AttributeProto(name="a", t=tensor)])]
    ),
    "training": lambda tensor: model(graph(), training_info=[Training(algorithm=graph(tensor))]),
    "its beginning": lambda tensor: model(graph(), training_info=[Training(initialization=graph(tensor))]),
}


@pytest.mark.parametrize("place", PLACES)
def test_it_is_found_wherever_it_is(place):
    assert tensor_elsewhere(PLACES[place](outside()).SerializeToString()) == "outside"
    assert tensor_elsewhere(PLACES[place](inside()).SerializeToString()) is None


def test_no_way_to_a_tensor_is_missing():
    known: dict[str, Descriptor] = {}

    def learn(message: Descriptor) -> None:
        if message.name not in known:
            known[message.name] = message
            for field in message.fields:
                if field.message_type is not None:
                    learn(field.message_type)

    learn(onnx.ModelProto.DESCRIPTOR)
    ways: dict[str, dict[int, str]] = {"TensorProto": {}}
    while True:
        before = dict(ways)
        for name, message in known.items():
            held = {f.number: f.message_type.name for f in message.fields if f.message_type is not None}
            leading = {number: kind for number, kind in held.items() if kind in ways}
            if leading:
                ways[name] = leading
        if ways == before:
            break
    del ways["TensorProto"]
    assert ways == MESSAGES
    tensor = known["TensorProto"].fields_by_name
    numbers = [tensor[name].number for name in ("external_data", "data_location", "name")]
    assert numbers == [EXTERNAL_DATA, DATA_LOCATION, NAME]


def field(number: int, content: bytes) -> bytes:
    """A field of bytes shorter than 128, as protobuf writes it."""
    assert len(content) < 128
    return bytes([number << 3 | 2, len(content)]) + content


@pytest.mark.parametrize(
    ("tensor", "seen_as"),
    [
        (b"\x70\x01", 1),
        (b"\x70\x01\x70\x00", 0),  # the last one counts; nobody writes it twice
        (b"\x70\x81\x80\x80\x80\x10", 1),  # 2³² + 1, cut to 32 bits
        (b"\xf0\x80\x00\x01", 1),  # the field's number in three bytes
        (field(13, b""), 0),  # no location, and external data all the same
    ],
)
def test_unusual_ways_of_writing_it(tensor, seen_as):
    content = field(7, field(5, tensor))
    assert onnx.ModelProto.FromString(content).graph.initializer[0].data_location == seen_as
    assert tensor_elsewhere(content) == "without a name"
    assert tensor_elsewhere(field(7, field(5, b"\x70\x00"))) is None
    halves = field(7, b"") + field(7, field(5, tensor))  # a message in two parts
    assert tensor_elsewhere(halves) == "without a name"


@pytest.mark.parametrize(
    "content",
    [
        b"\x3b\x2a\x02\x70\x01\x3c",  # field 7 as a group
        b"\x3c",
        b"\x3f",
        b"\x3a\x05\x00",  # longer than what follows
        b"\x3a",
        b"\x08",
        b"\x08" + b"\xff" * 10 + b"\x01",  # a number of more than 64 bits
        b"\xff" * 6,
        b"\x00\x00",  # field 0
        b"\x0d\x00\x00",
        field(7, b"\x3a\x7f"),
    ],
)
def test_what_is_no_protobuf_is_not_passed_over(content):
    with pytest.raises(Strange, match="no protobuf"):
        tensor_elsewhere(content)


def test_it_ends(monkeypatch):
    monkeypatch.setattr(onnx_file, "MOST_FIELDS", 1000)
    assert tensor_elsewhere(b"\x08\x01" * 1000) is None
    with pytest.raises(Strange, match="more than 1000 fields"):
        tensor_elsewhere(b"\x08\x01" * 1001)


def test_weights_are_not_gone_through(make_deploy, tmp_path: Path, monkeypatch):
    file = make_deploy(tmp_path / "d", side=32, channels=3, count=1000) / "model.onnx"
    monkeypatch.setattr(onnx_file, "MOST_FIELDS", 500)
    assert len(file.read_bytes()) > 50_000
    assert tensor_elsewhere(file.read_bytes()) is None
    floats = helper.make_tensor("w", TensorProto.FLOAT, [10_000], np.zeros(10_000))  # packed, not as bytes
    assert tensor_elsewhere(model(graph(floats)).SerializeToString()) is None
