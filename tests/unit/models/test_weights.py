import logging
import pickle
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torchvision import models

from gkd_core.errors import GkdError
from gkd_core.files import write_json
from gkd_core.models.network import Network, NetworkSpec, save_network
from gkd_core.models.registry import create_classifier
from gkd_core.models.weights import load_model

CLASSES = ("cat", "dog", "frog")


def take(source: Path | str, data_classes: tuple[str, ...] | None = None, **changes) -> Network:
    """The network in `source`, for data with these classes where they are given."""
    described = {
        "name": "resnet8",
        "classes": CLASSES,
        "mean": (0.1, 0.2, 0.3),
        "std": (0.5, 0.6, 0.7),
        "image_size": 8,
        "channels": 3,
    }
    if data_classes is not None:
        info = SimpleNamespace(classes=data_classes, channels=3, image_size=8, mean=(0.5,) * 3, std=(0.5,) * 3)
        described["data"] = SimpleNamespace(info=info)
    return load_model(source, **(described | changes)).eval()


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    network = create_classifier("resnet8", 3, image_size=8)
    network(torch.rand(4, 3, 8, 8))
    return network.state_dict()


def same(network: Network, weights: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, weights[name]) for name, value in network.classifier.state_dict().items())


# --- a folder of ours


def test_a_network_folder_brings_everything_with_it(tmp_path):
    spec = NetworkSpec("wrn_16_1", "auto", ("dog", "cat"), 1, 12, (0.3,), (0.2,))
    network = Network(spec)
    save_network(network, tmp_path)
    taken = take(tmp_path, classes=None)
    assert taken.spec == spec
    assert same(taken, network.classifier.state_dict())


def test_a_teacher_folder_gives_its_network(tmp_path):
    network = Network(NetworkSpec("resnet8", "auto", CLASSES, 3, 8, (0.5,) * 3, (0.5,) * 3))
    (tmp_path / "resnet8").mkdir()
    save_network(network, tmp_path / "resnet8")
    write_json(tmp_path / "teacher.json", {"networks": ["resnet8"], "data_sha256": ""})
    assert same(take(tmp_path, classes=None), network.classifier.state_dict())


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"networks": ["a", "b"]}, r"holds 2 networks \(a, b\)"),
        ({"networks": []}, "a wrong 'networks' .*at least 1 item"),
        ({"networks": ["../a"]}, "a wrong 'networks.0' .*'../a' is no plain name"),
        ({"network": "a"}, "lacks 'networks'"),
        ([], "holds no JSON object"),
    ],
)
def test_a_teacher_folder_without_one_network_is_refused(tmp_path, content, sentence):
    content = {"data_sha256": "", **content} if isinstance(content, dict) else content
    write_json(tmp_path / "teacher.json", content)
    with pytest.raises(GkdError, match=sentence):
        take(tmp_path, classes=None)


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(GkdError, match="holds neither a network"):
        take(tmp_path, classes=None)


def test_classes_for_a_folder_are_refused(tmp_path):
    with pytest.raises(GkdError, match=r"classes describes a state-dict file"):
        take(tmp_path)


# --- a state-dict file


@pytest.mark.parametrize("inside", [None, "state_dict", "model", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod."])
def test_a_state_dict_file_is_read_in_its_usual_forms(tmp_path, weights, inside, prefix):
    state = {prefix + name: value for name, value in weights.items()}
    torch.save(state if inside is None else {"epoch": 3, inside: state}, tmp_path / "w.pth")
    taken = take(tmp_path / "w.pth")
    assert taken.spec == NetworkSpec("resnet8", "auto", CLASSES, 3, 8, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    assert same(taken, weights)


def test_a_safetensors_file_is_read(tmp_path, weights):
    save_file(weights, tmp_path / "w.safetensors")
    assert same(take(tmp_path / "w.safetensors"), weights)


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "mnasnet0_5", "vit_b_32"])
def test_torchvision_s_own_names_fit_torchvision_s_networks(tmp_path, name, monkeypatch):
    monkeypatch.setattr(models.VisionTransformer, "__init__", thin(models.VisionTransformer.__init__))
    options = {"image_size": 64} if name.startswith("vit") else {}
    theirs = models.get_model(name, num_classes=3, **options)
    state = dict(theirs.state_dict())  # a plain dict: without the versions of its modules
    torch.save(state, tmp_path / "w.pt")
    taken = take(tmp_path / "w.pt", name=name, stem="imagenet", image_size=64)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(taken(images).logits, theirs.eval()(taken.preprocess(images)))


def thin(original):
    """The same transformer, narrower and with fewer layers."""

    def init(self, **options):
        original(self, **(options | {"num_layers": 1, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 16}))

    return init


def test_densenet_s_older_names_are_understood(tmp_path, monkeypatch):
    original = models.DenseNet.__init__
    monkeypatch.setattr(
        models.DenseNet, "__init__", lambda self, *_, **options: original(self, 4, (1, 1, 1, 1), 8, **options)
    )
    state = models.densenet121(num_classes=3).state_dict()
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", name): v for name, v in state.items()}
    old = {name: value for name, value in old.items() if not name.endswith("num_batches_tracked")}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, tmp_path / "w.pth")
    taken = take(tmp_path / "w.pth", name="densenet121", stem="imagenet", image_size=32)
    name = "features.denseblock1.denselayer1.norm1.weight"
    assert torch.equal(taken.classifier.network.state_dict()[name], state[name])


