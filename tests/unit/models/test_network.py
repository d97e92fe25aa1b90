import json

import pytest
import torch
from torch import nn
from torch.nn import functional

from gkd_core.errors import GkdError
from gkd_core.models.network import Network, NetworkSpec, load_network, save_network

SPEC = NetworkSpec(
    name="resnet8",
    stem="auto",
    classes=("cat", "dog", "frog"),
    in_channels=3,
    image_size=8,
    mean=(0.5, 0.25, 0.0),
    std=(0.5, 0.25, 2.0),
)
GREY = NetworkSpec("resnet8", "auto", ("cat", "dog", "frog"), 1, 8, (0.1,), (0.2,))


@pytest.fixture
def network() -> Network:
    network = Network(SPEC)
    network(torch.rand(4, 3, 8, 8))  # batch-norm statistics that are not those of a fresh network
    return network.eval()


def test_it_comes_back_from_its_folder_as_it_was(network, tmp_path):
    save_network(network, tmp_path)
    twin = load_network(tmp_path).eval()
    images = torch.rand(4, 3, 8, 8)
    assert twin.spec == SPEC
    assert torch.equal(twin(images).logits, network(images).logits)


def test_the_same_weights_give_the_same_bytes(network, tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    save_network(network, tmp_path / "a")
    save_network(network, tmp_path / "b")
    save_network(load_network(tmp_path / "a"), tmp_path / "c")
    for file in ("model.json", "model.safetensors"):
        first, *others = [(tmp_path / name / file).read_bytes() for name in ("a", "b", "c")]
        assert all(other == first for other in others)


def test_model_json_says_all_that_is_needed(network, tmp_path):
    save_network(network, tmp_path)
    assert json.loads((tmp_path / "model.json").read_text()) == {
        "name": "resnet8",
        "stem": "auto",
        "classes": ["cat", "dog", "frog"],
        "in_channels": 3,
        "image_size": 8,
        "mean": [0.5, 0.25, 0.0],
        "std": [0.5, 0.25, 2.0],
    }


def test_a_missing_folder_is_one_sentence(tmp_path):
    with pytest.raises(GkdError, match=r"has no model\.json: run the step that makes it"):
        load_network(tmp_path / "nowhere")


def test_missing_weights_are_one_sentence(network, tmp_path):
    save_network(network, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(GkdError, match=r"has no model\.safetensors"):
        load_network(tmp_path)


@pytest.mark.parametrize("kept", [0, 4, 100, 5000])
def test_truncated_weights_are_one_sentence(network, tmp_path, kept):
    save_network(network, tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(GkdError, match="damaged or does not fit resnet8"):
        load_network(tmp_path)


@pytest.mark.parametrize("content", ["[]", "3", '{"name": "resnet8"}', '{"depth": 8}'])
def test_a_model_json_of_something_else_is_one_sentence(network, tmp_path, content):
    save_network(network, tmp_path)
    (tmp_path / "model.json").write_text(content)
    with pytest.raises(GkdError, match=r"holds no JSON object|lacks '(name|stem)'"):
        load_network(tmp_path)


def test_weights_of_another_network_are_refused(network, tmp_path):
    save_network(network, tmp_path)
    content = json.loads((tmp_path / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps(content | {"name": "resnet14"}))
    with pytest.raises(GkdError, match="does not fit resnet14"):
        load_network(tmp_path)


def test_colour_is_normalised_channel_by_channel(network):
    images = torch.full((1, 3, 8, 8), 0.75)
    # (.75 − .5) / .5, (.75 − .25) / .25, (.75 − 0) / 2
    expected = torch.tensor([0.5, 2.0, 0.375]).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    torch.testing.assert_close(network.preprocess(images), expected)


def test_a_grey_image_is_repeated_for_a_colour_network(network):
    images = torch.full((1, 1, 8, 8), 0.75)
    expected = torch.tensor([0.5, 2.0, 0.375]).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    torch.testing.assert_close(network.preprocess(images), expected)


def test_a_colour_image_becomes_luma_for_a_grey_network():
    images = torch.tensor([1.0, 0.5, 0.25]).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    # .299·1 + .587·.5 + .114·.25 = .621; (.621 − .1) / .2 = 2.605
    torch.testing.assert_close(Network(GREY).preprocess(images), torch.full((1, 1, 8, 8), 2.605))


def test_another_size_is_resampled(network):
    """Halving 16 → 8 with antialiasing: constant and linear images stay so, away from the border."""
    ramp = (torch.arange(16) + 0.5).div(16).expand(1, 3, 16, 16)
    sampled = network.preprocess(ramp) * network.std + network.mean
    expected = (torch.arange(8) + 0.5).div(8).expand(1, 3, 8, 8)
    torch.testing.assert_close(sampled[..., 1:-1], expected[..., 1:-1])
    assert network.preprocess(torch.rand(1, 3, 5, 7)).shape == (1, 3, 8, 8)


def test_images_of_the_right_size_are_not_touched_by_resampling(network):
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(network.preprocess(images), (images - network.mean) / network.std)


def test_classes_are_selected_and_reordered_by_name(network):
    images = torch.rand(4, 3, 8, 8)
    own = network(images)
    network.select_classes(("frog", "cat"))
    assert network.num_classes == 2
    chosen = network(images)
    assert torch.equal(chosen.logits, own.logits[:, [2, 0]])
    assert torch.equal(network.head(chosen.stages[-1]), chosen.logits)
    weight, bias = network.pooled_linear_weight()
    torch.testing.assert_close(functional.linear(chosen.embedding, weight, bias), chosen.logits)
    network.select_classes(None)
    assert torch.equal(network(images).logits, own.logits)


def test_selected_classes_are_not_kept_in_the_folder(network, tmp_path):
    """The folder holds the network with all of its classes; who loads it says which are wanted."""
    network.select_classes(("frog", "cat"))
    save_network(network, tmp_path)
    assert load_network(tmp_path).classes == ("cat", "dog", "frog")
    assert load_network(tmp_path, ("dog",)).classes == ("dog",)


def test_a_class_it_does_not_know_is_one_sentence(network):
    with pytest.raises(GkdError, match=r"has 3 classes, and of the data's 2 it does not know 'horse': train"):
        network.select_classes(("cat", "horse"))
    assert network.classes == SPEC.classes  # as before


def test_another_spelling_is_pointed_out(network):
    with pytest.raises(GkdError, match=r"does not know 'Cat', 'ship' \(it has 'cat', not 'Cat'\)"):
        network.select_classes(("Cat", "ship"))


def test_stage_shapes_leave_modes_and_statistics_alone(network):
    network.train()
    network.classifier.layer1.eval()
    modes = [module.training for module in network.modules()]
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert network.stage_shapes() == ((16, 8, 8), (32, 4, 4), (64, 2, 2))
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_two_networks_share_nothing(network):
    other = Network(SPEC).eval()
    other.classifier.load_state_dict(network.classifier.state_dict())
    images = torch.rand(2, 3, 8, 8)
    before = other(images).logits
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    network.train()(images)
    network.select_classes(("dog",))
    assert not other.training
    assert torch.equal(other(images).logits, before)
    tensors = {id(tensor) for tensor in (*network.parameters(), *network.buffers())}
    assert not any(id(tensor) in tensors for tensor in (*other.parameters(), *other.buffers()))


def test_buffers_of_preprocessing_are_no_weights(network):
    """They come from model.json; a second copy among the weights could contradict it."""
    assert set(network.state_dict()) == {f"classifier.{name}" for name in network.classifier.state_dict()}


def test_a_head_without_closed_form_says_so():
    network = Network(NetworkSpec("squeezenet1_1", "auto", ("a", "b"), 3, 32, (0.5,) * 3, (0.5,) * 3))
    assert network.pooled_linear_weight() is None
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
