"""What a network starts from: where weights come from, what of them it takes, what is said where they do not fit."""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torchvision import models

from benchmarks.efficientnet_lite import write_weights
from gkd_core.data.prepared import PreparedData
from gkd_core.errors import GkdError
from gkd_core.files import file_digest, write_json
from gkd_core.models.create import create_model
from gkd_core.models.network import Network, Preprocessing, load_network, save_network
from gkd_core.models.published import imagenet_classes
from gkd_core.models.starting import find_weights, head_tensors

LITE = "timm:tf_efficientnet_lite0"
TINY = "timm:test_vit"  # the smallest transformer of timm's, of 64 channels, for images of 160 pixels
PETS = ["cat", "dog", "frog"]


@pytest.fixture(scope="session")
def lite(tmp_path_factory) -> Path:
    """The file of published ImageNet weights of EfficientNet-Lite0."""
    return write_weights(0, tmp_path_factory.mktemp("weights"))


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """The Hugging Face hub's cache, empty; and no network."""
    from huggingface_hub import constants

    folder = tmp_path / "hf" / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return folder


def put_in_hub(cache: Path, repository: str, **files: Path) -> None:
    """Files where the hub's client would have put them, had it fetched them."""
    place = cache / f"models--{repository.replace('/', '--')}"
    (place / "refs").mkdir(parents=True, exist_ok=True)
    (place / "refs" / "main").write_text("0" * 40)
    snapshot = place / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True, exist_ok=True)
    for name, file in files.items():
        shutil.copy(file, snapshot / name.replace("__", "."))


@pytest.fixture
def tiny(tmp_path) -> Callable[..., Path]:
    """name, classes → a file of random weights of a small timm network, as timm saves them."""

    def make(name: str = "test_vit", classes: int = 1000, **options) -> Path:
        torch.manual_seed(1)
        network = timm.create_model(name, num_classes=classes, **options)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        path = tmp_path / f"{name}-{classes}.safetensors"
        save_file(network.state_dict(), path)
        return path

    return make


