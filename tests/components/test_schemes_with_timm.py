"""Each scheme once, through its steps, with networks of timm: convolutional ones, and a transformer."""

import json
from pathlib import Path

import pytest

from components import distill, teacher
from gkd_core import schemes
from gkd_core.config import parse_params
from gkd_core.models.network import read_spec

SHORT = {"epochs": 1, "device": "cpu", "batch_size": 50}
RESNET, EFFICIENT, TRANSFORMER = "timm:test_resnet", "timm:test_efficientnet", "timm:test_vit"
LOW, HIGH = [str(i) for i in range(6)], [str(i) for i in range(4, 10)]
KD = {"method": "kd"}
# By scheme: the teacher section, the student section, and the method.
SCHEMES = {
    "single": ({"name": EFFICIENT}, {"name": RESNET}, {"method": "gompertz"}),
    "ensemble": ({"members": [{"name": RESNET}, {"name": EFFICIENT}]}, {"name": RESNET}, KD),
    "assistant": ({"name": EFFICIENT, "assistants": [RESNET], "assistant_distill": KD}, {"name": RESNET}, KD),
    "mutual": ({"name": RESNET}, {"name": EFFICIENT}, KD),
    "born_again": ({"name": RESNET}, {"name": RESNET}, KD | {"scheme_options": {"born_again": {"generations": 2}}}),
    "amalgamation": (
        {"members": [{"name": RESNET, "classes": LOW}, {"name": EFFICIENT, "classes": HIGH}]},
        {"name": RESNET},
        KD,
    ),
    "cross_modal": ({"name": EFFICIENT}, {"name": TRANSFORMER, "image_size": 32}, {"method": "gompertz"}),
}


def test_every_scheme_is_here():
    assert set(SCHEMES) == set(schemes.names())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_scheme_takes_networks_of_timm(scheme: str, few_digits: Path, tmp_path: Path) -> None:
    taught_by, learns, how = SCHEMES[scheme]
    params = parse_params(
        {
            "teacher": taught_by | {"train": SHORT},
            "student": learns,
            "train": SHORT,
            "distill": how | {"scheme": scheme},
        }
    )
    where = {"data": few_digits, "work": tmp_path / "work", "params": params}
    teacher.run(out=tmp_path / "teacher", **where)
    distill.run(teacher=tmp_path / "teacher", out=tmp_path / "student", **where)
    facts = json.loads((tmp_path / "student" / "training.json").read_text())
    assert facts["network"] == learns["name"] == read_spec(tmp_path / "student").name
    assert 0 <= facts["validation_top1"] <= 1
