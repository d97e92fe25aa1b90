"""Modules of any make as networks: torchvision's, checked by their own forward pass, and one of one's own."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from gkd_core.data.load import load_data
from gkd_core.errors import GkdError
from gkd_core.models.create import create_model, wrap
from gkd_core.models.network import Network, load_network, save_network
from gkd_core.models.weights import load_model
from gkd_core.training.trainer import distill, train

CLASSES = ("cat", "dog", "frog")
SIZE = 64


def torchvision(name: str) -> nn.Module:
    torch.manual_seed(0)
    return models.get_model(name, weights=None, num_classes=3)


def wrapped(name: str = "resnet18", stages: tuple[str, ...] = ("layer1", "layer4"), head: str = "fc") -> Network:
    return wrap(torchvision(name), stages, head, classes=CLASSES, image_size=SIZE).eval()


class Own(nn.Module):
    """Two convolutions, an addition in place that skips the second, an average and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.out = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        skip = x
        x = self.second(x)
        x += skip
        if x.shape[0] == 0:  # what symbolic tracing would stumble over
            return x.new_zeros(0, 3)
        return self.out(x.mean((2, 3)))


NETWORKS = {
    "resnet18": (["layer1", "layer4"], "fc", True),
    "shufflenet_v2_x0_5": (["stage2", "conv5"], "fc", True),
    "densenet121": (["features.denseblock1", "features.denseblock4"], "classifier", False),
    "mobilenet_v3_small": (["features.3", "features.12"], "classifier.3", False),
    "squeezenet1_1": (["features.5", "features.12"], "classifier.1", False),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_torchvision_s_networks_keep_their_logits_and_give_stages_and_a_head(name):
    stages, head, pooled = NETWORKS[name]
    network = wrapped(name, tuple(stages), head)
    images = torch.rand(3, 3, SIZE, SIZE)
    output = network(images)
    assert torch.equal(output.logits, torchvision(name).eval()(network.preprocess(images)))
    assert [stage.shape[1:] for stage in output.stages] == [torch.Size(shape) for shape in network.stage_shapes()]
    assert output.embedding.shape == (3, network.embedding_size())
    torch.testing.assert_close(network.head(output.stages[-1]), output.logits)
    assert (network.pooled_linear_weight() is not None) == pooled


def test_a_stage_is_what_the_layer_gives():
    network = wrapped()
    module, images = torchvision("resnet18").eval(), torch.rand(2, 3, SIZE, SIZE)
    x = module.maxpool(module.relu(module.bn1(module.conv1(network.preprocess(images)))))
    assert torch.equal(network(images).stages[0], module.layer1(x))


def test_a_gradient_reaches_the_first_layer_through_stages_and_logits():
    network = wrapped().train()
    output = network(torch.rand(2, 3, SIZE, SIZE))
    (output.logits.sum() + output.stages[0].sum()).backward()
    assert network.classifier.network.conv1.weight.grad.abs().sum() > 0


def test_a_copy_reads_its_own_layers():
    network = wrapped()
    images = torch.rand(2, 3, SIZE, SIZE)
    before = network(images)
    twin = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(2)
    other, after = twin(images), network(images)
    assert not torch.equal(other.stages[0], before.stages[0])
    assert torch.equal(after.stages[0], before.stages[0])
    assert torch.equal(after.embedding, before.embedding)


def test_wrapping_leaves_the_mode_and_torch_s_random_state():
    module = torchvision("resnet18").train()
    module.bn1.eval()
    state = torch.get_rng_state()
    wrap(module, ["layer4"], "fc", classes=CLASSES, image_size=SIZE)
    assert module.training
    assert not module.bn1.training
    assert torch.equal(torch.get_rng_state(), state)


def test_channels_are_what_the_first_convolution_takes():
    network = wrap(Own(), ["first"], "out", classes=CLASSES, image_size=8)
    assert network.spec.in_channels == 1
    assert network(torch.rand(2, 3, 20, 20)).logits.shape == (2, 3)


def test_without_stages_there_are_logits_and_an_embedding():
    network = create_model(Own(), head="out", classes=CLASSES, image_size=8)
    assert network(torch.rand(2, 1, 8, 8)).embedding.shape == (2, 4)
    assert network.stage_shapes() == ()
    with pytest.raises(GkdError, match="no stages"):
        network.head(torch.rand(2, 4, 8, 8))


def test_a_head_that_more_than_the_last_stage_reaches_names_the_layer():
    network = wrapped(stages=("layer1", "layer3.1.conv1"))
    with pytest.raises(GkdError, match=r"layer3\.1\.relu"):
        network.head(network(torch.rand(2, 3, SIZE, SIZE)).stages[-1])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"stages": ["layer9"]}, ["layer9", "layer4"]),
        ({"head": "fcc"}, ["head", "fcc", "fc"]),
        ({"stages": ["fc"]}, ["fc", "[2, 3]"]),
        ({"stages": ["layer1.0.relu"]}, ["layer1.0.relu", "once"]),
        ({"stages": ["layer2", "layer1"]}, ["layer1, layer2"]),
        ({"stages": ["layer3.1.bn2"]}, ["layer3.1.bn2", "overwritten"]),
        ({"classes": ["cat", "dog"]}, ["3 logits", "2 classes"]),
        ({"channels": 1}, ["[2, 1, 64, 64]", "channels"]),
        ({"classes": None}, ["classes"]),
        ({"mean": (0.5,)}, ["mean"]),
    ],
)
def test_what_does_not_fit_is_one_sentence_that_names_it(change, named):
    given = {"stages": ["layer1"], "head": "fc", "classes": CLASSES, "image_size": SIZE}
    with pytest.raises(GkdError) as raised:
        wrap(torchvision("resnet18"), **(given | change))
    assert all(part in str(raised.value) for part in named), str(raised.value)


