"""Every shipped configuration runs: two epochs of small networks on a few digits, teacher and student."""

from pathlib import Path

import pytest
import torch
import yaml

from components import distill, teacher
from gkd_core import schemes
from gkd_core.config import Params, load_params, parse_params
from gkd_core.files import read_json
from gkd_core.models.network import Network, NetworkSpec
from gkd_core.schedules import create_schedule

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


@pytest.mark.slow  # not one of them, but all together
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
    assert facts["scheme"] == params.distill.scheme
    assert facts["schedule"] == params.distill.schedule or params.distill.schedule is None


def is_its_own_reference(params: Params) -> bool:
    """Whether the distill step and the reference `kd` would be one training: the same specification and teachers."""
    one = Network(NetworkSpec("resnet8", "auto", ("a", "b"), 1, 8, (0.2,), (0.3,)))
    several = len(params.teacher.members)
    mine, plain = (distill._specification(params, reference, several or 1) for reference in (None, "kd"))
    if mine.method != plain.method or mine.scheme == "assistant":  # an assistant is not who teaches plain KD
        return False
    how = [(spec.hyperparameters | {"temperature": spec.temperature}) for spec in (mine, plain)]
    facts = {"seed": 0, "epochs": 1, "train_labels": torch.arange(2)}
    for spec, arguments in zip((mine, plain), how, strict=True):
        scheme = schemes.get(spec.scheme)
        if not scheme.has_own_loss:
            arguments["weight"] = scheme.create_loss(spec, one, [one], facts).weight
    curves = [create_schedule(spec.schedule, epochs=10, **spec.curve) for spec in (mine, plain)]
    times = [0.0, 2.5, 9.9]
    # Views and weightings: cross_modal shows both the same, averaging is what plain KD does with several.
    averaged = mine.scheme_options.get("weighting", "average") == "average"
    same_teachers = averaged and mine.scheme not in ("mutual", "amalgamation", "born_again")
    return same_teachers and how[0] == how[1] and [curves[0](t) for t in times] == [curves[1](t) for t in times]


def test_no_student_is_compared_with_itself():
    """A reference that is the student's own training over again would be a difference of nothing but zeros."""
    same = {file.stem for file in CONFIGS if is_its_own_reference(load_params(file))}
    assert same == {"digits-kd", "digits-ensemble"}
    assert {file.stem for file in CONFIGS if file.stem in same and load_params(file).references.kd} == set()


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({}, True),
        ({"temperature": 4.0}, True),
        ({"temperature": 2.0}, False),
        ({"options": {"kd": {"weight": 0.9}}}, True),
        ({"options": {"kd": {"weight": 0.5}}}, False),
        ({"schedule": "gompertz"}, False),
        ({"curve": {"beta_max": 2.0}}, False),
        ({"method": "dkd"}, False),
        ({"scheme": "mutual"}, False),
        ({"scheme": "born_again"}, False),
    ],
)
def test_what_makes_a_student_its_own_reference(changes, same):
    assert is_its_own_reference(parse_params({"distill": {"method": "kd"} | changes})) is same


def test_there_is_one_for_every_scheme():
    assert {load_params(file).distill.scheme for file in CONFIGS} == set(schemes.names())
