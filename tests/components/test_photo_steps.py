"""All steps on a folder of photos, whose training pictures are kept whole."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from components import distill, evaluate, export, prepare, teacher
from gkd_core.config import Params, parse_params
from gkd_core.data.images import read_image
from gkd_core.data.photos import Photos
from gkd_core.data.prepared import PreparedData
from gkd_core.export.manifest import read_manifest
from gkd_core.files import read_json
from gkd_core.serving.classify import classify_files, ranked
from gkd_core.serving.model import Model, ModelFile
from tests.unit.scenes import write_scenes

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def run(root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Params]:
    """Everything from the pictures to the report; the student is smaller than the images, and grey."""
    out = tmp_path_factory.mktemp("run")
    short = {"epochs": 1, "batch_size": 6, "device": "cpu"}
    params = parse_params(
        {
            "data": {"source": "folder", "root": str(root), "image_size": 72, "crop": "squash"},
            "teacher": {"name": "resnet8", "train": short},
            "student": {"name": "resnet8", "image_size": 48, "channels": 1},
            "distill": {"method": "kd", "scheme": "cross_modal"},
            "train": short,
            "references": {"kd": False},
            "export": {"fp16": True, "int8": {"min_agreement": 0.0, "max_accuracy_drop": 1.0}},
            "evaluate": {"latency_runs": 10},
        }
    )
    prepare.run(out=out / "data", params=params)
    teacher.run(data=out / "data", out=out / "teacher", work=out / "work", params=params)
    both: dict[str, Any] = {"data": out / "data", "teacher": out / "teacher", "work": out / "work", "params": params}
    distill.run(**both, out=out / "baseline", reference="baseline")
    distill.run(**both, out=out / "kd", reference="kd")
    distill.run(**both, out=out / "student")
    at = {name: out / name for name in ("data", "teacher", "student")}
    export.run(**at, out=out / "deploy", params=params)
    at |= {name: out / name for name in ("baseline", "kd", "deploy")}
    evaluate.run(**at, out=out / "report", params=params)
    return out, params


def test_every_step_works_on_whole_pictures(run: tuple[Path, Params]) -> None:
    out, _ = run
    data = PreparedData.open(out / "data")
    assert isinstance(data.train.images, Photos)
    metrics = read_json(out / "report" / "metrics.json", "report")
    assert metrics["data"]["test_images"] == 18
    assert metrics["onnx"]["agreement_with_student"] == 1.0
    manifest = read_manifest(out / "deploy")
    assert manifest["model"]["input_shape"] == [72, 72, 3]
    assert manifest["int8"]["calibration_images"] == 18
    assert (out / "report" / "report.html").stat().st_size > 10_000


def test_a_file_is_looked_at_as_the_evaluation_looked_at_it(run: tuple[Path, Params], root: Path) -> None:
    """Its metadata says how a square is made, in every precision; `gkd predict` does as it says."""
    out, _ = run
    test = PreparedData.open(out / "data").test
    files = sorted((root / "test").rglob("*.png"))
    assert np.array_equal(test.images[1], read_image(files[1], 72, 3, crop="squash"))
    for name in ("model.onnx", "model_int8.onnx", "model_fp16.onnx"):
        entries = {entry.key: entry.value for entry in onnx.load(out / "deploy" / name).metadata_props}
        assert entries["crop"] == "squash"
        model = Model(ModelFile(out / "deploy" / name), version="1")
        assert model.crop == "squash"
        expected = ranked(model.run(model.from_pictures(np.array(test.images))), model.classes, 3)
        together = [each["predictions"] for file in files for each in classify_files(model, [file], 3)]
        for one, other in zip(together, expected, strict=True):
            assert [row["class"] for row in one] == [row["class"] for row in other]
            assert [row["probability"] for row in one] == pytest.approx([r["probability"] for r in other], abs=1e-3)
