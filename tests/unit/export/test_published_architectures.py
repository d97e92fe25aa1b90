"""Networks of timm and torchvision as ONNX, with the preprocessing that published weights ask for in the graph."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from gkd_core.export.onnx import parity, write_onnx
from gkd_core.export.quantise import Quantiser
from gkd_core.export.session import run_session, session
from gkd_core.models.create import create_model
from gkd_core.models.network import Network, NetworkSpec

CLASSES = ("a", "b", "c", "d")
SENT = 80  # side in pixels of the images that a client sends
BATCHES = (1, 3, 8)
NETWORKS = {
    "timm:test_vit": 64,
    "timm:tf_efficientnet_lite0": 64,
    "timm:mobilenetv3_small_100": 64,
    "timm:convnext_atto": 64,
    "timm:vit_tiny_patch16_224": 64,
    "timm:swin_tiny_patch4_window7_224": 64,
    "swin_t": 64,
    "vit_b_16": 32,
}


def images(count: int, size: int) -> np.ndarray:
    """Black and white at random: nothing is farther from smooth."""
    return np.random.default_rng(0).integers(0, 2, (count, size, size, 3)).astype(np.uint8) * 255


@pytest.mark.slow  # up to half a minute each, which torch's exporter takes
@pytest.mark.parametrize(("name", "size"), NETWORKS.items())
def test_a_published_architecture_answers_as_in_torch_at_every_batch(name: str, size: int, tmp_path: Path) -> None:
    """Bicubic, and the middle alone, as most of timm's weights want it."""
    built = create_model(name, classes=CLASSES, image_size=size)
    spec = dataclasses.replace(built.spec, interpolation="bicubic", crop_fraction=0.875)
    network = Network(spec, classifier=built.classifier)
    for layer in network.classifier.head_layers:
        nn.init.normal_(network.classifier.get_submodule(layer).weight)  # random ones are near zero, as all logits then
    with torch.no_grad():
        network.train()(torch.rand(4, 3, SENT, SENT))  # running statistics that are not those of initialisation
    path = tmp_path / "model.onnx"
    write_onnx(network, path, classes=CLASSES, channels=3, image_size=SENT)
    found = parity(network, path, images(12, SENT), tolerance=1e-3, batch_sizes=BATCHES)
    assert found["images"] == 12
    sides = [
        [d.dim_param or d.dim_value for d in end.type.tensor_type.shape.dim] for end in onnx.load(path).graph.input
    ]
    assert sides == [["batch", SENT, SENT, 3]]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["timm:tf_efficientnet_lite0", "mobilenet_v3_small"])
def test_small_networks_quantise_in_every_way(name: str, tmp_path: Path) -> None:
    """And with more layers in float they come nearer."""
    network = create_model(name, classes=CLASSES, image_size=64, stem="imagenet" if ":" not in name else "auto")
    with torch.no_grad():
        network.train()(torch.rand(16, 3, 64, 64))
    write_onnx(network, tmp_path / "model.onnx", classes=CLASSES, channels=3, image_size=64)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 64, 64, 3), dtype=np.uint8)
    quantiser = Quantiser(tmp_path / "model.onnx", pixels)
    expected = run_session(session(tmp_path / "model.onnx"), pixels)
    noisiest = quantiser.noisiest()
    distances = []
    for how in ({}, {"symmetric": True}, {"in_float": noisiest}):
        quantiser.write(tmp_path / "int8.onnx", **how)
        distances.append(np.abs(run_session(session(tmp_path / "int8.onnx"), pixels) - expected).mean())
    assert np.isfinite(distances).all()
    assert distances[2] < min(distances[:2])


class Seen(nn.Module):
    """What a network sees of an image, as if these were logits."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.network.preprocess(images).flatten(1))


@pytest.mark.parametrize(
    "sent", [pytest.param(31, id="made larger", marks=pytest.mark.slow), pytest.param(97, id="made smaller")]
)
def test_the_graphs_bicubic_is_torchs(sent: int, tmp_path: Path) -> None:
    """With antialiasing, held within [0, 1], and cut to the middle: pixel by pixel."""
    spec = NetworkSpec("resnet8", "auto", CLASSES, 3, 56, (0.5,) * 3, (0.5,) * 3, (), "", "bicubic", 0.875)
    seen = Seen(Network(spec))
    write_onnx(seen, tmp_path / "model.onnx", classes=CLASSES, channels=3, image_size=sent)
    parity(seen, tmp_path / "model.onnx", images(12, sent), tolerance=1e-5, batch_sizes=BATCHES)
    pixels = seen(torch.from_numpy(images(2, sent)).permute(0, 3, 1, 2) / 255).logits
    assert (pixels.min(), pixels.max()) == (-1, 1)
