"""The decision inside an ONNX file: it answers as the same decision in numpy does, in every precision."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper

from gkd_core.decision import METADATA, NEVER, OUTPUTS, Decision, Shown, Spread
from gkd_core.export.class_distance import ClassDistance
from gkd_core.export.decision_graph import EMBEDDING, append_decision
from gkd_core.export.half import to_half
from gkd_core.export.onnx import write_onnx
from gkd_core.export.quantise import quantise
from gkd_core.export.session import run_outputs, session
from gkd_core.models.network import Network, NetworkSpec

CLASSES = ("cat", "dog", "newt")
IMAGES = np.random.default_rng(0).integers(256, size=(40, 16, 16, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Files with logits and features, by precision."""
    torch.manual_seed(0)
    network = Network(NetworkSpec("resnet8", "cifar", CLASSES, 3, 16, (0.5,) * 3, (0.25,) * 3)).eval()
    folder = tmp_path_factory.mktemp("plain")
    files = {name: folder / f"{name}.onnx" for name in ("fp32", "int8", "fp16")}
    metadata = {"network": "resnet8"}
    write_onnx(network, files["fp32"], classes=CLASSES, channels=3, image_size=16, metadata=metadata, embedding=True)
    quantise(files["fp32"], files["int8"], IMAGES)
    to_half(files["fp32"], files["fp16"])
    return files


def decided(plain, tmp_path, precision, **given):
    file = tmp_path / "model.onnx"
    file.write_bytes(plain[precision].read_bytes())
    before = run_outputs(session(file), IMAGES, ["logits", EMBEDDING])
    distance = ClassDistance.fit(before[EMBEDDING], np.arange(40) % 3)
    shown = Shown(images=40, coverage=0.5, precision=0.9, nll=1.0, calibrated_nll=0.9)
    decision = Decision(**{"threshold": None, "asked": "coverage", "target": 0.5} | given, validation=shown)
    scores = decision.scores(before["logits"], distance.scores(before[EMBEDDING]))
    found = np.sort(scores)
    middle = float(found[19] + found[20]) / 2
    limits = {"threshold": middle}
    if given.get("thresholds"):
        limits = {"thresholds": (middle, None, -NEVER)}
    decision = decision.model_copy(update=limits)
    append_decision(file, decision, distance, {"fp32_sha256": "d" * 64})
    return file, decision, before, decision.decide(before["logits"], scores)


@pytest.mark.parametrize("precision", ["fp32", "int8", "fp16"])
@pytest.mark.parametrize(
    "given",
    [
        {"score": "max_probability", "temperature": 1.7},
        {"score": "energy", "thresholds": (0.0, None, 0.0)},
        {"score": "feature_distance"},
        {"score": "probability_and_distance", "distance": Spread(mean=-20.0, deviation=2.0), "temperature": 0.6},
    ],
    ids=lambda given: given["score"],
)
def test_the_graph_answers_as_the_decision_does(plain, tmp_path, precision, given):
    file, decision, before, (named, score) = decided(plain, tmp_path, precision, **given)
    model = session(file)
    assert [output.name for output in model.get_outputs()] == ["logits", *OUTPUTS]
    assert [(each.type, each.shape) for each in model.get_outputs()[1:]] == [
        ("tensor(float)", ["batch", 3]),
        ("tensor(float)", ["batch"]),
        ("tensor(int64)", ["batch"]),
    ]
    after = run_outputs(model, IMAGES, ["logits", *OUTPUTS])
    assert np.array_equal(after["logits"], before["logits"])
    assert np.allclose(after["probabilities"], decision.probabilities(before["logits"]), atol=1e-6)
    assert np.allclose(after["score"], score, rtol=1e-4, atol=1e-4)
    assert after["decision"].tolist() == named.tolist()
    assert 0 < (named >= 0).sum() < 40
    alone = [run_outputs(model, image[None], ["decision"])["decision"] for image in IMAGES[:5]]
    assert np.concatenate(alone).tolist() == named[:5].tolist()

    facts = model.get_modelmeta().custom_metadata_map
    assert Decision.read(facts) == decision
    assert (facts["network"], facts["fp32_sha256"]) == ("resnet8", "d" * 64)
    content = onnx.load(file)
    assert content.ir_version <= 8
    assert {entry.domain for entry in content.opset_import} <= {"", "com.microsoft"}


def test_twice_the_same_bytes(plain, tmp_path):
    (tmp_path / "again").mkdir()
    first = decided(plain, tmp_path, "fp32", score="feature_distance")[0].read_bytes()
    assert decided(plain, tmp_path / "again", "fp32", score="feature_distance")[0].read_bytes() == first


def test_a_network_that_uses_the_outputs_names_inside_keeps_its_values(tmp_path):
    image = helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["batch", 2])
    logits = helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 2])
    nodes = [helper.make_node("Neg", ["image"], ["score"]), helper.make_node("Neg", ["score"], ["logits"])]
    graph = helper.make_graph(nodes, "gkd", [image], [logits])
    file = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), file)
    shown = Shown(images=1, coverage=1.0, precision=1.0, nll=1.0, calibrated_nll=1.0)
    decision = Decision(score="energy", threshold=1.0, asked="coverage", target=1.0, validation=shown)
    append_decision(file, decision)
    values = np.array([[0.0, 0.2], [3.0, 1.0]], np.float32)
    found = onnxruntime.InferenceSession(file).run(["logits", "score", "decision"], {"image": values})
    assert np.array_equal(found[0], values)
    assert np.allclose(found[1], np.log(np.exp(values).sum(1)))
    assert found[2].tolist() == [-1, 0]
    assert METADATA in onnx.load(file).metadata_props[0].key
