"""Bodies of the Open Inference Protocol, byte by byte, and a parser that no bytes can bring down."""

import json
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gkd_core.serving.protocol import InferRequest, encode_response, largest_body, parse_request
from gkd_core.serving.tensors import DATATYPES, ProtocolError, TensorSpec

PIXELS = TensorSpec("image", "UINT8", (-1, 2, 1, 1))
FLOATS = TensorSpec("image", "FP32", (-1, 2))
PICTURES = TensorSpec("pixels", "UINT8", (-1, -1, -1, 3))
LOGITS = TensorSpec("logits", "FP32", (-1, 2))
IMAGE = {"name": "image", "datatype": "UINT8", "shape": [1, 2, 1, 1], "data": [7, 255]}
HUGE = b'{"inputs":[{"name":"image","shape":[%s]}]}' % (b"9" * 5000)


def parse(content, header_length=None, *, spec=PIXELS, max_batch=4) -> InferRequest:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return parse_request(body, header_length, input=spec, outputs=(LOGITS,), max_batch=max_batch, max_pixels=100)


def floats(data, shape=(1, 2)) -> dict:
    return {"inputs": [{"name": "image", "datatype": "FP32", "shape": list(shape), "data": data}]}


def answer(logits, *, raw: bool, name: str | None = None) -> tuple[bytes, int | None]:
    request = InferRequest(name, np.zeros(0), {"logits": raw})
    return encode_response(
        {"logits": np.array(logits, np.float32)}, (LOGITS,), request, model_name="m", model_version="3"
    )


@pytest.mark.parametrize("data", [[7, 255], [[[[7]], [[255]]]]])
def test_json_numbers_flat_or_nested(data):
    request = parse({"id": "a", "inputs": [IMAGE | {"data": data}]})
    assert (request.images.dtype, request.images.tolist()) == (np.uint8, [[[[7]], [[255]]]])
    assert (request.id, request.wanted) == ("a", {"logits": False})


def test_how_large_a_body_can_be():
    # 4 images of 2 values, of 8 or 32 bytes each in JSON, and 64 KiB around them
    assert largest_body(PIXELS, 4, 100) == 4 * 2 * 8 + 65536
    assert largest_body(FLOATS, 4, 100) == 4 * 2 * 32 + 65536
    assert largest_body(PICTURES, 4, 100) == 100 * 3 + 65536  # raw, whatever their number


@pytest.mark.parametrize(
    ("spec", "value"),
    [
        (TensorSpec("image", "UINT8", (-1, 64, 64, 1)), 255),
        (TensorSpec("image", "FP32", (-1, 1, 64, 64)), -1.1754943508222875e-38),
    ],
)
def test_a_full_request_in_its_longest_form_fits(spec, value):
    data = np.full((16, *spec.shape[1:]), value).tolist()
    entry = {"name": "image", "datatype": spec.datatype, "shape": [16, *spec.shape[1:]], "data": data}
    content = json.dumps({"inputs": [entry]}).encode()
    assert 65536 < len(content) <= largest_body(spec, 16, 100)
    assert parse(content, spec=spec, max_batch=16).images.shape == (16, *spec.shape[1:])


def test_raw_bytes_follow_the_json():
    head = b'{"inputs":[{"name":"image","datatype":"FP32","shape":[2,2],"parameters":{"binary_data_size":16}}]}'
    body = head + struct.pack("<4f", 1.0, -2.5, 0.0, 3e38)
    assert parse(body, str(len(head)), spec=FLOATS).images.tolist() == [[1.0, -2.5], [0.0, float(np.float32(3e38))]]


def test_a_body_may_be_nothing_but_the_tensor():
    request = parse(bytes([1, 2, 3, 4]), "0")
    assert (request.images.tolist(), request.wanted) == ([[[[1]], [[2]]], [[[3]], [[4]]]], {"logits": True})


@pytest.mark.parametrize(
    ("request_parameters", "output_parameters", "raw"),
    [({}, None, False), ({"binary_data_output": True}, None, True), ({}, {"binary_data": True}, True),
     ({"binary_data_output": True}, {"binary_data": False}, False), ({"binary_data_output": True}, {}, True)],
)  # fmt: skip
def test_the_client_says_how_it_wants_the_answer(request_parameters, output_parameters, raw):
    content = {"inputs": [IMAGE], "parameters": request_parameters}
    if output_parameters is not None:
        content["outputs"] = [{"name": "logits", "parameters": output_parameters}]
    assert parse(content).wanted == {"logits": raw}