def test_without_class_names_the_data_s_are_taken_and_it_is_said(tmp_path, weights, caplog):
    torch.save(weights, tmp_path / "w.pt")
    with caplog.at_level(logging.WARNING):
        taken = take(tmp_path / "w.pt", classes=None, data_classes=("x", "y", "z"))
    assert taken.spec.classes == ("x", "y", "z")
    assert "it has 3 outputs, they are taken to be the data's" in caplog.text


def test_with_class_names_nothing_needs_saying(tmp_path, weights, caplog):
    torch.save(weights, tmp_path / "w.pt")
    with caplog.at_level(logging.WARNING):
        take(tmp_path / "w.pt")
    assert caplog.text == ""


def test_classes_are_matched_to_the_data_s_by_name(tmp_path, weights):
    torch.save(weights, tmp_path / "w.pt")
    taken = take(tmp_path / "w.pt", data_classes=("frog", "cat"))
    images = torch.rand(2, 3, 8, 8)
    own = take(tmp_path / "w.pt")(images).logits
    assert torch.equal(taken(images).logits, own[:, [2, 0]])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"classes": ("a", "b")}, r"3 outputs, but classes names 2"),
        ({"classes": None, "data_classes": ("a", "b")}, "3 outputs and the data has 2 classes"),
        ({"classes": ("a", "b", "a")}, "two of one name"),
        ({"name": "resnet14"}, r"do not fit network resnet14 .*layer1\.1\.conv1\.weight is missing; .*and \d+ more"),
        ({"name": "resnet9"}, "network 'resnet9' is unknown; did you mean 'resnet8'"),
        ({"mean": (0.5,), "std": (0.5,), "channels": 1}, r"conv1\.weight has shape \[16, 3, 3, 3\] instead of"),
        ({"mean": (0.5, 0.5), "std": (0.5, 0.5), "channels": 2}, "in_channels is 2"),
        ({"std": (0.5, 0.5)}, "not one for each channel"),
        ({"std": (0.5, 0.5, 0.0)}, "std is not above 0"),
    ],
)
def test_a_description_that_does_not_fit_is_one_sentence(tmp_path, weights, changes, sentence):
    torch.save(weights, tmp_path / "w.pt")
    with pytest.raises(GkdError, match=sentence):
        take(tmp_path / "w.pt", **changes)


def test_names_that_are_too_many_are_named(tmp_path, weights):
    torch.save(weights | {"extra.weight": torch.zeros(1)}, tmp_path / "w.pt")
    with pytest.raises(GkdError, match=r"extra\.weight is not part of it"):
        take(tmp_path / "w.pt")


def test_weights_that_are_not_numbers_are_refused(tmp_path, weights):
    weights["layer1.0.conv1.weight"][0, 0, 0, 0] = float("nan")
    torch.save(weights, tmp_path / "w.pt")
    with pytest.raises(GkdError, match=r"no finite numbers \(layer1\.0\.conv1\.weight\)"):
        take(tmp_path / "w.pt")


def test_a_missing_source_is_one_sentence(tmp_path):
    with pytest.raises(GkdError, match="does not exist: give a folder"):
        take(tmp_path / "nowhere.pth")


def test_another_kind_of_file_is_refused(tmp_path):
    (tmp_path / "w.onnx").write_bytes(b"x")
    with pytest.raises(GkdError, match=r"must end in \.pt, \.pth, \.bin, \.safetensors"):
        take(tmp_path / "w.onnx")


class Trap:
    """What a malicious checkpoint would hold: unpickling it calls a function."""

    def __init__(self, touched: Path) -> None:
        self.touched = touched

    def __reduce__(self):
        return Path.touch, (self.touched,)


