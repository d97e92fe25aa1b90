"""Heat maps against the closed form, against torchcam, and against attention written out."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision import models

from gkd_core.errors import GkdError
from gkd_core.models.classifier import Classifier, Output
from gkd_core.models.ensemble import Ensemble
from gkd_core.models.network import Network, NetworkSpec
from gkd_core.models.topological import TopologicalClassifier
from gkd_core.models.torchvision import VisionTransformerClassifier
from gkd_core.report.heatmaps import SIDE, choose_pictures, heat_maps, views

CLASSES = ("a", "b", "c")


def network(
    name: str = "resnet8",
    side: int = 16,
    classifier: Classifier | None = None,
    classes: tuple[str, ...] = CLASSES,
    stem: str = "auto",
    crop_fraction: float = 1.0,
) -> Network:
    half = (0.5, 0.5, 0.5)
    spec = NetworkSpec(name, stem, classes, 3, side, half, half, crop_fraction=crop_fraction)
    return Network(spec, classifier=classifier).eval()


def over_the_whole(maps: Tensor) -> np.ndarray:
    """[B, H, W], not negative, brought to size and to 1 at the hottest place."""
    large = functional.interpolate(maps[:, None], (SIDE, SIDE), mode="bilinear", align_corners=False)[:, 0]
    return (large / large.amax((1, 2), keepdim=True).clamp(min=1e-12)).detach().numpy()


def test_of_average_pooling_and_a_linear_layer_it_is_the_class_activation_map():
    net, images = network(), torch.rand(4, 3, 16, 16)
    weight, _ = net.pooled_linear_weight()
    named = ["c", "a", "b", "a"]
    rows = weight[[CLASSES.index(name) for name in named]]
    expected = torch.einsum("bchw,bc->bhw", net(images).stages[-1], rows).relu()
    assert expected.amax((1, 2)).min() > 0
    found = heat_maps(net, images, named)
    assert found.shape == (4, SIDE, SIDE)
    np.testing.assert_allclose(found, over_the_whole(expected), atol=1e-5)
    assert not any(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize(("name", "layer"), [("mobilenet_v2", "features"), ("squeezenet1_1", "features")])
def test_of_a_convolutional_network_it_is_what_torchcam_finds(name, layer):
    from torchcam.methods import GradCAM

    net, images = network(name, side=64, stem="imagenet"), torch.rand(2, 3, 64, 64)
    plain = net.classifier.network
    with GradCAM(plain, target_layer=layer) as other:
        scores = plain(net.preprocess(images))
        expected = other([2, 0], scores, normalized=False)[0]
    assert expected.amax((1, 2)).min() > 0
    np.testing.assert_allclose(heat_maps(net, images, ["c", "a"]), over_the_whole(expected), atol=1e-4)


def test_of_a_class_token_it_is_what_enters_the_last_attention():
    inner = models.VisionTransformer(
        image_size=16, patch_size=4, num_layers=4, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=3
    )
    nn.init.normal_(inner.heads[-1].weight)
    net, images = network(classifier=VisionTransformerClassifier(inner)), torch.rand(2, 3, 16, 16)
    found = heat_maps(net, images, ["b", "c"])

    patches = inner.conv_proj(net.preprocess(images)).flatten(2).transpose(1, 2)
    x = torch.cat([inner.class_token.expand(2, -1, -1), patches], 1) + inner.encoder.pos_embedding
    *first, last = inner.encoder.layers
    for layer in first:
        x = layer(x)
    seen = last.ln_1(x).detach().requires_grad_()
    y = x.detach() + last.self_attention(seen, seen, seen)[0]
    logits = inner.heads(inner.encoder.ln(y + last.mlp(last.ln_2(y)))[:, 0])
    torch.testing.assert_close(logits, net(images).logits)
    (logits[0, 1] + logits[1, 2]).backward()
    weights = seen.grad[:, 1:].mean(1, keepdim=True)
    expected = (seen[:, 1:] * weights).sum(2).relu().unflatten(1, (4, 4))
    assert expected.amax((1, 2)).min() > 0
    np.testing.assert_allclose(found, over_the_whole(expected), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["timm:test_vit", "timm:test_vit2", "timm:test_convnext", "timm:test_efficientnet", "timm:xcit_nano_12_p16_224"],
)
def test_timms_networks_have_them(name):
    net = network(name, side=160)
    found = heat_maps(net, torch.rand(2, 3, 160, 160), ["a", "b"])
    assert np.isfinite(found).all()
    assert found.min() >= 0
    assert set(np.unique(found.max((1, 2)))) <= {0.0, 1.0}
    assert found.max() == 1


def test_of_an_ensemble_it_is_the_mean_of_those_that_know_the_class():
    torch.manual_seed(1)
    both, one = network(), network(classes=("b", "a"))
    images = torch.rand(2, 3, 16, 16)
    found = heat_maps(Ensemble([both, one], CLASSES), images, ["c", "a"])
    np.testing.assert_allclose(found[0], heat_maps(both, images, ["c", "c"])[0], atol=1e-6)
    mean = (heat_maps(both, images, ["a", "a"])[1] + heat_maps(one, images, ["a", "a"])[1]) / 2
    np.testing.assert_allclose(found[1], mean / mean.max(), atol=1e-6)


def test_beyond_what_a_network_sees_there_is_nothing():
    net = network(crop_fraction=0.5)
    found = heat_maps(net, torch.rand(2, 3, 32, 32), ["a", "b"])
    quarter = SIDE // 4
    assert found.max() == 1
    inside = np.zeros((SIDE, SIDE), bool)
    inside[quarter:-quarter, quarter:-quarter] = True
    assert not found[:, ~inside].any()


def test_of_a_topological_network_it_is_that_of_its_convolutions():
    base = network()
    joined = network(classifier=TopologicalClassifier(base.classifier, 3, "resnet8"))
    images = torch.rand(2, 3, 16, 16)
    np.testing.assert_array_equal(heat_maps(joined, images, ["a", "b"]), heat_maps(base, images, ["a", "b"]))


class Flat(Classifier):
    """A network without feature maps."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(768, 3)

    def forward(self, images: Tensor) -> Output:
        flat = images.flatten(1)
        return Output(self.last(flat), (), flat)

    def head(self, last_stage: Tensor) -> Tensor:
        raise AssertionError


