"""Every shipped configuration runs: two epochs of small networks on a few digits, teacher and student.

Networks that start from published weights stay what they are, at a size of few pixels.
"""

import itertools
import re
from pathlib import Path

import pytest
import yaml

from benchmarks.efficientnet_lite import write_weights
from components import distill, teacher
from gkd_core import schemes
from gkd_core.config import load_params, parse_params
from gkd_core.config.contenders import line_up, parse_contenders
from gkd_core.config.space import parse_space, read_space
from gkd_core.files import read_json
from gkd_core.methods import hyperparameters
from gkd_core.schedules import Gompertz, create_schedule
from gkd_core.schemes import DistillationSpec

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
SPACES = sorted((ROOT / "configs" / "spaces").glob("*.yaml"))
CONTENDERS = sorted((ROOT / "configs" / "contenders").glob("*.yaml"))
MOMENT = {"epochs": 2, "batch_size": 50, "device": "cpu"}


def shrunk(file: Path, published: Path) -> dict:
    """The configuration with small networks and no time; everything else as it is.

    Args:
        published: a folder of weights, where the Hugging Face hub stands in the file.
    """
    content = yaml.safe_load(file.read_text())
    section = content["teacher"]
    for part in (content, section):
        part["train"] = part.get("train", {}) | MOMENT
        if part["train"].get("schedule") == "multistep":
            part["train"]["milestones"] = [1]
        if part["train"].get("recipe") == "photos-from-scratch":
            part["train"]["warmup_epochs"] = 0.5
        if part["train"].get("augment", {}).get("crop_padding"):
            part["train"]["augment"]["crop_padding"] = 1
    for network in (section, content["student"]):
        if network.get("weights") == "pretrained":
            name = network["name"].removeprefix("timm:")
            network |= {"weights": str(published / f"{name}.safetensors"), "image_size": 32}
        else:
            network["name"] = "resnet8"
    section["members"] = [member | {"name": "resnet8"} for member in section.get("members", [])]
    section["assistants"] = ["resnet8" for _ in section.get("assistants", [])]
    return content


@pytest.fixture(scope="module")
def teachers(tmp_path_factory) -> Path:
    """Teachers by configuration: most files have the same."""
    return tmp_path_factory.mktemp("teachers")


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """Files of the weights that configurations take from the hub."""
    folder = tmp_path_factory.mktemp("published")
    for version in (0, 2):
        write_weights(version, folder)
    return folder


@pytest.mark.slow  # not one of them, but all together
@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_it_runs(file, tmp_path, few_digits, teachers, published):
    params = parse_params(shrunk(file, published))
    taught = teachers / params.digest("teacher")[:16]
    if not taught.exists():
        teacher.run(data=few_digits, out=taught, work=tmp_path / "work", params=params)
    distill.run(data=few_digits, teacher=taught, out=tmp_path / "student", work=tmp_path / "work", params=params)
    facts = read_json(tmp_path / "student" / "training.json", "the student")
    assert facts["epochs"] == 2
    assert facts["method"] == params.distill.method
    assert facts["scheme"] == params.distill.scheme
    assert facts["schedule"] == params.distill.schedule or params.distill.schedule is None


def how_it_learns(spec: DistillationSpec) -> tuple[object, ...]:
    """A specification with the defaults filled in; a view of its own is the student's, and the references have it."""
    options = {name: parameter.default for name, parameter in hyperparameters(spec.method).items()}
    scheme = schemes.DEFAULT if spec.scheme == "cross_modal" else spec.scheme
    weight = (spec.schedule, spec.curve.get("beta_max", 1.0))
    return spec.method, options | spec.hyperparameters, spec.temperature, weight, scheme, spec.scheme_options


def test_no_student_is_compared_with_itself():
    """Plain KD that is the student's own training over again would be a difference of nothing but zeros."""
    same = set()
    for file in CONFIGS:
        params = load_params(file)
        teachers = len(params.teacher.members) or 1
        mine, plain = (how_it_learns(distill._specification(params, ref, teachers)) for ref in (None, "kd"))
        if mine == plain:
            same.add(file.stem)
            assert not params.references.kd, file.stem
    assert same >= {"digits-kd", "digits-ensemble"}


