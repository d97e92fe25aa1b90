import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from gkd_core.errors import GkdError
from gkd_core.export import onnx as export_module
from gkd_core.export.onnx import parity, preprocessing, write_onnx
from gkd_core.export.session import run_session, session
from gkd_core.models.network import Network, NetworkSpec

DIGITS = tuple(f"digit {i}" for i in range(10))
EXPORT_TWICE = """
import sys
from pathlib import Path
import torch
from gkd_core.export.onnx import write_onnx
from gkd_core.models.network import Network, NetworkSpec
torch.manual_seed(0)
classes = tuple(f"digit {i}" for i in range(10))
network = Network(NetworkSpec("resnet8", "auto", classes, 1, 8, (0.3,), (0.2,)))
network.train()(torch.rand(8, 1, 8, 8))
write_onnx(network, Path(sys.argv[1]), classes=classes, channels=1, image_size=8, metadata={"b": "2", "a": "1"})
"""


def digits_network(**changes: object) -> Network:
    torch.manual_seed(0)
    spec = {"name": "resnet8", "stem": "auto", "classes": DIGITS, "in_channels": 1, "image_size": 8}
    return Network(NetworkSpec(**{**spec, "mean": (0.3,), "std": (0.2,), **changes}))


def random_images(count: int, size: int, channels: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, channels), dtype=np.uint8)


@pytest.fixture(scope="module")
def network() -> Network:
    """With running statistics that are not the initial zeros and ones, so that batch norm is not the identity."""
    made = digits_network()
    made.train()(torch.rand(8, 1, 8, 8))
    return made


@pytest.fixture(scope="module")
def exported(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """And the network is left as it was."""
    path = tmp_path_factory.mktemp("export") / "model.onnx"
    before = copy.deepcopy(network.state_dict())
    write_onnx(network, path, classes=DIGITS, channels=1, image_size=8, metadata={"b": "2", "a": "1"})
    assert network.training
    assert network.classifier.training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    return path


def test_the_graph_takes_pixels_and_gives_logits_for_any_batch(exported: Path) -> None:
    graph = onnx.load(exported).graph
    (image,), (logits,) = graph.input, graph.output
    assert (image.name, logits.name) == ("image", "logits")
    assert image.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert logits.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert [d.dim_param or d.dim_value for d in image.type.tensor_type.shape.dim] == ["batch", 8, 8, 1]
    assert [d.dim_param or d.dim_value for d in logits.type.tensor_type.shape.dim] == ["batch", 10]


def test_the_file_is_self_contained_and_tells_nothing_of_the_machine(exported: Path) -> None:
    model = onnx.load(exported, load_external_data=False)
    assert [(e.domain, e.version) for e in model.opset_import] == [("", 18)]
    assert model.ir_version == 8  # what onnxruntime 1.15 and KServe's Triton still open; they refuse 10
    assert [entry.key for entry in model.metadata_props] == ["a", "b", "classes", "input"]
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(metadata["classes"]) == list(DIGITS)
    assert metadata["input"] == "uint8_nhwc"
    assert (model.producer_name, model.producer_version, model.doc_string) == ("gkd", "", "")
    assert not any(part.doc_string or part.metadata_props for part in (*model.graph.node, *model.graph.initializer))
    assert not any(t.data_location == onnx.TensorProto.EXTERNAL for t in model.graph.initializer)
    content = exported.read_bytes()
    assert b"site-packages" not in content
    assert str(Path.cwd()).encode() not in content


@pytest.mark.slow
def test_another_process_in_another_folder_writes_the_same_bytes(exported: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere" / "other name.onnx"
    other.parent.mkdir()
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(Path.cwd())}
    subprocess.run(
        [sys.executable, "-c", EXPORT_TWICE, str(other)], check=True, cwd=other.parent, env=environment, timeout=240
    )
    assert other.read_bytes() == exported.read_bytes()


def test_onnxruntime_agrees_with_torch(network: Network, exported: Path) -> None:
    found = parity(network, exported, random_images(50, 8, 1), tolerance=1e-4)
    assert found["batch_sizes"] == [1, 2, 7, 32]
    assert found["images"] == 42
    assert 0 <= found["max_abs"] < 1e-4


@pytest.mark.parametrize(
    ("input_form", "changes", "channels", "size", "classes"),
    [
        # An imported teacher: colour and twice the data's resolution, and more classes than the data has.
        (
            "uint8_nhwc",
            {"in_channels": 3, "image_size": 16, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)},
            1,
            8,
            DIGITS[3:1:-1],
        ),
        # Grey from colour, made smaller with antialiasing.
        ("float_nchw", {}, 3, 20, DIGITS),
    ],
)
def test_images_of_another_form_are_brought_to_the_networks_own(
    tmp_path: Path,
    input_form: export_module.InputForm,
    changes: dict[str, object],
    channels: int,
    size: int,
    classes: tuple[str, ...],
) -> None:
    network = digits_network(**changes)
    network.select_classes(classes)
    path = tmp_path / "model.onnx"
    write_onnx(network, path, classes=classes, channels=channels, image_size=size, input=input_form)
    images = random_images(50, size, channels)
    parity(network, path, images, tolerance=1e-4)
    assert run_session(session(path, threads=1), images, batch_size=16).shape == (50, len(classes))


