"""Bodies of the Open Inference Protocol, byte by byte, and a parser that no bytes can bring down."""

import json
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gkd_core.serving.protocol import InferRequest, encode_response, largest_body, largest_json, parse_request
from gkd_core.serving.tensors import DATATYPES, ProtocolError, TensorSpec

PIXELS = (TensorSpec("image", "UINT8", (-1, 2, 1, 1)),)
FLOATS = (TensorSpec("image", "FP32", (-1, 2)),)
LOGITS = (TensorSpec("logits", "FP32", (-1, 2)),)
IMAGE = {"name": "image", "datatype": "UINT8", "shape": [1, 2, 1, 1], "data": [7, 255]}


def parse(content, header_length=None, *, inputs=PIXELS, max_batch=4) -> InferRequest:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return parse_request(body, header_length, inputs=inputs, outputs=LOGITS, max_batch=max_batch)


def floats(data, shape=(1, 2)) -> dict:
    return {"inputs": [{"name": "image", "datatype": "FP32", "shape": list(shape), "data": data}]}


@pytest.mark.parametrize("data", [[7, 255], [[[[7]], [[255]]]]])
def test_json_numbers_flat_or_nested(data):
    request = parse({"id": "a", "inputs": [IMAGE | {"data": data}]})
    array = request.inputs["image"]
    assert (array.dtype, array.shape, array.ravel().tolist()) == (np.uint8, (1, 2, 1, 1), [7, 255])
    assert (request.id, request.outputs) == ("a", (("logits", False),))


def test_how_large_a_body_can_be():
    # 4 images of 2 values, of 8 bytes each in JSON and 1 raw (floats: 32 and 4), and 64 KiB around them
    assert largest_json(PIXELS, 4) == 4 * 2 * 8 + 65536
    assert largest_json(FLOATS, 4) == 4 * 2 * 32 + 65536
    assert largest_body(None, FLOATS, 4) == 4 * 2 * 32 + 65536
    assert largest_body("0", FLOATS, 4) == 4 * 2 * 4 + 65536
    assert largest_body("100", FLOATS, 4) == 4 * 2 * 4 + 100 + 65536
    assert largest_body("99999999", FLOATS, 4) == 4 * 2 * 4 + 4 * 2 * 32 + 65536 + 65536
    with pytest.raises(ProtocolError, match="no number of bytes"):
        largest_body("-1", FLOATS, 4)


@pytest.mark.parametrize("raw", [False, True])
def test_json_that_no_request_needs_is_not_even_read(raw):
    content = b"[" + b"[]," * 25_000  # neither whole nor an object: it would be told so
    with pytest.raises(ProtocolError, match="larger than the 65600 bytes that 4 images can need") as told:
        parse(content, str(len(content)) if raw else None)
    assert told.value.status == 413


@pytest.mark.parametrize(
    "spec", [TensorSpec("image", "UINT8", (-1, 64, 64, 1)), TensorSpec("image", "FP32", (-1, 1, 64, 64))]
)
def test_a_full_request_in_its_longest_form_fits(spec):
    value = 255 if spec.datatype == "UINT8" else -1.1754943508222875e-38
    data = np.full((16, *spec.shape[1:]), value).tolist()
    entry = {"name": "image", "datatype": spec.datatype, "shape": [16, *spec.shape[1:]], "data": data}
    content = json.dumps({"inputs": [entry]}).encode()
    assert len(content) > 65536
    assert parse(content, inputs=(spec,), max_batch=16).inputs["image"].shape == (16, *spec.shape[1:])


def test_raw_bytes_follow_the_json():
    head = b'{"inputs":[{"name":"image","datatype":"FP32","shape":[2,2],"parameters":{"binary_data_size":16}}]}'
    body = head + struct.pack("<4f", 1.0, -2.5, 0.0, 3e38)
    array = parse(body, str(len(head)), inputs=FLOATS).inputs["image"]
    assert array.tolist() == [[1.0, -2.5], [0.0, float(np.float32(3e38))]]


def test_a_body_may_be_nothing_but_the_tensor():
    request = parse(bytes([1, 2, 3, 4]), "0")
    assert request.inputs["image"].ravel().tolist() == [1, 2, 3, 4]
    assert request.inputs["image"].shape == (2, 2, 1, 1)
    assert request.outputs == (("logits", True),)


