import copy

import pytest
import torch
from torch import nn

from gkd_core.errors import GkdError
from gkd_core.models.registry import FAMILIES, create_classifier, model_names

# Counted on the networks that RepDistiller's own code builds (github.com/HobbitLong/RepDistiller, models/*.py at
# commits eedab9d and b13aecc: resnet.py, wrn.py, vgg.py `*_bn`, mobilenetv2.py `mobile_half`, ShuffleNetv2.py
# `ShuffleV2`) for RGB images and 100 classes.
PARAMETERS = {
    "resnet8": 83_892,
    "resnet14": 181_108,
    "resnet20": 278_324,
    "resnet32": 472_756,
    "resnet44": 667_188,
    "resnet56": 861_620,
    "resnet110": 1_736_564,
    "resnet8x4": 1_233_540,
    "resnet32x4": 7_433_860,
    "wrn_16_1": 180_916,
    "wrn_16_2": 703_284,
    "wrn_40_1": 569_780,
    "wrn_40_2": 2_255_156,
    "vgg8": 3_965_028,
    "vgg11": 9_277_284,
    "vgg13": 9_462_180,
    "vgg16": 14_774_436,
    "vgg19": 20_086_692,
    "MobileNetV2": 812_836,
    "ShuffleNetV2": 1_355_528,
}
# Millions, as the papers print them (Tian et al. 2020, arXiv:1910.10699, and those that follow it).
PUBLISHED_MILLIONS = {
    "resnet20": 0.28,
    "resnet56": 0.86,
    "resnet110": 1.74,
    "resnet8x4": 1.23,
    "resnet32x4": 7.43,
    "wrn_40_2": 2.26,
    "wrn_16_2": 0.70,
    "vgg13": 9.46,
    "vgg8": 3.97,
    "MobileNetV2": 0.81,
    "ShuffleNetV2": 1.36,
}
# The maps between stem and pooling of the same code at 32×32 (its `feats[1:-1]`); the last one of MobileNetV2 and
# ShuffleNetV2 is what the head pools.
STAGES = {
    "resnet8": [(16, 32, 32), (32, 16, 16), (64, 8, 8)],
    "resnet110": [(16, 32, 32), (32, 16, 16), (64, 8, 8)],
    "resnet8x4": [(64, 32, 32), (128, 16, 16), (256, 8, 8)],
    "wrn_16_1": [(16, 32, 32), (32, 16, 16), (64, 8, 8)],
    "wrn_40_2": [(32, 32, 32), (64, 16, 16), (128, 8, 8)],
    "vgg8": [(128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 4, 4)],
    "vgg13": [(128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 4, 4)],
    "MobileNetV2": [(12, 16, 16), (16, 8, 8), (48, 4, 4), (1280, 2, 2)],
    "ShuffleNetV2": [(116, 16, 16), (232, 8, 8), (1024, 4, 4)],
}
CIFAR = [name for names in FAMILIES.values() for name in names]
ONE_OF_EACH = ["resnet8", "wrn_16_1", "vgg8", "MobileNetV2", "ShuffleNetV2"]


def test_the_table_covers_every_family():
    assert set(CIFAR) == set(PARAMETERS)


@pytest.mark.parametrize("name", CIFAR)
def test_parameters_equal_the_benchmark_s(name):
    with torch.device("meta"):
        network = create_classifier(name, 100)
    count = sum(p.numel() for p in network.parameters())
    assert count == PARAMETERS[name]
    if name in PUBLISHED_MILLIONS:
        assert round(count / 1e6, 2) == PUBLISHED_MILLIONS[name]


@pytest.mark.parametrize("name", STAGES)
def test_stages_at_32_pixels(name):
    with torch.device("meta"):
        output = create_classifier(name, 100)(torch.empty(2, 3, 32, 32))
    assert [tuple(stage.shape[1:]) for stage in output.stages] == STAGES[name]