def photos() -> Iterator[tuple[str, torch.Tensor]]:
    """The two photos that scikit-learn ships, in colour, cut square: name, [1, 3, side, side] in [0, 1]."""
    from sklearn.datasets import load_sample_images

    found = load_sample_images()
    for file, image in zip(found.filenames, found.images, strict=True):
        side = min(image.shape[:2])
        top, left = ((length - side) // 2 for length in image.shape[:2])
        square = image[top : top + side, left : left + side]
        yield Path(file).name, torch.from_numpy(square.copy()).permute(2, 0, 1)[None].float() / 255


def seen_by(network: Network) -> dict[str, str]:
    """The class that it gives each photo."""
    network.eval()
    with torch.no_grad():
        return {name: network.classes[int(network(image).logits.argmax())] for name, image in photos()}


# --- published weights arrive


def test_a_published_network_knows_what_is_on_two_photos(lite, hub, caplog):
    """From the hub's cache, without a network: preprocessing, classes and every tensor come along."""
    put_in_hub(hub, "timm/tf_efficientnet_lite0.in1k", model__safetensors=lite)
    with caplog.at_level(logging.INFO, "gkd_core"):
        network = create_model(LITE, weights="pretrained")
    found = find_weights("pretrained", LITE)
    assert (found.published, found.licence) == ("timm:tf_efficientnet_lite0.in1k", "apache-2.0")
    assert find_weights(lite, LITE).published == ""
    assert network.spec.preprocessing == Preprocessing(3, 224, (0.5,) * 3, (0.5,) * 3, "bicubic", 0.875)
    assert network.classes == imagenet_classes()
    assert network.weights_digest == file_digest(lite)
    assert "its classification layer is theirs" in caplog.text
    assert seen_by(network) == {"china.jpg": "palace", "flower.jpg": "daisy"}


def test_classes_that_the_weights_know_keep_their_rows_in_the_data_s_order(lite, hub):
    put_in_hub(hub, "timm/tf_efficientnet_lite0.in1k", model__safetensors=lite)
    network = create_model(LITE, classes=["daisy", "mushroom", "palace"], weights="in1k", head="auto")
    assert seen_by(network) == {"china.jpg": "palace", "flower.jpg": "daisy"}
    rows = [imagenet_classes().index(name) for name in network.classes]
    assert torch.equal(network.classifier.network.classifier.weight, load_file(lite)["classifier.weight"][rows])


@pytest.mark.slow
def test_the_cache_of_hf_home_is_where_it_is_looked_for(lite, tmp_path):
    """In another process, which has nothing but the variable."""
    put_in_hub(tmp_path / "hub", "timm/tf_efficientnet_lite0.in1k", model__safetensors=lite)
    program = f"import gkd_core as gkd; print(gkd.create_model({LITE!r}, weights='pretrained').weights_digest)"
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == file_digest(lite)


def test_a_file_brings_the_preprocessing_of_its_architecture_and_no_names_of_classes(lite):
    new = create_model(LITE, classes=PETS, weights=lite, seed=3)
    assert new.spec.preprocessing == Preprocessing(3, 224, (0.5,) * 3, (0.5,) * 3, "bicubic", 0.875)
    theirs, own = load_file(lite), head_tensors(new.classifier)
    for name, value in new.classifier.state_dict().items():
        assert name in own or torch.equal(value, theirs[name.removeprefix("network.")]), name
    assert new.weights_digest == file_digest(lite)
    assert new.pretrained


def test_image_size_and_statistics_that_are_given_replace_the_weights(lite):
    network = create_model(LITE, classes=PETS, weights=lite, image_size=64, mean=(0.1,) * 3, std=(0.2,) * 3)
    assert network.spec.preprocessing == Preprocessing(3, 64, (0.1,) * 3, (0.2,) * 3, "bicubic", 0.875)


def test_a_network_with_its_preprocessing_is_kept_and_read_back(lite, tmp_path):
    network = create_model(LITE, classes=PETS, weights=lite).eval()
    save_network(network, tmp_path)
    again = load_network(tmp_path).eval()
    assert again.spec == network.spec
    images = torch.rand(1, 3, 50, 50)
    with torch.no_grad():
        assert torch.equal(again(images).logits, network(images).logits)


def test_the_preprocessing_is_timm_s_own(lite):
    """Beside timm's transforms on a square photo: what is left is Pillow's rounding to whole pixels."""
    from PIL import Image

    spec = timm.get_pretrained_cfg("tf_efficientnet_lite0")
    transform = timm.data.create_transform(**timm.data.resolve_data_config(pretrained_cfg=spec.to_dict()))
    network = create_model(LITE, classes=PETS, weights=lite)
    for _, photo in photos():
        pixels = (photo[0] * 255).byte().permute(1, 2, 0).numpy()
        torch.testing.assert_close(network.preprocess(photo)[0], transform(Image.fromarray(pixels)), rtol=0, atol=0.05)


def test_the_preprocessing_of_torchvision_s_weights_is_torchvision_s_own(torch_hub):
    published = models.MobileNet_V3_Small_Weights.IMAGENET1K_V1
    theirs = models.mobilenet_v3_small(num_classes=1000)
    torch.save(theirs.state_dict(), torch_hub / Path(published.url).name)
    network = create_model("mobilenet_v3_small", weights="pretrained").eval()
    assert network.classes == tuple(published.meta["categories"])
    assert network.spec.stem == "imagenet"
    for _, image in photos():
        expected = theirs.eval()(published.transforms()(image))
        torch.testing.assert_close(network(image).logits, expected, rtol=1e-3, atol=1e-3)


def test_weights_whose_pictures_were_squashed_say_so_unless_the_data_s_are(tiny, hub, tmp_path, digits, caplog):
    """As `crop_mode` of timm's configuration says it, of CLIP's networks say."""
    settings = {"input_size": [3, 160, 160], "classifier": "head", "crop_mode": "squash", "crop_pct": 1.0}
    (tmp_path / "config.json").write_text(
        json.dumps({"architecture": "test_vit", "num_classes": 10, "pretrained_cfg": settings})
    )
    put_in_hub(hub, "someone/squash", model__safetensors=tiny(classes=10), config__json=tmp_path / "config.json")
    assert find_weights("hf-hub:someone/squash", TINY).crop == "squash"
    data = PreparedData.open(digits)
    for source, crop, said in (("folder", None, True), ("folder", "squash", False), ("digits", None, False)):
        data.info = data.info.model_copy(update={"source": source, "crop": crop})
        caplog.clear()
        create_model(TINY, data=data, weights="hf-hub:someone/squash")
        assert ("are for pictures that data.crop squash brings to a square" in caplog.text) == said
    assert find_weights(tiny("test_resnet"), "timm:test_resnet").crop == "center"


@pytest.mark.parametrize("weights", ["IMAGENET1K_V2", "MobileNet_V2_Weights.IMAGENET1K_V2"])
def test_torchvision_s_weights_are_taken_by_either_of_their_names(torch_hub, weights, digits):
    state = models.mobilenet_v2().state_dict()
    torch.save(state, torch_hub / Path(models.MobileNet_V2_Weights.IMAGENET1K_V2.url).name)
    found = find_weights(weights, "mobilenet_v2")
    assert (found.published, found.licence) == ("MobileNet_V2_Weights.IMAGENET1K_V2", "")  # torchvision tells none
    network = create_model("mobilenet_v2", data=PreparedData.open(digits), weights=weights)
    assert network.spec.preprocessing[:2] == (3, 224)
    assert network.spec.crop_fraction == pytest.approx(224 / 232)
    assert network.preprocess(torch.rand(1, 1, 8, 8)).shape == (1, 3, 224, 224)
    assert torch.equal(network.classifier.network.features[0][0].weight, state["features.0.0.weight"])
    assert network.num_classes == 10


def test_positions_of_a_vision_transformer_are_resampled_for_another_image_size(tiny, tmp_path, monkeypatch):
    init, thin = models.VisionTransformer.__init__, {"num_layers": 4, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 16}
    monkeypatch.setattr(models.VisionTransformer, "__init__", lambda self, **given: init(self, **(given | thin)))
    small = create_model(TINY, classes=PETS, weights=tiny(), image_size=96)
    assert small.classifier.network.pos_embed.shape == (1, 37, 64)
    torch.manual_seed(0)
    theirs = models.vit_b_32(num_classes=3)
    torch.nn.init.normal_(theirs.encoder.pos_embedding)
    torch.save(theirs.state_dict(), tmp_path / "vit.pth")
    ours = create_model("vit_b_32", classes=PETS, weights=tmp_path / "vit.pth", image_size=96)
    assert ours.classifier.network.encoder.pos_embedding.shape == (1, 10, 16)
    same = create_model("vit_b_32", classes=PETS, weights=tmp_path / "vit.pth")
    assert torch.equal(same.classifier.network.encoder.pos_embedding, theirs.encoder.pos_embedding)


def test_a_repository_of_the_hub_says_what_network_it_holds(tiny, hub, tmp_path):
    settings = {
        "architecture": "test_vit",
        "num_classes": 3,
        "label_names": ["frog", "dog", "cat"],
        "pretrained_cfg": {"input_size": [3, 160, 160], "mean": [0.1] * 3, "std": [0.3] * 3, "classifier": "head"},
    }
    (tmp_path / "config.json").write_text(json.dumps(settings))
    file = tiny(classes=3)
    put_in_hub(hub, "someone/pets", model__safetensors=file, config__json=tmp_path / "config.json")
    network = create_model(TINY, classes=PETS, weights="hf-hub:someone/pets")
    assert network.spec.mean == (0.1,) * 3
    assert torch.equal(network.classifier.network.head.bias, load_file(file)["head.bias"][[2, 1, 0]])
    with pytest.raises(GkdError, match=r"are of timm:test_vit, and name is timm:resnet18: set it to timm:test_vit"):
        create_model("timm:resnet18", classes=PETS, weights="hf-hub:someone/pets")


# --- a network of ours


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "MobileNetV2", "resnet18", TINY])
def test_a_folder_of_ours_starts_every_family(name, tmp_path):
    """Its preprocessing and stem come along; of its classes those that are wanted."""
    old = create_model(name, classes=PETS, image_size=32, mean=(0.1,) * 3, std=(0.2,) * 3, seed=1)
    save_network(old, tmp_path)
    new = create_model(name, classes=["frog", "cat"], weights=tmp_path, seed=2)
    assert new.spec.preprocessing == old.spec.preprocessing
    images = torch.rand(2, 3, 40, 40)
    with torch.no_grad():
        torch.testing.assert_close(new.eval()(images).logits, old.eval()(images).logits[:, [2, 0]])
    assert new.weights_digest == file_digest(tmp_path / "model.safetensors")
    other = create_model(name, classes=["cat", "cow"], weights=tmp_path, seed=2)
    state, head = other.classifier.state_dict(), head_tensors(other.classifier)
    for seed, same in ((2, True), (3, False)):
        again = create_model(name, classes=["cat", "cow"], weights=tmp_path, seed=seed).classifier.state_dict()
        assert all(torch.equal(state[key], again[key]) == same for key in head)
    assert all(torch.equal(state[key], value) for key, value in old.classifier.state_dict().items() if key not in head)


