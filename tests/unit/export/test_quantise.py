import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits

from gkd_core.errors import GkdError
from gkd_core.export.half import to_half
from gkd_core.export.onnx import InputForm, write_onnx
from gkd_core.export.quantise import Quantiser, _by_added_noise, _first_convolutions, quantise, stratified_pick
from gkd_core.export.session import run_session, session
from gkd_core.export.strip import strip
from gkd_core.files import file_digest
from gkd_core.models.network import Network, NetworkSpec

DIGITS = tuple(f"digit {i}" for i in range(10))
AGAIN = """
import sys
from pathlib import Path
import numpy as np
from gkd_core.export.half import to_half
from gkd_core.export.quantise import quantise
source, images, out = sys.argv[1:]
quantise(Path(source), Path(out) / "int8.onnx", np.load(images))
to_half(Path(source), Path(out) / "fp16.onnx")
"""


def make(path: Path, input_form: InputForm = "uint8_nhwc", **changes: object) -> Path:
    torch.manual_seed(0)
    spec = {"name": "resnet8", "stem": "auto", "classes": DIGITS, "in_channels": 1, "image_size": 8}
    network = Network(NetworkSpec(**{**spec, "mean": (0.3,), "std": (0.3,), **changes}))
    with torch.no_grad():
        network.train()(torch.rand(64, 1, 8, 8))  # running statistics that are not those of initialisation
    facts = {"student_digest": "s" * 64}
    write_onnx(network, path, classes=DIGITS, channels=1, image_size=8, input=input_form, metadata=facts)
    return path


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return (load_digits().images * 255 / 16).astype(np.uint8)[..., None]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("source") / "model.onnx")


@pytest.fixture(scope="module")
def int8(source: Path, images: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("int8") / "model_int8.onnx"
    quantise(source, path, images[:100])
    return path


def weights(path: Path) -> dict[str, np.ndarray]:
    return {entry.name: numpy_helper.to_array(entry) for entry in onnx.load(path).graph.initializer}


def scales(path: Path) -> np.ndarray:
    """Of the activations, in the graph's order."""
    model, known = onnx.load(path), weights(path)
    return np.array([known[node.input[1]] for node in model.graph.node if node.op_type == "QuantizeLinear"])


def ends(path: Path) -> list[tuple[str, int, list[object]]]:
    graph = onnx.load(path).graph
    return [
        (end.name, end.type.tensor_type.elem_type, [d.dim_param or d.dim_value for d in end.type.tensor_type.shape.dim])
        for end in (*graph.input, *graph.output)
    ]


def test_int8_takes_and_gives_what_float32_does_and_tells_where_it_comes_from(source: Path, int8: Path) -> None:
    assert ends(int8) == ends(source)
    model = onnx.load(int8)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
    facts = {entry.key: entry.value for entry in model.metadata_props}
    original = {entry.key: entry.value for entry in onnx.load(source).metadata_props}
    assert facts == original | {"precision": "int8", "fp32_sha256": file_digest(source)}
    assert int8.stat().st_size < 0.4 * source.stat().st_size
    assert not any(node.op_type.startswith("Dynamic") for node in model.graph.node)
    content = int8.read_bytes()
    for trace in (b"/tmp", b"site-packages", str(Path.cwd()).encode(), b"onnx.quantize"):
        assert trace not in content


def test_weights_are_int8_per_channel_within_half_a_step_of_float32(source: Path, int8: Path) -> None:
    original, found = weights(source), weights(int8)
    convolutions = [node for node in onnx.load(source).graph.node if node.op_type == "Conv"]
    assert convolutions[0].input[1] in found  # the one that sees the pixels stays as it was
    np.testing.assert_array_equal(found[convolutions[0].input[1]], original[convolutions[0].input[1]])
    for node in convolutions[1:]:
        name = node.input[1]
        steps, values = found[f"{name}_scale"], found[f"{name}_quantized"]
        assert values.dtype == np.int8
        assert steps.shape == (original[name].shape[0],)
        assert np.abs(values.astype(int)).max() <= 64  # 7 bits: products of 8 bits overflow CPUs without VNNI
        error = np.abs(values * steps[:, None, None, None] - original[name])
        assert (error <= 0.5001 * steps[:, None, None, None]).all()


def test_both_smaller_files_are_of_the_format_that_older_servers_open(source: Path, int8: Path, tmp_path: Path) -> None:
    to_half(source, tmp_path / "fp16.onnx")
    assert [onnx.load(path).ir_version for path in (source, int8, tmp_path / "fp16.onnx")] == [8, 8, 8]


@pytest.mark.parametrize(("opset", "expected"), [(18, 8), (19, 9), (21, 10)])
def test_the_format_is_the_oldest_that_has_the_operator_set(opset: int, expected: int) -> None:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch"]) for name in ("image", "logits")]
    graph = helper.make_graph([helper.make_node("Neg", ["image"], ["logits"])], "g", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=13)
    strip(model)
    onnx.checker.check_model(model, full_check=True)
    assert model.ir_version == expected


def test_full_range_is_there_for_who_asks(source: Path, images: np.ndarray, tmp_path: Path) -> None:
    quantise(source, tmp_path / "wide.onnx", images[:20], reduce_range=False)
    largest = max(np.abs(v.astype(int)).max() for v in weights(tmp_path / "wide.onnx").values() if v.dtype == np.int8)
    assert largest == 127


def test_the_logits_stay_in_float_and_near(source: Path, int8: Path, images: np.ndarray) -> None:
    expected, found = (run_session(session(path, threads=1), images[:500]) for path in (source, int8))
    assert np.corrcoef(expected.ravel(), found.ravel())[0, 1] > 0.995
    # 256 levels an output would be what a quantised last layer gives.
    assert len(np.unique(found)) > 2000


@pytest.mark.slow
def test_another_process_in_another_folder_writes_the_same_bytes(
    source: Path, int8: Path, images: np.ndarray, tmp_path: Path
) -> None:
    np.save(tmp_path / "images.npy", images[:100])
    to_half(source, tmp_path / "here.onnx")
    out = tmp_path / "elsewhere"
    out.mkdir()
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(Path.cwd()), "TMPDIR": str(out)}
    environment.pop("ORT_DISABLE_TELEMETRY", None)  # gkd sets it by itself: else onnxruntime leaves its mark here
    command = [sys.executable, "-c", AGAIN, str(source), str(tmp_path / "images.npy"), str(out)]
    result = subprocess.run(command, cwd=out, env=environment, capture_output=True, text=True, check=True, timeout=240)
    assert result.stdout == result.stderr == ""
    assert (out / "int8.onnx").read_bytes() == int8.read_bytes()
    assert (out / "fp16.onnx").read_bytes() == (tmp_path / "here.onnx").read_bytes()
    assert {path.name for path in out.iterdir()} == {"int8.onnx", "fp16.onnx"}  # nothing temporary is left