def test_the_students_of_the_frontier_are_what_its_configuration_takes():
    file = CONFIGS[0].parent / "students" / "flowers.yaml"
    params = load_params(file.parents[1] / "flowers-frontier.yaml")
    lined = line_up(params, contenders=parse_contenders(file.read_text(), str(file)))
    views = {(one.params.student.name, one.params.student.image_size or params.data.image_size) for one in lined}
    assert len(views) == len(lined) == 5
    assert all(one.params.distill.method == "kd" for one in lined)


def test_there_is_one_for_every_scheme():
    assert {load_params(file).distill.scheme for file in CONFIGS} == set(schemes.names())


@pytest.mark.parametrize("file", CONTENDERS, ids=lambda file: file.stem)
def test_contenders_line_up_by_the_commands_in_their_head(file):
    text = file.read_text()
    commands = re.findall(r"^#   gkd compare --params (\S+) --contenders (\S+)", text, re.MULTILINE)
    assert commands
    for params, contenders in commands:
        assert ROOT / contenders == file
        assert line_up(load_params(ROOT / params), contenders=parse_contenders(text, file.name))


def test_the_ablation_has_every_set_of_terms_and_every_solver_and_schedule():
    from typing import get_args

    from gkd_core.losses.wasserstein import Solver
    from gkd_core.methods import SCHEDULES

    text = (ROOT / "configs" / "contenders" / "ablation-gompertz.yaml").read_text()
    lined = line_up(load_params(ROOT / "configs" / "cifar10-proxy.yaml"), contenders=parse_contenders(text, "file"))
    settings = [one.params.distill for one in lined if one.params.distill.method == "gompertz"]
    options = [each.hyperparameters() for each in settings]
    weights = {
        tuple(min(each.get(f"weight_{term}", 1), 1) for term in ("wasserstein", "gradient", "kd")) for each in options
    }
    assert weights == set(itertools.product((0, 1), repeat=3)) - {(0, 0, 0)}  # which is ce
    assert {each["solver"] for each in options} == set(get_args(Solver))
    assert {each.schedule or "gompertz" for each in settings} == set(SCHEDULES)


def test_half_and_double_c_are_those_of_the_epochs_in_the_head():
    file = ROOT / "configs" / "contenders" / "ablation-gompertz.yaml"
    epochs = int(re.search(r"train\.epochs=(\d+)", file.read_text()).group(1))
    base = load_params(ROOT / "configs" / "cifar10-proxy.yaml", [f"train.epochs={epochs}"])
    lined = line_up(base, contenders=parse_contenders(file.read_text(), "file"))
    found = {one.name: one.params.distill.curve.c for one in lined}
    usual = create_schedule("gompertz", epochs=epochs)
    assert isinstance(usual, Gompertz)
    assert found["curve: c halved"] == usual.c / 2 == 7 / 8 / 2
    assert found["curve: c doubled"] == usual.c * 2


def test_each_method_has_as_many_tries_as_the_others():
    """Chosen from more, a method would look better than it is."""
    text = (ROOT / "configs" / "contenders" / "fair-lr.yaml").read_text()
    lined = line_up(load_params(ROOT / "configs" / "cifar10-proxy.yaml"), contenders=parse_contenders(text, "file"))
    methods = [one.params.distill.method for one in lined]
    assert {methods.count(name) for name in ("ce", "kd", "gompertz")} == {6}


@pytest.mark.parametrize("file", SPACES, ids=lambda file: file.stem)
def test_spaces_are_drawn_from_by_the_commands_in_their_head(file):
    command = next(line for line in file.read_text().splitlines() if "gkd search" in line)
    assert f"configs/spaces/{file.name} --params configs/cifar10-proxy.yaml --trials 24" in command
    for base in ("cifar10-proxy", "cifar100-proxy"):
        params = load_params(file.parents[1] / f"{base}.yaml")
        space = read_space(parse_space(file.read_text(), str(file)), params, str(file))
        assert space.has("train.learning_rate")