def test_a_network_without_feature_maps_is_refused_by_name():
    with pytest.raises(GkdError, match="resnet8 has no feature maps"):
        heat_maps(network(classifier=Flat()), torch.rand(1, 3, 16, 16), ["a"])


def test_the_reports_pictures_say_who_has_no_map_and_are_read_one_at_a_time():
    pixels = np.random.default_rng(0).integers(0, 256, (30, 16, 16, 3), dtype=np.uint8)
    labels = np.arange(30) % 3
    asked = []

    class Mapped:
        shape = pixels.shape

        def __getitem__(self, index: int) -> np.ndarray:
            asked.append(index)
            return pixels[index]

    test = SimpleNamespace(images=Mapped(), labels=labels)
    info = SimpleNamespace(classes=CLASSES, image_size=16, channels=3)
    networks = {"student": network(), "teacher": network(classifier=Flat())}
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        logits = {role: each(images).logits.numpy() for role, each in networks.items()}
    found = choose_pictures(networks, logits, test, info, torch.device("cpu"))
    assert found.notes == ("The teacher has no heat maps: resnet8 has no feature maps.",)
    assert list(found.heat) == ["student"]
    assert set(found.heat["student"]) == set(found.with_heat())
    assert all(isinstance(index, int) for index in asked)
    index = found.with_heat()[0]
    expected = heat_maps(networks["student"], images[index : index + 1], [CLASSES[found.student.named[index]]])[0]
    np.testing.assert_allclose(found.heat["student"][index], expected, atol=1e-5)
    shot = found.sections()[0].rows[0].shots[0]
    assert list(shot.heat) == ["student"]


def test_how_networks_see_the_pictures_is_said():
    grey = Network(NetworkSpec("resnet8", "auto", CLASSES, 1, 8, (0.5,), (0.5,), crop_fraction=0.875))
    said = " ".join(views({"student": grey, "teacher": Ensemble([network(), network()])}, 16, 3)).replace("\u00a0", " ")
    assert said == (
        "The student sees them at 8 × 8 pixels in grey, the middle 88 % of each side. "
        "The teacher is 2 networks; its heat map is the mean of theirs."
    )
    assert views({"student": network()}, 16, 3) == ()