@pytest.mark.parametrize("save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_pickled_objects_are_never_opened(tmp_path, weights, save):
    path = tmp_path / "w.pth"
    save({"state_dict": {}, "callback": Trap(tmp_path / "touched")}, path)
    with pytest.raises(GkdError, match=r"w\.pth"):
        take(path)
    assert not (tmp_path / "touched").exists()


def test_a_pickled_module_is_refused_with_the_way_out(tmp_path):
    torch.save(create_classifier("resnet8", 3), tmp_path / "w.pth")
    with pytest.raises(GkdError, match=r"can run code: save it again with torch\.save\(model\.state_dict"):
        take(tmp_path / "w.pth")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("kept", [0, 10, 1000, -100])
def test_a_damaged_file_is_one_sentence(tmp_path, weights, suffix, kept):
    path = tmp_path / f"w{suffix}"
    if suffix == ".pt":
        torch.save(weights, path)
    else:
        save_file(weights, path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(GkdError, match="is damaged or no state-dict file") as caught:
        take(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [torch.zeros(3), [1, 2], {}, {"epoch": 3}, {"state_dict": {"a": 1}}])
def test_something_else_in_the_file_is_one_sentence(tmp_path, content):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(GkdError, match="holds no state dict"):
        take(tmp_path / "w.pt")


# --- torchvision's published weights


def test_published_weights_bring_classes_size_and_statistics(torch_hub):
    theirs = models.mobilenet_v3_small()
    published = models.MobileNet_V3_Small_Weights.IMAGENET1K_V1
    torch.save(theirs.state_dict(), torch_hub / Path(published.url).name)
    taken = take("torchvision:MobileNet_V3_Small_Weights.IMAGENET1K_V1", classes=None)
    assert taken.spec.name == "mobilenet_v3_small"
    assert taken.spec.stem == "imagenet"
    assert taken.spec.image_size == 224
    assert taken.spec.mean == (0.485, 0.456, 0.406)
    assert taken.spec.std == (0.229, 0.224, 0.225)
    assert taken.spec.classes == tuple(published.meta["categories"])
    images = torch.rand(2, 3, 224, 224)
    with torch.no_grad():
        # 224 pixels already, so torchvision's transform only normalises.
        expected = theirs.eval()(published.transforms(resize_size=224)(images))
        torch.testing.assert_close(taken(images).logits, expected)
    taken.select_classes(("goldfish", "tench"))
    assert taken(images).logits.shape == (2, 2)


def test_googlenet_keeps_the_statistics_it_was_trained_with(torch_hub):
    """Its file has two more heads, and torchvision renormalises its input inside."""
    published = models.GoogLeNet_Weights.IMAGENET1K_V1
    theirs = models.googlenet(aux_logits=True, transform_input=True, init_weights=False)
    torch.save(theirs.state_dict(), torch_hub / Path(published.url).name)
    taken = take("torchvision:GoogLeNet_Weights.DEFAULT", classes=None)
    images = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        expected = theirs.eval()(published.transforms(resize_size=224)(images))
        torch.testing.assert_close(taken(images).logits, expected, rtol=1e-4, atol=1e-4)


def test_torchvision_s_vgg_does_not_become_the_cifar_network(torch_hub, monkeypatch):
    """The names vgg11, 13, 16, 19 are taken by the CIFAR family."""
    monkeypatch.setattr("gkd_core.models.weights._load", lambda *_, **__: None)
    torch.save({"x": torch.zeros(1)}, torch_hub / Path(models.VGG11_Weights.IMAGENET1K_V1.url).name)
    with torch.device("meta"):
        assert take("torchvision:VGG11_Weights.IMAGENET1K_V1", classes=None).spec.name == "torchvision:vgg11"


def test_unknown_weights_get_the_nearest_name():
    with pytest.raises(GkdError, match=r"is unknown; did you mean 'ResNet18_Weights\.IMAGENET1K_V1'"):
        take("torchvision:Resnet18_Weights.IMAGENET1K_V1", classes=None)


def test_weights_of_detectors_are_unknown_too():
    with pytest.raises(GkdError, match=r"'FCN_ResNet50_Weights\.COCO_WITH_VOC_LABELS_V1' is unknown"):
        take("torchvision:FCN_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1", classes=None)


def test_weights_without_classes_are_refused():
    with pytest.raises(GkdError, match="are features without classes"):
        take("torchvision:VGG16_Weights.IMAGENET1K_FEATURES", classes=None)


def test_classes_for_published_weights_are_refused():
    with pytest.raises(GkdError, match=r"classes describes a state-dict file"):
        take("torchvision:ResNet18_Weights.IMAGENET1K_V1")


def test_no_network_is_one_sentence_that_says_where_the_file_goes(torch_hub):
    with pytest.raises(GkdError, match=r"cannot fetch https://.*no route to host.*put that file at .*shufflenet"):
        take("torchvision:ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1", classes=None)
    assert list(torch_hub.iterdir()) == []


def test_a_damaged_download_is_one_sentence(torch_hub):
    path = torch_hub / Path(models.ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1.url).name
    path.write_bytes(b"half a file")
    with pytest.raises(GkdError, match=r"is damaged .* delete it, and it is fetched again"):
        take("torchvision:ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1", classes=None)