def test_an_answer_in_json():
    body, json_size = answer([[0.5, -1.0]], raw=False, name="x")
    assert json_size is None
    assert json.loads(body) == {
        "model_name": "m",
        "model_version": "3",
        "id": "x",
        "outputs": [{"name": "logits", "datatype": "FP32", "shape": [1, 2], "data": [0.5, -1.0]}],
    }
    with pytest.raises(ProtocolError, match="NaN or infinity"):
        answer([[np.nan]], raw=False)


def test_an_answer_in_raw_bytes():
    body, json_size = answer([[0.5, -1.0]], raw=True)
    assert json_size is not None
    assert body[json_size:] == bytes.fromhex("0000003f000080bf")
    described = json.loads(body[:json_size])
    assert "id" not in described
    assert described["outputs"][0]["parameters"] == {"binary_data_size": 8}


DECIDED = (LOGITS, TensorSpec("score", "FP32", (-1,)), TensorSpec("decision", "INT64", (-1,)))
FOUND = {
    "logits": np.array([[0.5, -1.0], [2.0, 1.0]], np.float32),
    "score": np.array([0.25, 4.0], np.float32),
    "decision": np.array([-1, 0]),
}


def test_of_several_outputs_all_are_answered_or_those_that_are_asked_for():
    def told(content):
        request = parse_request(
            json.dumps(content).encode(), input=PIXELS, outputs=DECIDED, max_batch=4, max_pixels=100
        )
        body, size = encode_response(FOUND, DECIDED, request, model_name="m", model_version="3")
        return json.loads(body[:size])["outputs"], body[size or len(body) :]

    everything, _ = told({"inputs": [IMAGE]})
    assert [(entry["name"], entry["datatype"], entry["shape"]) for entry in everything] == [
        ("logits", "FP32", [2, 2]),
        ("score", "FP32", [2]),
        ("decision", "INT64", [2]),
    ]
    assert everything[2]["data"] == [-1, 0]
    alone, _ = told({"inputs": [IMAGE], "outputs": [{"name": "logits"}]})
    assert alone == everything[:1]
    some = [{"name": "decision", "parameters": {"binary_data": True}}, {"name": "score"}, {"name": "logits"}]
    some[2]["parameters"] = {"binary_data": True}
    mixed, raw = told({"inputs": [IMAGE], "outputs": some})
    assert [entry["name"] for entry in mixed] == ["decision", "score", "logits"]
    assert [entry.get("parameters") for entry in mixed] == [{"binary_data_size": 16}, None, {"binary_data_size": 16}]
    assert raw == FOUND["decision"].astype("<i8").tobytes() + FOUND["logits"].tobytes()
    assert mixed[1]["data"] == [0.25, 4.0]
    with pytest.raises(ProtocolError, match="output 'scores' is unknown; did you mean 'score'"):
        told({"inputs": [IMAGE], "outputs": [{"name": "scores"}]})


