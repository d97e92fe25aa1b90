"""Every shipped configuration runs: two epochs of small networks on a few digits, teacher and student."""

from pathlib import Path

import pytest
import yaml

from components import distill, teacher
from gkd_core.arrangements import ARRANGEMENTS
from gkd_core.config import load_params, parse_params
from gkd_core.files import read_json

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
MOMENT = {"epochs": 2, "batch_size": 50, "schedule": "cosine", "milestones": [], "device": "cpu"}


def shrunk(file: Path) -> dict:
    """The configuration with small networks and no time; everything else as it is."""
    load_params(file)
    content = yaml.safe_load(file.read_text())
    content["train"] = content.get("train", {}) | MOMENT
    section = content["teacher"]
    section["train"] = section.get("train", {}) | MOMENT
    section["name"] = content["student"]["name"] = "resnet8"
    section["members"] = [member | {"name": "resnet8"} for member in section.get("members", [])]
    section["assistants"] = ["resnet8" for _ in section.get("assistants", [])]
    return content


@pytest.fixture(scope="module")
def teachers(tmp_path_factory) -> Path:
    """Teachers by configuration: most files have the same."""
    return tmp_path_factory.mktemp("teachers")


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_it_runs(file, tmp_path, few_digits, teachers):
    params = parse_params(shrunk(file))
    taught = teachers / params.digest("teacher")[:16]
    if not taught.exists():
        teacher.run(data=few_digits, out=taught, work=tmp_path / "work", params=params)
    distill.run(data=few_digits, teacher=taught, out=tmp_path / "student", work=tmp_path / "work", params=params)
    facts = read_json(tmp_path / "student" / "training.json", "the student")
    assert facts["epochs"] == 2
    assert facts["method"] == params.distill.method
    assert facts["arrangement"] == params.distill.arrangement
    assert facts["schedule"] == params.distill.schedule or params.distill.schedule is None


def test_there_is_one_for_every_arrangement():
    assert {load_params(file).distill.arrangement for file in CONFIGS} == set(ARRANGEMENTS)
