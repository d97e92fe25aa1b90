"""A network exported from a notebook."""

import numpy as np
import onnx
import pytest
import torch

from gkd_core.errors import GkdError
from gkd_core.export.deploy import export_onnx
from gkd_core.export.manifest import read_manifest
from gkd_core.export.session import run_session, session
from gkd_core.models.create import create_model
from gkd_core.serving.model import InvalidModelError, Model, ModelFile


def test_a_folder_is_what_the_server_takes_and_without_one_nothing_is_written(tmp_path, monkeypatch):
    network = create_model("resnet8", classes=["cat", "dog"], image_size=8, channels=1)
    path = export_onnx(network, tmp_path / "deploy", image_size=12, channels=3)
    assert path == tmp_path / "deploy" / "model.onnx"
    manifest = read_manifest(tmp_path / "deploy")
    assert (manifest["classes"], manifest["model"]["input_shape"]) == (["cat", "dog"], [12, 12, 3])
    served = Model(ModelFile(path, manifest=manifest), version="1")
    assert (served.facts["network"], served.crop) == ("resnet8", "center")
    images = np.random.default_rng(1).integers(256, size=(3, 12, 12, 3), dtype=np.uint8)
    with torch.no_grad():
        expected = network.eval()(torch.from_numpy(images).permute(0, 3, 1, 2) / 255).logits
    np.testing.assert_allclose(run_session(session(path), images, 3), expected, atol=1e-4)
    monkeypatch.chdir(tmp_path)
    assert export_onnx(network, image_size=12, channels=3) == path.read_bytes()  # and without a folder
    assert [path.name for path in tmp_path.iterdir()] == ["deploy"]


def test_how_a_square_is_made_travels_with_the_file(tmp_path):
    network = create_model("resnet8", classes=["cat", "dog"], image_size=8)
    path = export_onnx(network, tmp_path / "deploy", crop="border", pixels=True)
    assert Model(ModelFile(path), version="1").crop == "border"
    entry = read_manifest(tmp_path / "deploy")["pixels"]["fp32"]
    assert entry["parity"]["differing"] == 0, "and the file for pictures of any size makes it so"
    assert Model(ModelFile(path.with_name(entry["file"])), version="1").picture == (8, 3)
    with pytest.raises(GkdError, match="give a folder"):
        export_onnx(network, pixels=True)
    model = onnx.load(path)
    next(entry for entry in model.metadata_props if entry.key == "crop").value = "middle"
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(InvalidModelError, match="cropped by 'middle'"):
        Model(ModelFile(tmp_path / "other.onnx"), version="1")