def test_every_float32_survives_the_way_through_json():
    array = np.random.default_rng(0).integers(0, 2**32, 4000, dtype=np.uint32).view(np.float32)
    array = array[np.isfinite(array)][: 2 * 1000].reshape(-1, 2)
    sent = floats(json.loads(answer(array, raw=False)[0])["outputs"][0]["data"], array.shape)
    assert np.array_equal(parse(sent, spec=FLOATS, max_batch=9999).images, array)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "Invalid JSON"),
        (b"\xff\xfe{", "Invalid JSON"),
        (b"[]", "should be an object"),
        (b'{"inputs":' + b"[" * 60_000, "recursion limit"),
        (HUGE, "number out of range"),
        ({}, "inputs: Field required"),
        ({"inputs": [3]}, "inputs.0: Input should be an object"),
        ({"inputs": [{}]}, "inputs.0.name: Field required"),
        ({"inputs": [IMAGE | {"name": "imag"}]}, "input 'imag' is unknown; did you mean 'image'"),
        ({"inputs": [IMAGE, IMAGE]}, "at most 1 item"),
        ({"inputs": [IMAGE | {"datatype": "FP32"}]}, "of datatype UINT8, not 'FP32'"),
        ({"inputs": [IMAGE | {"shape": [2, 1, 1]}]}, "has the shape [batch, 2, 1, 1], not [2, 1, 1]"),
        ({"inputs": [IMAGE | {"shape": [0, 2, 1, 1]}]}, "has the shape"),
        ({"inputs": [IMAGE | {"shape": [True, 2, 1, 1]}]}, "inputs.0.shape.0: Input should be a valid integer"),
        ({"inputs": [IMAGE | {"shape": [10**4000, 2, 1, 1]}]}, "at most 4 images, this one 1000"),
        ({"inputs": [IMAGE | {"shape": [5, 2, 1, 1]}]}, "at most 4 images, this one 5"),
        ({"inputs": [IMAGE | {"shape": "x" * 5000}]}, "inputs.0.shape: Input should be a valid array"),
        ({"inputs": [IMAGE | {"data": [1]}]}, "has 2 values, not the 1"),
        ({"inputs": [IMAGE | {"data": [[[[1]], [2]]]}]}, "nested lists"),
        ({"inputs": [IMAGE | {"data": [1, 256]}]}, "outside the range of UINT8"),
        ({"inputs": [IMAGE | {"data": [1, -1]}]}, "outside the range of UINT8"),
        ({"inputs": [IMAGE | {"data": [1, 10**30]}]}, "outside the range of UINT8"),
        ({"inputs": [IMAGE | {"data": [1, 2.0]}]}, "type float, which is no UINT8"),
        ({"inputs": [IMAGE | {"data": [1, float("nan")]}]}, "type float, which is no UINT8"),
        ({"inputs": [IMAGE | {"data": [1, True]}]}, "type bool"),
        ({"inputs": [IMAGE | {"data": None}]}, "either `data` or"),
        ({"inputs": [IMAGE | {"parameters": {"binary_data_size": 2}}]}, "either `data` or"),
        (
            {"inputs": [IMAGE], "parameters": {"binary_data_output": 1}},
            "parameters.binary_data_output: Input",
        ),
        ({"inputs": [IMAGE], "outputs": [{"name": "logit"}]}, "output 'logit' is unknown"),
        ({"inputs": [IMAGE], "outputs": [{"name": "logits"}] * 2}, "output 'logits' is asked for twice"),
        ({"inputs": [IMAGE], "outputs": [{"name": "logits", "parameters": {"classification": 2}}]}, "classification"),
    ],
)
def test_what_is_wrong_is_told_in_one_sentence(content, sentence):
    with pytest.raises(ProtocolError) as told:
        parse(content)
    assert sentence in str(told.value)
    assert len(str(told.value)) < 300
    assert "\n" not in str(told.value)
    assert told.value.status == 400


RAW = b'{"inputs":[{"name":"image","datatype":"UINT8","shape":[1,2,1,1],"parameters":{"binary_data_size":%d}}]}'


@pytest.mark.parametrize(
    ("size", "tail", "header_length", "sentence"),
    [
        (2, b"a", None, "announces 2 raw bytes, and 1 follow"),
        (2, b"abc", None, "announces 2 raw bytes, and 3 follow"),
        (3, b"abc", None, "has 2 bytes, not the 3"),
        (-1, b"", None, "binary_data_size: Input should be greater than or equal to 0"),
        (2, b"ab", "5000", "but the whole body has"),
        (2, b"ab", "-1", "no number of bytes"),
        (2, b"ab", "²", "no number of bytes"),
        (2, b"ab", "9" * 5000, "no number of bytes"),
        (2, b"abc", "0", "is no multiple"),
    ],
)
def test_raw_bytes_that_do_not_add_up(size, tail, header_length, sentence):
    head = RAW % size
    with pytest.raises(ProtocolError) as told:
        parse(head + tail, header_length or str(len(head)))
    assert sentence in str(told.value)


def test_floats_are_finite_however_they_are_sent():
    head = b'{"inputs":[{"name":"image","datatype":"FP32","shape":[1,2],"parameters":{"binary_data_size":8}}]}'
    for value in (float("nan"), -float("inf")):
        with pytest.raises(ProtocolError, match="NaN or infinity"):
            parse(head + struct.pack("<2f", 1.0, value), str(len(head)), spec=FLOATS)
    for number in (b"1e999", b"1e39", b"NaN"):
        with pytest.raises(ProtocolError, match="NaN or infinity"):
            parse(json.dumps(floats([1, 0])).encode().replace(b" 0]", b" %s]" % number), spec=FLOATS)
    with pytest.raises(ProtocolError, match=r"outside the range of FP32|NaN or infinity"):
        parse(floats([1, 10**400]), spec=FLOATS)
    assert parse(floats([1, -2.5]), spec=FLOATS).images.tolist() == [[1.0, -2.5]]  # an integer is one too