def test_a_topological_network_starts_from_one(tmp_path):
    name = "topological:resnet8"
    save_network(create_model(name, classes=PETS, seed=1), tmp_path)
    new = create_model(name, classes=["dog", "cat"], weights=tmp_path)
    old = load_file(tmp_path / "model.safetensors")
    assert torch.equal(new.classifier.topology.weight, old["topology.weight"][[1, 0]])
    assert torch.equal(new.classifier.pooled_linear.bias, old["base.fc.bias"][[1, 0]])


def test_a_teacher_folder_of_one_network_starts_it(tmp_path):
    (tmp_path / "resnet8").mkdir()
    save_network(create_model("resnet8", classes=PETS), tmp_path / "resnet8")
    write_json(tmp_path / "teacher.json", {"networks": ["resnet8"], "data_sha256": ""})
    assert find_weights(tmp_path, "resnet8").path == tmp_path / "resnet8"


def test_new_throws_away_a_head_that_could_be_kept(tmp_path):
    old = create_model("resnet8", classes=PETS, seed=1)
    save_network(old, tmp_path)
    new = create_model("resnet8", classes=PETS, weights=tmp_path, head="new", seed=2)
    assert not torch.equal(new.classifier.fc.weight, old.classifier.fc.weight)
    assert torch.equal(new.classifier.conv1.weight, old.classifier.conv1.weight)


