from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, save
from torch import nn

from gkd_core.errors import GkdError
from gkd_core.evaluation.cost import hardware, measure_latency, multiply_accumulates, parameter_count


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.linear = nn.Linear(4, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.linear(self.norm(self.conv(images)).relu().mean((2, 3)))


def test_cost_by_hand() -> None:
    network = Small().train()
    # 3·4·3·3 + (4 + 4) + (4·10 + 10)
    assert parameter_count(network) == 108 + 8 + 50
    # 8·8 positions × 3·3·3 inputs × 4 outputs, then 4 × 10
    assert multiply_accumulates(network, channels=3, image_size=8) == 64 * 27 * 4 + 40
    assert network.training
    assert network.norm.num_batches_tracked == 0


def doubling_model(path: Path, kind: int, shape: list[int | str]) -> Path:
    graph = helper.make_graph(
        [helper.make_node("Add", ["image", "image"], ["logits"])],
        "double",
        [helper.make_tensor_value_info("image", kind, shape)],
        [helper.make_tensor_value_info("logits", kind, shape)],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    return path


def test_every_model_is_timed_in_either_input_form(tmp_path: Path) -> None:
    models = {
        "pixels": doubling_model(tmp_path / "a.onnx", TensorProto.UINT8, ["n", 4, 6, 1]),
        "floats": doubling_model(tmp_path / "b.onnx", TensorProto.FLOAT, ["n", 1, 4, 6]),
    }
    found = measure_latency(models, np.zeros((1, 4, 6, 1), np.uint8), runs=12, threads=2)
    assert set(found) == {"pixels", "floats"}
    for times in found.values():
        assert 0 < times["latency_ms_p50"] <= times["latency_ms_p95"]


def test_a_model_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(GkdError, match="does not exist"):
        measure_latency({"x": tmp_path / "x.onnx"}, np.zeros((1, 4, 4, 1), np.uint8), runs=10, threads=1)


def test_the_hardware_is_named() -> None:
    facts = hardware()
    assert facts["processor"]
    assert int(facts["cores"]) >= 1
