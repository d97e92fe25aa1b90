"""A folder of JPEGs and PNGs of mixed sizes and modes goes through all the steps by the command line."""

import json
import os
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import yaml
from PIL import Image

from tests import forked

ROOT = Path(__file__).parents[2]
COLOURS = {"grün": (40, 180, 60), "rot": (200, 40, 40), "blau": (40, 60, 200)}
PARAMS = {
    "data": {"source": "folder", "root": "photos", "image_size": 16, "unreadable": "drop"},
    "teacher": {"name": "resnet8", "train": {"epochs": 3, "batch_size": 16, "device": "cpu"}},
    "student": {"name": "wrn_16_1"},
    "train": {"epochs": 2, "batch_size": 16, "device": "cpu"},
    "evaluate": {"latency_runs": 10},
}


def write_photos(root: Path) -> None:
    """Noisy images of one dominant colour; every size, mode and file form that cameras and editors leave behind."""
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (root / name).mkdir(parents=True)
        for i in range(24):
            size = (int(rng.integers(20, 90)), int(rng.integers(20, 90)))
            pixels = np.clip(rng.normal(colour, 30, (size[1], size[0], 3)), 0, 255).astype(np.uint8)
            image = Image.fromarray(pixels)
            match i % 6:
                case 0:
                    image.save(root / name / f"{i}.jpg")
                case 1:
                    image.convert("CMYK").save(root / name / f"{i}.jpeg")
                case 2:
                    image.quantize(32).save(root / name / f"{i}.png")
                case 3:
                    alpha = image.convert("RGBA")
                    alpha.putalpha(200)
                    alpha.save(root / name / f"{i}.png")
                case 4:
                    exif = Image.Exif()
                    exif[0x0112] = 6  # orientation: rotated by a quarter turn
                    image.save(root / name / f"{i}.JPG", exif=exif)
                case 5:
                    image.convert("L").convert("RGB").save(root / name / f"{i}.webp") if i > 10 else image.save(
                        root / name / f"{i}.bmp"
                    )
    (root / "rot" / "broken.jpg").write_bytes(b"\xff\xd8 not a picture")


@pytest.mark.slow
def test_every_step_on_a_folder_of_images(tmp_path):
    write_photos(tmp_path / "photos")
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(PARAMS, allow_unicode=True))

    def gkd(*arguments: str) -> dict:
        environment = os.environ | {"MLFLOW_TRACKING_URI": "sqlite:///mlflow.db"}
        result = forked.gkd(*arguments, cwd=tmp_path, env=environment)
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout.splitlines()[-1])

    prepared = gkd("prepare")
    assert prepared["classes"] == sorted(COLOURS)
    assert prepared["dropped"] == ["rot/broken.jpg"]
    assert sum(prepared["counts"].values()) == 72
    gkd("teacher")
    gkd("distill", "--reference", "baseline", "--out", "baseline")
    gkd("distill", "--reference", "kd", "--teacher", "teacher", "--out", "kd")
    gkd("distill", "--teacher", "teacher")
    gkd("export")
    gkd("evaluate")
    gkd("register")
    outcome = gkd("summary")
    assert outcome["registry"]["version"] in (1, "1")

    session = onnxruntime.InferenceSession(tmp_path / "deploy" / "model.onnx")
    classes = json.loads((tmp_path / "deploy" / "manifest.json").read_text())["classes"]
    assert classes == sorted(COLOURS)
    pixels = np.load(tmp_path / "data" / "test" / "images.npy")
    (logits,) = session.run(None, {"image": pixels})
    labels = np.load(tmp_path / "data" / "test" / "labels.npy")
    assert outcome["student"]["top1"] == pytest.approx((logits.argmax(1) == labels).mean(), abs=1e-6)