@pytest.mark.parametrize("name", ["timm:efficientnet_b0", "efficientnet_b0"])
def test_a_new_head_on_learnt_weights_is_small(name, tmp_path):
    """Both libraries draw this network's head with numbers up to 1/√classes, which is for a training from noise."""
    save_network(create_model(name, classes=["a", "b", "c"], image_size=64), tmp_path)
    network = create_model(name, classes=PETS, image_size=64, weights=tmp_path, head="new")
    layer = network.classifier.get_submodule(network.classifier.head_layers[0])
    bound = layer.in_features**-0.5
    assert 0.9 * bound < layer.weight.abs().max() <= bound
    again = network.sibling(1).classifier.get_submodule(network.classifier.head_layers[0])
    assert 0.9 * bound < again.weight.abs().max() <= bound


def test_the_head_of_a_file_is_kept_on_request_where_there_are_as_many_classes_and_it_is_said(tiny, caplog):
    file = tiny(classes=3)
    with caplog.at_level(logging.WARNING):
        network = create_model(TINY, classes=PETS, weights=file, head="keep")
    assert torch.equal(network.classifier.network.head.weight, load_file(file)["head.weight"])
    assert "name no classes; as they have 3 outputs" in caplog.text


# --- one sentence each


def refused(name: str, weights: str | Path, classes: list[str] | None = PETS, **options) -> str:
    """The sentence with which a network that starts so is refused."""
    with pytest.raises(GkdError) as caught:
        create_model(name, classes=classes, weights=weights, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_weights_of_another_architecture_name_the_tensors(tiny, tmp_path):
    said = refused("timm:test_resnet", tiny())
    assert "do not fit network timm:test_resnet" in said
    assert "conv1.0.weight is missing" in said
    assert re.search(r"and \d+ more", said)
    torch.save(models.resnet18(num_classes=3).state_dict(), tmp_path / "w.pth")
    said = refused("resnet50", tmp_path / "w.pth")
    assert "do not fit network resnet50" in said
    assert "layer1.0.conv3.weight is missing" in said
    save_file(create_model("resnet8", classes=PETS).classifier.state_dict(), tmp_path / "w.safetensors")
    assert "layer1.1.conv1.weight is missing" in refused("resnet20", tmp_path / "w.safetensors")


def test_a_folder_of_another_architecture_is_named(tmp_path):
    save_network(create_model("resnet8", classes=PETS), tmp_path)
    said = refused("resnet20", tmp_path)
    assert "are of a resnet8, and name is resnet20: set it to resnet8" in said


@pytest.mark.parametrize(
    ("name", "weights", "words"),
    [
        ("resnet18", "IMAGENET1K_V3", ["weights of resnet18 'IMAGENET1K_V3'", "ResNet18_Weights.IMAGENET1K_V1"]),
        ("resnet18", "ResNet50_Weights.IMAGENET1K_V2", ["ResNet18_Weights.IMAGENET1K_V1"]),
        (TINY, "r160_in21k", ["weights of timm:test_vit 'r160_in21k'", "did you mean 'r160_in1k'"]),
        ("resnet8", "pretrained", ["nobody publishes weights of resnet8", "a file or a folder"]),
        (TINY, "nowhere.pth", ["'nowhere.pth' do not exist"]),
        (TINY, "models:/pets@champion", ["in a registry"]),
        ("timm:resnet18.a1_in1k", "a2_in1k", ["asks for the weights a1_in1k", "leave one of them out"]),
    ],
)
def test_weights_that_there_are_not(name, weights, words):
    said = refused(name, weights)
    assert all(word in said for word in words), said


def test_no_network_and_no_cache_says_which_file_to_put_where(hub, torch_hub):
    said = refused(LITE, "pretrained")
    assert "model.safetensors of timm/tf_efficientnet_lite0.in1k" in said
    assert str(hub / "models--timm--tf_efficientnet_lite0.in1k") in said
    said = refused("mobilenet_v3_small", "pretrained")
    assert str(torch_hub / Path(models.MobileNet_V3_Small_Weights.DEFAULT.url).name) in said
    said = refused(TINY, "hf-hub:someone/pets")
    assert "config.json of someone/pets" in said


def test_a_hub_that_is_not_reached_is_asked_for_one_file_only(monkeypatch, caplog, capfd):
    """Its client tries each file for half a minute, with two lines a try."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError
    from huggingface_hub.utils import logging as theirs

    fetched = []

    def unreachable(repository: str, name: str, *, revision: str | None, local_files_only: bool) -> str:
        if local_files_only:
            raise LocalEntryNotFoundError("not in the cache")
        fetched.append(name)
        theirs.get_logger("huggingface_hub.utils._http").warning("Retrying in 1s")
        raise LocalEntryNotFoundError("not on the hub") from OSError("no route to host")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    before = theirs.get_verbosity()
    assert "(no route to host)" in refused(LITE, "pretrained")
    assert fetched == ["model.safetensors"]
    assert caplog.messages == ["fetching model.safetensors of timm/tf_efficientnet_lite0.in1k from the hub"]
    assert "Retrying" not in capfd.readouterr().err
    assert theirs.get_verbosity() == before


def test_classes_that_agree_in_part_are_named_where_the_head_is_to_be_kept(tmp_path):
    save_network(create_model("resnet8", classes=PETS), tmp_path)
    said = refused("resnet8", tmp_path, ["cat", "cow", "dog", "hen"], head="keep")
    assert "head is keep" in said
    assert "do not know 'cow', 'hen'" in said


def test_a_file_with_another_number_of_outputs_has_no_head_to_keep(tiny):
    said = refused(TINY, tiny(classes=5), head="keep")
    assert "5 outputs" in said
    assert "3 classes" in said


def test_an_unknown_head(tmp_path):
    save_network(create_model("resnet8", classes=PETS), tmp_path)
    assert "did you mean 'keep'" in refused("resnet8", tmp_path, head="kept")
    with pytest.raises(GkdError, match="head is keep, but there are no weights"):
        create_model("resnet8", classes=PETS, head="keep")


def test_weights_of_networks_that_see_three_channels_are_not_for_one(tiny):
    assert "channels is 1, but the weights are of a network that sees 3" in refused(TINY, tiny(), channels=1)


def test_weights_with_nan_are_refused(tiny):
    file = tiny()
    state = load_file(file)
    state["norm.weight"][0] = torch.nan
    save_file(state, file)
    assert "no finite numbers" in refused(TINY, file)