@pytest.mark.parametrize("calibration", ["percentile", "entropy"])
def test_other_calibrations_cut_ranges_that_minmax_keeps(
    calibration: str, source: Path, int8: Path, images: np.ndarray, tmp_path: Path
) -> None:
    quantise(source, tmp_path / "cut.onnx", images[:100], calibration=calibration)  # type: ignore[arg-type]
    whole, cut = scales(int8), scales(tmp_path / "cut.onnx")
    assert whole.shape == cut.shape
    assert (cut <= 1.01 * whole).all()
    assert (cut < 0.99 * whole).any()


def test_ranges_come_from_the_images_given(source: Path, images: np.ndarray, tmp_path: Path) -> None:
    for name, some in (("dark", images[:20] // 8), ("bright", images[:20])):
        quantise(source, tmp_path / f"{name}.onnx", some)
    assert scales(tmp_path / "dark.onnx")[0] < 0.9 * scales(tmp_path / "bright.onnx")[0]
    # Four digits, so that a CPU that rounds the seventh otherwise writes the same file.
    quantise(source, tmp_path / "again.onnx", images[:20])
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "bright.onnx").read_bytes()


def test_floats_with_channels_first_and_another_resolution_work_too(images: np.ndarray, tmp_path: Path) -> None:
    path = make(tmp_path / "model.onnx", "float_nchw", image_size=16)
    quantise(path, tmp_path / "int8.onnx", images[:20])
    to_half(path, tmp_path / "fp16.onnx")
    for name in ("int8", "fp16"):
        assert ends(tmp_path / f"{name}.onnx") == ends(path)
        expected, found = (run_session(session(p), images[:50]) for p in (path, tmp_path / f"{name}.onnx"))
        assert np.corrcoef(expected.ravel(), found.ravel())[0, 1] > 0.99


def test_what_cannot_be_quantised_is_one_sentence(images: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(GkdError, match=r"^model\.onnx cannot be quantised: [^\n]+$"):
        quantise(tmp_path / "model.onnx", tmp_path / "int8.onnx", images[:5])
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_depthwise_convolutions_are_not_taken_for_the_first() -> None:
    def convolution(name: str, shape: tuple[int, ...], group: int) -> tuple[onnx.NodeProto, onnx.TensorProto]:
        node = helper.make_node("Conv", ["x", f"{name}.weight"], ["y"], name=name, group=group)
        return node, numpy_helper.from_array(np.zeros(shape, np.float32), f"{name}.weight")

    made = [convolution("pixels", (8, 3, 3, 3), 1), convolution("depthwise", (8, 1, 3, 3), 8)]
    made.append(convolution("inner", (8, 8, 3, 3), 1))
    graph = helper.make_graph(
        [node for node, _ in made],
        "three",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [weight for _, weight in made],
    )
    assert _first_convolutions(helper.make_model(graph)) == ["pixels"]


def test_layers_stay_in_float_and_activations_are_symmetric_on_request(
    source: Path, int8: Path, images: np.ndarray, tmp_path: Path
) -> None:
    quantiser = Quantiser(source, images[:100])
    quantiser.write(tmp_path / "plain.onnx")
    assert (tmp_path / "plain.onnx").read_bytes() == int8.read_bytes()
    noisiest = quantiser.noisiest()
    graph = onnx.load_from_string(quantiser.prepared).graph
    nodes = {node.name: node for node in graph.node if node.op_type in ("Conv", "Gemm", "MatMul")}
    assert set(noisiest) == set(nodes) - set(_first_convolutions(onnx.load(source)))
    assert quantiser.noisiest() == noisiest

    spared = [name for name in noisiest if nodes[name].op_type == "Conv"][:2]
    quantiser.write(tmp_path / "spared.onnx", in_float=spared)
    original, found = weights(source), weights(tmp_path / "spared.onnx")
    for name in spared:
        weight = nodes[name].input[1]
        np.testing.assert_array_equal(found[weight], original[weight])
    assert sum(value.dtype == np.int8 for value in found.values()) > 0

    quantiser.write(tmp_path / "symmetric.onnx", symmetric=True)
    model, held = onnx.load(tmp_path / "symmetric.onnx"), weights(tmp_path / "symmetric.onnx")
    zeros = [held[node.input[2]] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert zeros
    assert all(zero.dtype == np.int8 and not zero.any() for zero in zeros)


def test_a_layer_is_as_noisy_as_what_it_adds() -> None:
    """By hand: the first adds .1, the second .5 behind its rectifier, the third nothing."""
    names = ["first", "second", "third"]
    nodes, end = [], "x"
    for name in names:
        nodes += [helper.make_node("Conv", [end, f"{name}.weight"], [f"{name}.sum"], name=name)]
        nodes += [helper.make_node("Relu", [f"{name}.sum"], [f"{name}.active"])]
        end = f"{name}.active"
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", end)]
    held = [numpy_helper.from_array(np.zeros((8, 8, 3, 3), np.float32), f"{name}.weight") for name in names]
    model = helper.make_model(helper.make_graph(nodes, "three", ends[:1], ends[1:], held))
    noise = {"first.sum": 0.1, "second.active": 0.6, "third.active": 0.6}
    assert _by_added_noise(model, noise) == ["second", "first", "third"]


def test_calibration_images_are_drawn_in_proportion() -> None:
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    chosen = stratified_pick(labels, 20, seed=0)
    assert np.bincount(labels[chosen]).tolist() == [12, 6, 2]
    assert (np.diff(chosen) > 0).all()
    assert stratified_pick(labels, 20, seed=0).tolist() == chosen.tolist()
    assert stratified_pick(labels, 20, seed=1).tolist() != chosen.tolist()
    assert stratified_pick(labels, 3, seed=0).size == 3
    assert stratified_pick(labels, 1000, seed=0).tolist() == list(range(100))


def test_a_half_keeps_its_ends_and_is_half_the_size(source: Path, images: np.ndarray, tmp_path: Path) -> None:
    to_half(source, tmp_path / "half.onnx")
    assert ends(tmp_path / "half.onnx") == ends(source)
    assert (tmp_path / "half.onnx").stat().st_size < 0.6 * source.stat().st_size
    held = [value for value in weights(tmp_path / "half.onnx").values() if value.ndim == 4]
    assert held
    assert all(value.dtype == np.float16 for value in held)
    facts = {entry.key: entry.value for entry in onnx.load(tmp_path / "half.onnx").metadata_props}
    assert (facts["precision"], facts["fp32_sha256"], facts["student_digest"]) == (
        "fp16",
        file_digest(source),
        "s" * 64,
    )
    expected, found = (run_session(session(path), images[:200]) for path in (source, tmp_path / "half.onnx"))
    np.testing.assert_allclose(found, expected, atol=0.02 * np.abs(expected).max())
    assert b"site-packages" not in (tmp_path / "half.onnx").read_bytes()
