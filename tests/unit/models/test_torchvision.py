import copy

import pytest
import torch
from torch import nn
from torchvision import models
from torchvision.models import regnet

from gkd_core.errors import GkdError
from gkd_core.models import torchvision as torchvision_networks
from gkd_core.models.registry import create_classifier, torchvision_name
from gkd_core.models.torchvision import TorchvisionClassifier

NAMES = models.list_models(module=models)
# One or two of each family, small ones; VGG, whose smallest has 129 million parameters, is put together as AlexNet is.
FAMILIES = [
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "googlenet",
    "inception_v3",
    "mnasnet0_5",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "regnet_y_400mf",
    "resnet18",
    "resnext50_32x4d",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "swin_t",
    "swin_v2_t",
    "vit_b_32",
]


@pytest.fixture
def without_memory(monkeypatch):
    """Everything on the meta device, but for the numbers RegNet's constructor computes its widths with.

    Nor is the image size tried before the test itself does so.
    """
    original = regnet.BlockParams.from_init_params.__func__

    def with_memory(cls, *arguments, **options):
        with torch.device("cpu"):
            return original(cls, *arguments, **options)

    monkeypatch.setattr(regnet.BlockParams, "from_init_params", classmethod(with_memory))
    monkeypatch.setattr(torchvision_networks, "_takes", lambda *_: True)
    with torch.device("meta"):
        yield


@pytest.mark.parametrize(
    "name", [name if name in FAMILIES else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)
def test_every_classification_model_has_our_form(name, without_memory):
    size = 56 if name == "maxvit_t" else 32
    network = create_classifier(torchvision_name(name), 7, in_channels=1, image_size=size).eval()
    output = network(torch.empty(2, 1, size, size))
    assert output.logits.shape == (2, 7)
    assert output.embedding.shape[0] == 2
    assert output.embedding.ndim == 2
    if name.startswith("vit_"):
        width = output.embedding.shape[1]
        assert [tuple(stage.shape) for stage in output.stages] == [(2, width, 8, 8)] * 4
        assert output.tokens.shape == (2, width, 65)
        assert network.head(output.last_stage).shape == (2, 7)
    else:
        assert output.tokens is None
        assert len(output.stages) == (3 if name == "alexnet" else 4)
        assert all(stage.ndim == 4 for stage in output.stages)
        sides = [stage.shape[-1] for stage in output.stages]
        assert sides == sorted(sides, reverse=True)
        if not name.startswith(("vgg", "alexnet", "squeezenet", "inception")):
            # The CIFAR stem: a quarter of ImageNet's 1/32 at the end, one stage at each scale before.
            assert sides == [size, size // 2, size // 4, size // 8]
        assert network.head(output.stages[-1]).shape == (2, 7)
    # What an imported state dict is read by: the last entry belongs to the last layer.
    assert list(network.state_dict().values())[-1].shape[0] == 7


@pytest.mark.parametrize("name", FAMILIES)
def test_it_computes_what_torchvision_computes(name):
    """The same logits, bit for bit, as torchvision's own forward pass with the ImageNet stem; and so does the head."""
    size = 96 if name == "inception_v3" else 64
    ours = create_classifier(torchvision_name(name), 5, image_size=size, stem="imagenet").eval()
    if name.startswith("vit"):
        nn.init.normal_(ours.network.heads.head.weight)  # it starts at zero, and so would all logits
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        output = ours(images)
        assert torch.equal(output.logits, ours.network(images))
        assert torch.equal(ours.head(output.last_stage), output.logits)
        layer = ours.pooled_linear
        if layer is not None:
            pooled = output.stages[-1].mean((2, 3))
            torch.testing.assert_close(pooled @ layer.weight.T + layer.bias, output.logits)


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "shufflenet_v2_x0_5", "regnet_y_400mf", "swin_t"])
def test_a_head_of_pooling_and_one_layer_is_recognised(name, without_memory):
    assert create_classifier(name, 5).pooled_linear is not None


@pytest.mark.parametrize(
    "name", ["vgg11_bn", "alexnet", "mobilenet_v2", "mobilenet_v3_small", "convnext_tiny", "squeezenet1_1"]
)
def test_other_heads_claim_no_closed_form(name, without_memory):
    """More layers, a norm, or dropout stand between pooling and the last layer."""
    assert create_classifier(name, 5).pooled_linear is None


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "googlenet"])
def test_with_the_imagenet_stem_weights_start_as_torchvision_s(name):
    torch.manual_seed(1)
    options = {"init_weights": True, "aux_logits": False} if name == "googlenet" else {}
    theirs = models.get_model(name, num_classes=5, **options).state_dict()
    torch.manual_seed(1)
    ours = create_classifier(name, 5, image_size=64, stem="imagenet").network.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(a, b) for a, b in zip(ours.values(), theirs.values(), strict=True))


def test_the_cifar_stem_of_a_resnet_is_the_usual_one():
    network = create_classifier("resnet18", 5, image_size=64).network
    assert (network.conv1.kernel_size, network.conv1.stride, network.conv1.padding) == ((3, 3), (1, 1), (1, 1))
    assert isinstance(network.maxpool, nn.Identity)
    assert network.layer2[0].conv1.stride == (2, 2)
    fan_out = 9 * 64
    assert network.conv1.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)