@pytest.mark.parametrize(
    ("request_parameters", "output_parameters", "binary"),
    [({}, None, False), ({"binary_data_output": True}, None, True), ({}, {"binary_data": True}, True),
     ({"binary_data_output": True}, {"binary_data": False}, False), ({"binary_data_output": True}, {}, True)],
)  # fmt: skip
def test_the_client_says_how_it_wants_the_answer(request_parameters, output_parameters, binary):
    content = {"inputs": [IMAGE], "parameters": request_parameters}
    if output_parameters is not None:
        content["outputs"] = [{"name": "logits", "parameters": output_parameters}]
    assert parse(content).outputs == (("logits", binary),)


def test_an_answer_in_json():
    request = InferRequest("x", {}, (("logits", False),))
    body, json_size = encode_response(
        {"logits": np.array([[0.5, -1.0]], np.float32)}, LOGITS, request, model_name="m", model_version="3"
    )
    assert json_size is None
    assert json.loads(body) == {
        "model_name": "m",
        "model_version": "3",
        "id": "x",
        "outputs": [{"name": "logits", "datatype": "FP32", "shape": [1, 2], "data": [0.5, -1.0]}],
    }


def test_an_answer_in_raw_bytes():
    request = InferRequest(None, {}, (("logits", True),))
    body, json_size = encode_response(
        {"logits": np.array([[0.5, -1.0]], np.float32)}, LOGITS, request, model_name="m", model_version="3"
    )
    assert json_size is not None
    assert body[json_size:] == bytes.fromhex("0000003f000080bf")
    described = json.loads(body[:json_size])
    assert "id" not in described
    assert described["outputs"][0]["parameters"] == {"binary_data_size": 8}


def test_what_json_cannot_hold_is_said():
    request = InferRequest(None, {}, (("logits", False),))
    with pytest.raises(ProtocolError, match="NaN or infinity"):
        encode_response({"logits": np.array([[np.nan]])}, LOGITS, request, model_name="m", model_version="1")


def test_every_float32_survives_the_way_through_json():
    array = np.random.default_rng(0).integers(0, 2**32, 4000, dtype=np.uint32).view(np.float32)
    array = array[np.isfinite(array)][: 2 * 1000].reshape(-1, 2)
    body, _ = encode_response(
        {"logits": array}, LOGITS, InferRequest(None, {}, (("logits", False),)), model_name="m", model_version="1"
    )
    sent = floats(json.loads(body)["outputs"][0]["data"], array.shape)
    assert np.array_equal(parse(sent, inputs=FLOATS, max_batch=9999).inputs["image"], array)


