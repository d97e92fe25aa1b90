from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, save
from torch import nn

from gkd_core.errors import GkdError
from gkd_core.evaluation.cost import hardware, measure_latency, parameter_count
from gkd_core.models.create import create_model
from gkd_core.models.macs import multiply_accumulates


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


class Attention(nn.Module):
    """torch's own layer, which computes in one operator when nothing is to be learned."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = images.flatten(2).transpose(1, 2)
        return self.attention(tokens, tokens, tokens, need_weights=False)[0]


def test_attention_is_counted_by_hand() -> None:
    fast = torch.backends.mha.get_fastpath_enabled()
    # 16 tokens × 8 × (24 + 8) for queries, keys, values and output; 16 × 16 × 8 for the scores, as many to use them
    assert multiply_accumulates(Attention(), channels=8, image_size=4) == 16 * 8 * 32 + 2 * 16 * 16 * 8
    assert torch.backends.mha.get_fastpath_enabled() == fast


@pytest.mark.parametrize(
    ("name", "millions"), [("timm:vit_tiny_patch16_224", 1260), ("timm:tf_efficientnet_lite0", 407)]
)
def test_networks_of_timm_cost_what_their_authors_say(name: str, millions: int) -> None:
    """1.26 and 0.41 thousand millions, in timm's table of results (vit_tiny) and the authors' own (lite0)."""
    network = create_model(name, classes=[str(i) for i in range(1000)], image_size=224)
    assert multiply_accumulates(network, channels=3, image_size=224) / 1e6 == pytest.approx(millions, rel=0.06)


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
