"""A plugin for tests: a package with a method, a network and an augmentation."""

import shutil
import sys
from pathlib import Path

SOURCE = '''
from typing import Annotated

import torch
from pydantic import Field
from torch import nn

import gkd_core as gkd


@gkd.register_method("gap", source="a test")
class Gap(gkd.losses.Loss):
    """Mean gap of the logits."""

    def __init__(self, student, teacher, *, weight: Annotated[float, Field(gt=0)] = 1.0):
        super().__init__()
        self.weight = weight

    def forward(self, student, teacher, labels, *, epoch=0.0, indices=None):
        gap = (student.logits - teacher.logits).abs().mean()
        return {"ce": self.cross_entropy(student.logits, labels), "gap": self.weight * gap}


@gkd.register_model("tiny", stages=["0"], head="4")
def tiny(num_classes, in_channels):
    convolution = nn.Conv2d(in_channels, 8, 3)
    return nn.Sequential(convolution, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))


@gkd.register_augmentation("noise")
def noise(image, *, strength: Annotated[float, Field(ge=0, le=1)] = 0.1):
    return image + strength * torch.rand(1)
'''
POINT = "[gkd.plugins]\nthings = {package}.things\n"
METADATA = "Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n"


def write_plugin(folder: Path, package: str, source: str = SOURCE, *, installed: bool = False) -> str:
    """Write PACKAGE/things.py there, and what an installed one has beside it; the module's name."""
    shutil.rmtree(folder / package, ignore_errors=True)
    (folder / package).mkdir(parents=True)
    (folder / package / "__init__.py").touch()
    (folder / package / "things.py").write_text(source)
    if installed:
        info = folder / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "entry_points.txt").write_text(POINT.format(package=package))
        (info / "METADATA").write_text(METADATA.format(package=package))
    return f"{package}.things"


def write_methods(file: Path) -> None:
    """What this process knows."""
    from gkd_core.methods import METHODS

    file.write_text(" ".join(METHODS))


def add_to_path(folder: Path) -> None:
    """Of this process; `forget_plugins` takes it back."""
    sys.path.insert(0, str(folder))