TWICE = b'{"inputs":[],"inputs":[]}'


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe{", "not UTF-8"),
        (b"[]", "no object"),
        (b"1", "no object"),
        (b"[" * 60_000, "nested too deeply"),
        (b'{"id":' + b"9" * 5000 + b"}", "too many digits"),
        (TWICE, "same key twice"),
        (b'{"inputs":[{"name":"image","datatype":"UINT8","shape":[1,2,1,1],"data":[NaN,0]}]}', "NaN is no number"),
        ({}, "lacks the input 'image'"),
        ({"inputs": None}, "no list of objects"),
        ({"inputs": [3]}, "no list of objects"),
        ({"inputs": [{}]}, "has no `name`"),
        ({"inputs": [IMAGE | {"name": "imag"}]}, "input 'imag' is unknown; did you mean 'image'"),
        ({"inputs": [IMAGE, IMAGE]}, "there twice"),
        ({"inputs": [IMAGE | {"datatype": "FP32"}]}, 'of datatype UINT8, not "FP32"'),
        ({"inputs": [IMAGE | {"datatype": None}]}, "of datatype UINT8, not null"),
        ({"inputs": [IMAGE | {"shape": [2, 1, 1]}]}, "has the shape [batch, 2, 1, 1], not [2, 1, 1]"),
        ({"inputs": [IMAGE | {"shape": [0, 2, 1, 1]}]}, "has the shape"),
        ({"inputs": [IMAGE | {"shape": [-1, 2, 1, 1]}]}, "has the shape"),
        ({"inputs": [IMAGE | {"shape": [True, 2, 1, 1]}]}, "has the shape"),
        ({"inputs": [IMAGE | {"shape": [1.0, 2, 1, 1]}]}, "has the shape"),
        ({"inputs": [IMAGE | {"shape": [10**4000, 2, 1, 1]}]}, "at most 4 images, this one a huge number"),
        ({"inputs": [IMAGE | {"shape": [5, 2, 1, 1]}]}, "at most 4 images, this one 5"),
        ({"inputs": [IMAGE | {"shape": "x" * 5000}]}, "has the shape"),
        ({"inputs": [IMAGE | {"data": [1]}]}, "has 2 values, not the 1"),
        ({"inputs": [IMAGE | {"data": [[1, 2]]}]}, "nested lists"),
        ({"inputs": [IMAGE | {"data": [[[[1]], [2]]]}]}, "nested lists"),
        ({"inputs": [IMAGE | {"data": "ab"}]}, "is no list"),
        ({"inputs": [IMAGE | {"data": [1, 256]}]}, "outside the range of UINT8"),
        ({"inputs": [IMAGE | {"data": [1, -1]}]}, "outside the range of UINT8"),
        ({"inputs": [IMAGE | {"data": [1, 10**30]}]}, "outside the range of UINT8"),
        ({"inputs": [IMAGE | {"data": [1, 2.0]}]}, "type float, which is no UINT8"),
        ({"inputs": [IMAGE | {"data": [1, True]}]}, "type bool"),
        ({"inputs": [IMAGE | {"data": [1, "2"]}]}, "type str"),
        ({"inputs": [IMAGE | {"data": [1, None]}]}, "type NoneType"),
        ({"inputs": [{k: v for k, v in IMAGE.items() if k != "data"}]}, "either `data` or"),
        ({"inputs": [IMAGE | {"parameters": {"binary_data_size": 2}}]}, "either `data` or"),
        ({"inputs": [IMAGE | {"parameters": []}]}, "no object"),
        ({"inputs": [IMAGE | {"parameters": {"shared_memory_region": "x"}}]}, "shared memory"),
        ({"inputs": [IMAGE], "id": 3}, "`id` is no text"),
        ({"inputs": [IMAGE], "parameters": 3}, "no object"),
        ({"inputs": [IMAGE], "parameters": {"binary_data_output": 1}}, "neither true nor false"),
        ({"inputs": [IMAGE], "outputs": {}}, "no list of objects"),
        ({"inputs": [IMAGE], "outputs": [{"name": "logit"}]}, "output 'logit' is unknown"),
        ({"inputs": [IMAGE], "outputs": [{"name": "logits"}, {"name": "logits"}]}, "there twice"),
        ({"inputs": [IMAGE], "outputs": [{"name": "logits", "parameters": {"classification": 2}}]}, "classification"),
    ],
)
def test_what_is_wrong_is_told_in_one_sentence(content, sentence):
    with pytest.raises(ProtocolError) as told:
        parse(content)
    assert sentence in str(told.value)
    assert len(str(told.value)) < 700
    assert "\n" not in str(told.value)
    assert told.value.status == 400


RAW = b'{"inputs":[{"name":"image","datatype":"UINT8","shape":[1,2,1,1],"parameters":{"binary_data_size":%d}}]}'


