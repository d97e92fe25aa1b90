"""How deep parameters stand: in order, the head above all, the same rule for every architecture."""

import pytest
import timm
import torch
from torch import nn

from gkd_core.data.topology import FEATURES
from gkd_core.models.create import wrap
from gkd_core.models.depth import parameter_depths
from gkd_core.models.registry import create_classifier


def depths_of(name: str, image_size: int = 32) -> tuple[tuple[str, ...], dict[str, int]]:
    with torch.device("meta"):
        classifier = create_classifier(name, 5, image_size=image_size)
    return classifier.head_layers, classifier.parameter_depths()


def test_the_blocks_of_a_small_resnet_by_hand():
    head, depths = depths_of("resnet14")
    assert head == ("fc",)
    by_depth: dict[int, set[str]] = {}
    for name, depth in depths.items():
        by_depth.setdefault(depth, set()).add(".".join(name.split(".")[: 2 if name.startswith("layer") else 1]))
    blocks = [{f"layer{group}.{block}"} for group in (1, 2, 3) for block in (0, 1)]
    assert [by_depth[depth] for depth in sorted(by_depth)] == [{"conv1", "bn1"}, *blocks, {"fc"}]


@pytest.mark.parametrize(
    ("name", "image_size", "blocks"),
    [
        ("vgg8", 32, 5),  # convolutions, each with its norm
        ("MobileNetV2", 32, 19),  # 17 bottlenecks between two convolutions
        ("ShuffleNetV2", 32, 18),
        ("wrn_16_1", 32, 4),  # a stem and three groups; a group that there are several of is a block
        ("resnet18", 224, 9),
        ("efficientnet_b0", 224, 18),
        ("convnext_tiny", 224, 22),  # a stem, 18 blocks, 3 convolutions between them
        ("densenet121", 224, 62),
        ("inception_v3", 299, 16),
        ("vit_b_32", 224, 13),
        ("swin_t", 224, 16),
    ],
)
def test_blocks_are_counted_from_the_stem_to_the_head(name, image_size, blocks):
    (head,), depths = depths_of(name, image_size)
    assert sorted(set(depths.values())) == list(range(blocks + 1))
    assert list(depths.values()) == sorted(depths.values())  # they are registered in the order they run
    above = {parameter for parameter, depth in depths.items() if depth == blocks}
    assert above == {parameter for parameter in depths if parameter.startswith(f"{head}.")}


def test_a_transformer_s_positions_are_the_stem_s_and_its_last_norm_the_last_block_s():
    _, depths = depths_of("vit_b_32", 224)
    assert depths["network.class_token"] == depths["network.encoder.pos_embedding"] == 0
    assert depths["network.encoder.ln.weight"] == depths["network.encoder.layers.encoder_layer_11.ln_1.weight"] == 12


def test_the_head_of_a_topological_network_has_two_blocks_of_columns():
    classifier = create_classifier("topological:resnet8", 5)
    depths = classifier.parameter_depths()
    head = {name for name, depth in depths.items() if depth == max(depths.values())}
    assert head == {"base.fc.weight", "base.fc.bias", "topology.weight"}
    assert classifier.topology.weight.shape == (5, FEATURES)


def test_the_head_of_a_wrapped_module_is_the_layer_that_was_named():
    class Odd(nn.Module):
        """Its head is not what comes last."""

        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(8, 2)
            self.trunk = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3))

        def forward(self, images):
            return self.head(self.trunk(images).mean((2, 3)))

    depths = wrap(Odd(), head="head", classes=["a", "b"], image_size=8).classifier.parameter_depths()
    assert {name.removeprefix("network."): depth for name, depth in depths.items()} == {
        "head.weight": 2, "head.bias": 2, "trunk.0.weight": 0, "trunk.0.bias": 0, "trunk.1.weight": 0,
        "trunk.1.bias": 0, "trunk.3.weight": 1, "trunk.3.bias": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "head", "blocks"),
    [
        ("vit_tiny_patch16_224", "head", 13),  # a stem and 12 blocks, the last norm with the last of them
        ("swin_tiny_patch4_window7_224", "head.fc", 13),  # likewise, though its blocks lie in four stages
        ("tf_efficientnet_lite0", "classifier", 17),  # a stem, 16 blocks, the last convolution with the last of them
    ],
)
def test_a_network_of_timm_s_has_timm_s_own_groups_and_its_head_above_them(name, head, blocks):
    holder = nn.Module()
    with torch.device("meta"):
        holder.network = timm.create_model(name, num_classes=5)
    depths = parameter_depths(holder, (f"network.{head}",))
    assert list(depths) == [parameter for parameter, _ in holder.named_parameters()]
    assert sorted(set(depths.values())) == list(range(blocks + 1))
    above = {parameter for parameter, depth in depths.items() if depth == blocks}
    assert above == {f"network.{head}.weight", f"network.{head}.bias"}
    assert depths[next(iter(depths))] == 0