def test_saved_it_is_weights_that_need_their_module(tmp_path):
    network = wrap(Own(), ["first"], "out", classes=CLASSES, image_size=8).eval()
    save_network(network, tmp_path)
    images = torch.rand(2, 1, 8, 8)
    loaded = load_network(tmp_path, module=Own()).eval()
    assert loaded.spec == network.spec
    assert torch.equal(loaded(images).logits, network(images).logits)
    assert torch.equal(loaded(images).stages[0], network(images).stages[0])
    with pytest.raises(GkdError, match="module="):
        load_network(tmp_path)


def test_a_module_is_refused_for_a_network_that_gkd_knows(tmp_path):
    save_network(create_model("resnet8", classes=CLASSES, image_size=8), tmp_path)
    with pytest.raises(GkdError, match="without a module"):
        load_network(tmp_path, module=Own())


def test_it_exports_like_any_other(tmp_path):
    from gkd_core.export.onnx import parity, write_onnx

    network = wrap(Own(), ["first"], "out", classes=CLASSES, image_size=8).eval()
    write_onnx(network, tmp_path / "m.onnx", classes=CLASSES, channels=1, image_size=8)
    images = torch.randint(256, (7, 8, 8, 1), dtype=torch.uint8).numpy()
    assert parity(network, tmp_path / "m.onnx", images, tolerance=1e-4)["images"] == 7


def plain() -> nn.Module:
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))


def test_it_trains_with_averaged_weights_is_saved_and_teaches(few_digits, tmp_path):
    data = load_data(few_digits)
    teacher = wrap(plain(), ["1", "3"], "6", data=data)
    train(teacher, data, epochs=2, ema_decay=0.5, device="cpu", out=tmp_path / "teacher")
    images = torch.rand(2, 1, 8, 8)
    loaded = load_model(tmp_path / "teacher", module=plain()).eval()
    torch.testing.assert_close(loaded(images).logits, teacher(images).logits)
    student = wrap(plain(), ["1", "3"], "6", data=data)
    result = distill(student, teacher, data, method="gompertz", epochs=1, device="cpu")
    assert {"train_wasserstein", "train_gradient", "train_kd"} <= set(result.history[0])


def test_an_untrained_one_has_weights_of_its_own():
    network = wrap(plain(), ["3"], "6", classes=list("0123456789"), image_size=8)
    weights = [each.classifier.network[0].weight for each in (network, network.sibling(1), network.sibling(1))]
    assert not torch.equal(weights[0], weights[1])
    assert torch.equal(weights[1], weights[2])


def test_weights_that_cannot_be_drawn_anew_are_named():
    module = plain()
    module.scale = nn.Parameter(torch.ones(()))
    network = wrap(nn.Sequential(module), head="0.6", classes=list("0123456789"), image_size=8)
    with pytest.raises(GkdError, match=r"layer '0' .*reset_parameters"):
        network.sibling(1)


def test_peers_of_a_wrapped_network_learn_apart(few_digits):
    data = load_data(few_digits)
    network = wrap(plain(), ["3"], "6", data=data)
    result = distill(network, None, data, method="kd", scheme="mutual", epochs=1, device="cpu")
    assert result.facts["scheme"] == "mutual"