def test_auto_takes_the_imagenet_stem_above_64_pixels():
    network = create_classifier("resnet18", 5, image_size=65).network
    assert (network.conv1.kernel_size, network.conv1.stride) == ((7, 7), (2, 2))
    assert isinstance(network.maxpool, nn.MaxPool2d)


def test_the_stages_of_a_resnet_are_its_layers():
    classifier = create_classifier("resnet18", 5).eval()
    seen = []
    for layer in ("layer1", "layer2", "layer3", "layer4"):
        classifier.network.get_submodule(layer).register_forward_hook(lambda _, __, out: seen.append(out))
    stages = classifier(torch.randn(1, 3, 32, 32)).stages
    assert all(stage is out for stage, out in zip(stages, seen, strict=True))


def test_swin_s_stages_have_channels_first(without_memory):
    stages = create_classifier("swin_t", 5).eval()(torch.empty(1, 3, 32, 32)).stages
    assert [tuple(s.shape[1:]) for s in stages] == [(96, 32, 32), (192, 16, 16), (384, 8, 8), (768, 4, 4)]


@pytest.mark.parametrize("name", ["mobilenet_v2", "efficientnet_b0", "squeezenet1_1", "densenet121"])
def test_no_layer_overwrites_what_was_handed_out(name):
    network = create_classifier(name, 5).train()
    taken = []
    for module in network.network.modules():
        module.register_forward_hook(lambda _, __, out: taken.append((out, out.clone())))
    output = network(torch.randn(2, 3, 32, 32))
    when_made = {id(now): then for now, then in taken}  # what the outermost module gave, where several gave one tensor
    known = [stage for stage in output.stages if id(stage) in when_made]
    assert len(known) >= len(output.stages) - 1  # DenseNet's last comes from a function
    assert all(torch.equal(stage, when_made[id(stage)]) for stage in known)


def test_a_copy_stands_on_its_own():
    """An average of weights is a deep copy: nothing in it may point back to the original."""
    network = create_classifier("mobilenet_v3_small", 5).eval()
    twin = copy.deepcopy(network)
    images = torch.randn(1, 3, 32, 32)
    before = network(images).logits
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert torch.equal(twin(images).logits, before)


def test_mnasnet_s_weights_survive_a_format_that_keeps_no_versions():
    network = create_classifier("mnasnet0_5", 5)
    plain = {name: value.clone() for name, value in network.state_dict().items()}
    assert isinstance(network, TorchvisionClassifier)
    twin = create_classifier("mnasnet0_5", 5)
    twin.load_state_dict(plain)
    assert all(torch.equal(a, b) for a, b in zip(twin.state_dict().values(), plain.values(), strict=True))


@pytest.mark.parametrize(
    ("name", "size", "stem", "sentence"),
    [
        ("alexnet", 8, "auto", "alexnet with the cifar stem needs images of at least 15×15 pixels, not 8×8"),
        ("squeezenet1_1", 8, "imagenet", "squeezenet1_1 with the imagenet stem needs images of at least 17×17 pixels"),
        ("maxvit_t", 32, "auto", "a multiple of 56 pixels, not 32"),
        ("vit_b_16", 100, "imagenet", "a multiple of 16 pixels, not 100"),
    ],
)
def test_images_too_small_are_refused_with_a_size_that_works(name, size, stem, sentence):
    with pytest.raises(GkdError, match=sentence):
        create_classifier(name, 5, image_size=size, stem=stem)


@pytest.mark.parametrize("name", ["resnet18", "torchvision:vgg11", "mobilenet_v2", "efficientnet_b0", "vit_b_16"])
def test_the_usual_ones_take_digits(name, without_memory):
    output = create_classifier(name, 10, in_channels=1, image_size=8)(torch.empty(2, 1, 8, 8))
    assert output.logits.shape == (2, 10)


def test_a_vision_transformer_s_stages_are_its_patches_as_a_grid():
    """At four depths, row by row; the last after the final norm, as the tokens are."""
    ours = create_classifier("vit_b_32", 5, image_size=96, stem="imagenet").eval()
    seen = []
    for depth in (2, 5, 8, 11):
        ours.network.encoder.layers[depth].register_forward_hook(lambda _, __, out: seen.append(out))
    with torch.no_grad():
        output = ours(torch.randn(1, 3, 96, 96))
        seen[-1] = ours.network.encoder.ln(seen[-1])
    for stage, tokens in zip(output.stages, seen, strict=True):
        assert stage.shape == (1, 768, 3, 3)
        assert torch.equal(stage[0, :, 1, 2], tokens[0, 1 + 1 * 3 + 2])
    assert torch.equal(output.tokens[0, :, 0], output.embedding[0])
    assert torch.equal(output.tokens[:, :, 1:].unflatten(2, (3, 3)), output.stages[-1])


@pytest.mark.parametrize(("size", "patches"), [(8, 64), (28, 196), (32, 64), (31, 961), (64, 64)])
def test_vision_transformer_patches_follow_the_image(size, patches, without_memory):
    network = create_classifier("vit_b_16", 5, image_size=size, stem="cifar").network
    assert network.encoder.pos_embedding.shape[1] == patches + 1