@pytest.mark.parametrize(
    ("size", "tail", "header_length", "sentence"),
    [
        (2, b"a", None, "announces 2 raw bytes, but only 1 follow"),
        (2, b"", None, "only 0 follow"),
        (2, b"abc", None, "1 raw bytes follow the JSON that no input claims"),
        (3, b"abc", None, "has 2 bytes, not the 3"),
        (-1, b"", None, "no number of bytes"),
        (2, b"ab", "5000", "but the whole body has"),
        (2, b"ab", "-1", "no number of bytes"),
        (2, b"ab", "1e2", "no number of bytes"),
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


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_no_raw_float_but_finite_ones(value):
    head = b'{"inputs":[{"name":"image","datatype":"FP32","shape":[1,2],"parameters":{"binary_data_size":8}}]}'
    with pytest.raises(ProtocolError, match="NaN or infinity"):
        parse(head + struct.pack("<2f", 1.0, value), str(len(head)), inputs=FLOATS)


@pytest.mark.parametrize("number", ["1e999", "1e39", "-1e39"])
def test_no_json_float_beyond_float32(number):
    body = json.dumps(floats([1, 0])).replace(" 0]", f" {number}]").encode()
    with pytest.raises(ProtocolError, match="NaN or infinity"):
        parse(body, inputs=FLOATS)


def test_an_integer_is_a_float_too_unless_it_is_too_large_for_any():
    assert parse(floats([1, -2.5]), inputs=FLOATS).inputs["image"].tolist() == [[1.0, -2.5]]
    with pytest.raises(ProtocolError, match=r"outside the range of FP32|NaN or infinity"):
        parse(floats([1, 10**400]), inputs=FLOATS)


def test_truth_values_are_a_datatype_of_their_own():
    spec = (TensorSpec("image", "BOOL", (-1, 2)),)
    given_ = {"inputs": [{"name": "image", "datatype": "BOOL", "shape": [1, 2], "data": [True, False]}]}
    assert parse(given_, inputs=spec).inputs["image"].tolist() == [[True, False]]
    with pytest.raises(ProtocolError, match="neither 0 nor 1"):
        parse(b"\x01\x02", "0", inputs=spec)


@settings(deadline=None)
@given(st.sampled_from(sorted(DATATYPES)), st.integers(1, 3), st.integers(1, 3), st.booleans(), st.randoms())
def test_what_is_sent_is_what_arrives(datatype, batch, width, raw, random):
    dtype = DATATYPES[datatype]
    count = batch * width
    if dtype.kind == "b":
        values = [random.random() < 0.5 for _ in range(count)]
    elif dtype.kind == "f":
        values = [float(np.array(random.uniform(-6e4, 6e4), dtype)) for _ in range(count)]
    else:
        values = [random.randint(int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)) for _ in range(count)]
    array = np.array(values, dtype).reshape(batch, width)
    entry = {"name": "image", "datatype": datatype, "shape": [batch, width]}
    spec = (TensorSpec("image", datatype, (-1, width)),)
    if raw:
        head = json.dumps({"inputs": [entry | {"parameters": {"binary_data_size": array.nbytes}}]}).encode()
        found = parse(head + array.tobytes(), str(len(head)), inputs=spec)
    else:
        found = parse({"inputs": [entry | {"data": values}]}, inputs=spec)
    assert np.array_equal(found.inputs["image"], array)
    assert found.inputs["image"].dtype == dtype


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
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


def answer_to(body: bytes, header_length: str | None, inputs: tuple) -> InferRequest | ProtocolError:
    """What the parser makes of it; nothing else is let through."""
    try:
        return parse(body, header_length, inputs=inputs)
    except ProtocolError as error:
        return error


def request_or_sentence(found: InferRequest | ProtocolError, inputs: tuple) -> bool:
    """Whether that is tensors the model can take, or a sentence a client can be sent."""
    if isinstance(found, ProtocolError):
        sent = json.dumps({"error": str(found)}).encode()
        return 0 < len(str(found)) < 2000 and 400 <= found.status < 500 and bool(sent)
    array = found.inputs["image"]
    logits = {"logits": np.zeros((len(array), 2), np.float32)}
    reply, _ = encode_response(logits, LOGITS, found, model_name="m", model_version="1")
    fits = array.shape[1:] == inputs[0].shape[1:] and 1 <= len(array) <= 4
    return fits and bool(np.isfinite(array).all()) and bool(reply)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(REQUESTS, st.binary(max_size=12), st.none() | st.integers(-2, 2) | st.text(max_size=4), st.integers(0, 40))
def test_whatever_json_comes(content, tail, shift, cut):
    head = json.dumps(content).encode()
    length = None if shift is None else shift if isinstance(shift, str) else str(len(head) + shift)
    body = head + (tail if shift is not None else b"")
    body = body[: len(body) - cut] if cut < 10 else body
    for inputs in (PIXELS, FLOATS):
        assert request_or_sentence(answer_to(body, length, inputs), inputs)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=64), st.none() | st.text(max_size=4) | st.integers(0, 64).map(str))
def test_whatever_bytes_come(body, header_length):
    for inputs in (PIXELS, FLOATS):
        assert request_or_sentence(answer_to(body, header_length, inputs), inputs)