@pytest.mark.parametrize("name", ONE_OF_EACH)
@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 28), (3, 64)])
def test_head_on_the_last_stage_is_the_network_at_every_size(name, channels, size):
    network = create_classifier(name, 7, in_channels=channels, image_size=size)
    images = torch.randn(3, channels, size, size)
    network(images)  # batch-norm statistics that are not those of a fresh network
    network.eval()
    output = network(images)
    assert output.logits.shape == (3, 7)
    assert torch.equal(network.head(output.stages[-1]), output.logits)
    assert output.embedding.shape == (3, output.stages[-1].shape[1])
    layer = network.pooled_linear
    assert layer is not None
    torch.testing.assert_close(output.stages[-1].mean((2, 3)) @ layer.weight.T + layer.bias, output.logits)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_last_stage_is_activated_and_never_overwritten(name):
    """An in-place layer further on would change a stage after it was given out."""
    network = create_classifier(name, 5).train()
    taken = []
    for module in network.modules():
        if module is not network:
            module.register_forward_hook(lambda _, __, out: taken.append((out, out.clone())))
    output = network(torch.randn(2, 3, 32, 32))
    assert output.stages[-1].min() == 0
    assert all(torch.equal(now, then) for now, then in taken)


def test_wide_resnet_s_last_stage_is_after_the_final_norm():
    network = create_classifier("wrn_16_1", 5).eval()
    nn.init.constant_(network.bn1.bias, -100.0)  # everything below zero: the ReLU leaves nothing
    assert network(torch.randn(2, 3, 8, 8)).stages[-1].abs().max() == 0


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_every_parameter_learns_on_tiny_images(name):
    """At 8×8 no part of the network is cut off, nor does batch norm meet a single value."""
    network = create_classifier(name, 4, in_channels=1, image_size=8)
    network(torch.randn(4, 1, 8, 8)).logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    assert network.pooled_linear.weight.grad.abs().max() > 0


def test_vgg_halves_once_more_from_64_pixels_on():
    with torch.device("meta"):
        sizes = {
            s: create_classifier("vgg8", 5, image_size=s)(torch.empty(2, 3, s, s)).stages[-1].shape[-1]
            for s in (32, 64)
        }
    assert sizes == {32: 4, 64: 4}


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_same_seed_same_weights_and_no_state_shared(name):
    torch.manual_seed(5)
    first = create_classifier(name, 5)
    torch.manual_seed(5)
    second = create_classifier(name, 5)
    before = copy.deepcopy(second.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), before.values(), strict=True))
    first(torch.randn(2, 3, 32, 32))  # moves the first one's batch-norm statistics
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.fill_(1.0)
    assert all(torch.equal(a, b) for a, b in zip(second.state_dict().values(), before.values(), strict=True))


def test_weights_are_drawn_as_in_the_benchmark():
    """Kaiming normal by fan-out for convolutions; the linear layers as the code named above leaves them."""
    torch.manual_seed(0)
    for name, linear_std in [("resnet32x4", None), ("wrn_40_2", None), ("vgg13", 0.01), ("MobileNetV2", 0.01)]:
        network = create_classifier(name, 100)
        for module in network.modules():
            if isinstance(module, nn.Conv2d) and module.weight.numel() > 10_000:
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
        if linear_std is not None:
            assert network.pooled_linear.weight.std().item() == pytest.approx(linear_std, rel=0.05)
            assert network.pooled_linear.bias.abs().max() == 0


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("resnet8X4", "resnet8x4"),
        ("wrn-40-2", "wrn_40_2"),
        ("mobilenet_v22", "mobilenet_v2"),
        ("ShuffleNet2", "ShuffleNetV2"),
    ],
)
def test_an_unknown_network_gets_the_nearest_name(name, near):
    with pytest.raises(GkdError, match=f"network '{name}' is unknown; did you mean '{near}'"):
        create_classifier(name, 10)


def test_an_unknown_stem_is_refused():
    with pytest.raises(GkdError, match="stem 'cifr' is unknown; did you mean 'cifar'"):
        create_classifier("resnet8", 10, stem="cifr")


def test_a_cifar_network_has_no_imagenet_stem():
    with pytest.raises(GkdError, match=r"vgg13 is a CIFAR network.*torchvision:vgg13"):
        create_classifier("vgg13", 10, stem="imagenet")


def test_names_are_unique_and_torchvision_s_own_stay_reachable():
    names = model_names()
    assert len(set(names)) == len(names)
    assert {"vgg13", "torchvision:vgg13", "vgg13_bn", "MobileNetV2", "mobilenet_v2", "resnet18"} <= set(names)
    with torch.device("meta"):
        assert not any(isinstance(m, nn.BatchNorm2d) for m in create_classifier("torchvision:vgg11", 10).modules())
        assert type(create_classifier("torchvision:resnet18", 10)) is type(create_classifier("resnet18", 10))