@pytest.mark.parametrize("datatype", DATATYPES)
@pytest.mark.parametrize("raw", [False, True])
def test_what_is_sent_is_what_arrives(datatype, raw):
    array = (np.random.default_rng(0).random((3, 5)) * 255).astype(DATATYPES[datatype])
    spec = TensorSpec("image", datatype, (-1, 5))
    entry = {"name": "image", "datatype": datatype, "shape": [3, 5]}
    extra = {"parameters": {"binary_data_size": array.nbytes}} if raw else {"data": array.tolist()}
    head = json.dumps({"inputs": [entry | extra]}).encode()
    found = parse(head + array.tobytes(), str(len(head)), spec=spec) if raw else parse(head, spec=spec)
    assert np.array_equal(found.images, array)
    assert found.images.dtype == array.dtype


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)


def picture(shape, values: int, **changed) -> tuple[bytes, str]:
    """A request for one tensor of pictures, its values raw behind the JSON, and where that ends."""
    tensor = {"name": "pixels", "datatype": "UINT8", "shape": shape, "parameters": {"binary_data_size": values}}
    head = json.dumps({"inputs": [tensor | changed]}).encode()
    return head + bytes(range(values)), str(len(head))


def test_pictures_of_any_size_come_with_their_shape():
    found = parse(*picture([1, 2, 5, 3], 30), spec=PICTURES).images
    assert (found.shape, found[0, 1, 4].tolist()) == ((1, 2, 5, 3), [27, 28, 29])
    assert parse(*picture([2, 1, 1, 3], 6), spec=PICTURES).images.shape == (2, 1, 1, 3)


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [
        ([1, 2, 5, 4], r"has the shape \[batch, height, width, 3\], not \[1, 2, 5, 4\]"),
        ([1, 0, 5, 3], r"has the shape \[batch, height, width, 3\]"),
        ([1, 2, 3], r"has the shape \[batch, height, width, 3\]"),
        ([5, 1, 1, 3], "at most 4 images"),
        ([2, 17, 3, 3], "at most 100 pixels together"),  # 102 of them
        ([1, 1, 65_536, 3], "at most 65,535 pixels a side"),
        ([1, int("9" * 4000), 3, 3], "at most 65,535 pixels a side"),
    ],
)
def test_pictures_of_another_shape_or_too_large_are_one_sentence(shape, sentence):
    with pytest.raises(ProtocolError, match=sentence):
        parse(*picture(shape, 30), spec=PICTURES)


def test_raw_pictures_without_their_shape_are_one_sentence():
    with pytest.raises(ProtocolError, match="send their shape in JSON"):
        parse(bytes(30), "0", spec=PICTURES)


VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=6,
)


def nearly(right):
    """The right value most of the time, anything else otherwise."""
    return st.one_of(st.just(right), st.just(right), st.just(right), VALUES)


REQUESTS = st.fixed_dictionaries(
    {
        "inputs": st.lists(
            st.fixed_dictionaries(
                {"name": nearly("image"), "datatype": nearly("UINT8"), "shape": nearly([1, 2, 1, 1])},
                optional={
                    "data": st.lists(st.integers(-1, 256), max_size=3) | VALUES,
                    "parameters": st.fixed_dictionaries({}, optional={"binary_data_size": nearly(2)}) | VALUES,
                },
            ),
            max_size=2,
        )
        | VALUES
    },
    optional={
        "id": nearly("x"),
        "parameters": st.fixed_dictionaries({}, optional={"binary_data_output": nearly(True)}) | VALUES,
        "outputs": st.lists(st.fixed_dictionaries({"name": nearly("logits")}), max_size=2) | VALUES,
    },
)


def request_or_sentence(body: bytes, header_length: str | None, spec: TensorSpec) -> bool:
    """Whether the parser finds images that the model can take, or a sentence that a client can be sent."""
    try:
        found = parse(body, header_length, spec=spec)
    except ProtocolError as error:
        return 0 < len(str(error).encode()) < 2000 and 400 <= error.status < 500
    fits = found.images.shape[1:] == spec.shape[1:] and 1 <= len(found.images) <= 4
    return fits and bool(np.isfinite(found.images).all())


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(REQUESTS, st.binary(max_size=12), st.none() | st.integers(-2, 2) | st.text(max_size=4), st.integers(0, 40))
def test_whatever_json_comes(content, tail, shift, cut):
    head = json.dumps(content).encode()
    length = None if shift is None else shift if isinstance(shift, str) else str(len(head) + shift)
    body = head + (tail if shift is not None else b"")
    body = body[: len(body) - cut] if cut < 10 else body
    for spec in (PIXELS, FLOATS):
        assert request_or_sentence(body, length, spec)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=64), st.none() | st.text(max_size=4) | st.integers(0, 64).map(str))
def test_whatever_bytes_come(body, header_length):
    for spec in (PIXELS, FLOATS):
        assert request_or_sentence(body, header_length, spec)