def test_another_operator_set_is_the_one_in_the_file_and_nothing_is_printed(
    network: Network, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_onnx(network, tmp_path / "model.onnx", classes=DIGITS, channels=1, image_size=8, opset=21)
    assert [(e.domain, e.version) for e in onnx.load(tmp_path / "model.onnx").opset_import] == [("", 21)]
    assert parity(network, tmp_path / "model.onnx", random_images(4, 8, 1), tolerance=1e-4)["images"] == 4
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_an_operator_set_the_exporter_did_not_reach_is_refused(
    tmp_path: Path, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stays = SimpleNamespace(model_proto=onnx.load(exported))
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: stays)
    with pytest.raises(GkdError, match=r"^resnet8 exports to ai\.onnx 18, not to operator set 19: set export\.opset"):
        write_onnx(
            digits_network(),
            tmp_path / "model.onnx",
            classes=DIGITS,
            channels=1,
            image_size=8,
            opset=19,
            name="resnet8",
        )
    assert not (tmp_path / "model.onnx").exists()


class Undecided(nn.Module):
    """The shape of its answer depends on the pixels: no graph can hold that."""

    def forward(self, images: torch.Tensor) -> SimpleNamespace:
        if images.sum() > 1:
            images = -images
        return SimpleNamespace(logits=images.mean((2, 3)))


def test_a_network_that_cannot_be_exported_ends_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(GkdError) as caught:
        write_onnx(Undecided(), tmp_path / "m.onnx", classes=("a",), channels=1, image_size=4, name="the student odd")
    sentence = str(caught.value)
    assert sentence.startswith("the student odd cannot be exported to ONNX operator set 18 (")
    assert sentence.endswith("): choose another network or export.opset")
    assert "\n" not in sentence
    assert not list(tmp_path.iterdir())


class Counting(nn.Module):
    """Takes the number of images for a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1, 1))

    def forward(self, images: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=images.mean((2, 3)) + self.bias.expand(len(images), -1))


def test_a_network_bound_to_one_batch_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GkdError, match=r"^it exports for one batch size only"):
        write_onnx(Counting(), tmp_path / "m.onnx", classes=("a",), channels=1, image_size=4, name="it")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("added", "difference"), [(0.25, r"0\.25"), (float("nan"), "nan")])
def test_a_file_that_disagrees_with_torch_is_refused_with_value_and_limit(
    network: Network, exported: Path, added: float, difference: str
) -> None:
    other = copy.deepcopy(network)
    with torch.no_grad():
        other.classifier.fc.bias[3] += added
    wanted = rf"differs from torch by {difference} on .* batch of 1, .*parity_tolerance allows 0\.001"
    with pytest.raises(GkdError, match=wanted):
        parity(other, exported, random_images(3, 8, 1), tolerance=1e-3)


def test_a_broken_or_missing_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(GkdError, match="is not an ONNX model that onnxruntime can open"):
        session(tmp_path / "model.onnx")
    with pytest.raises(GkdError, match="does not exist: run `gkd export`"):
        session(tmp_path / "none.onnx")


@pytest.mark.parametrize(
    "sent", [pytest.param(20, marks=pytest.mark.slow), 32, pytest.param(50, marks=pytest.mark.slow)]
)
def test_the_preprocessing_of_published_weights_is_in_the_graph(sent, tmp_path):
    """Bicubic, and cut to the middle; at several batch sizes, on pixels that overshoot."""
    network = digits_network(
        in_channels=3, image_size=28, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic", crop_fraction=0.875
    ).eval()
    write_onnx(network, tmp_path / "m.onnx", classes=DIGITS, channels=3, image_size=sent)
    images = np.where(random_images(8, sent, 3) > 127, 255, 0).astype(np.uint8)
    assert parity(network, tmp_path / "m.onnx", images, tolerance=1e-4)["max_abs"] < 1e-4
    told = preprocessing(network)
    assert (told["interpolation"], told["crop_fraction"]) == ("bicubic", 0.875)
