"""What parameters name beside a run's own folders is looked at before it: missing, something else, elsewhere."""

from pathlib import Path

import pytest
from PIL import Image

from components.graph import STEP
from components.places import local_path, refuse_missing
from gkd_core.config import parse_params
from gkd_core.errors import GkdError
from gkd_core.evaluation.frontier import Candidate, Frontier

TWO = {"scheme": "ensemble", "method": "kd"}
NAMED = {
    "teacher.source": {"teacher": {"source": "there"}},
    "teacher.weights": {"teacher": {"name": "resnet8", "weights": "folder/there"}},
    "teacher.members.1.weights": {
        "teacher": {"members": [{"name": "resnet8"}, {"name": "resnet8", "weights": "there.pth"}]},
        "distill": TWO,
    },
    "student.weights": {"student": {"name": "mobilenet_v3_small", "weights": "there.safetensors"}},
    "evaluate.frontier": {"evaluate": {"frontier": "there"}},
    "gate.deploy_bench": {"gate": {"max_latency_ms": 1, "deploy_bench": "there.json"}},
    "decide.unknown": {"decide": {"precision": 0.9, "unknown": "there"}},
}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def told(content, **more) -> list[str]:
    with pytest.raises(GkdError) as caught:
        refuse_missing(parse_params(content), **more)
    assert caught.value.exit_code == 2
    return str(caught.value).splitlines()


@pytest.mark.parametrize(("name", "content"), NAMED.items(), ids=NAMED)
def test_each_parameter_that_names_a_file_or_a_folder_is_missed_by_its_name(name, content, here):
    (sentence,) = told(content)
    assert sentence.startswith(f"{name} is ")
    assert f" {here}/" in sentence, "where it was looked for"
    assert sentence.count(": ") == 1, "and what to do"
    # Unless it comes while the run goes on, or nobody reads it.
    refuse_missing(parse_params(content), made=lambda path: path.name.startswith("there"))
    refuse_missing(parse_params(content), [STEP["prepare"], STEP["export"]])


def test_all_that_is_missing_is_told_at_once():
    content = NAMED["student.weights"] | NAMED["decide.unknown"] | NAMED["teacher.source"]
    assert [line.partition(" is ")[0] for line in told(content)] == [
        "teacher.source",
        "student.weights",
        "decide.unknown",
    ]


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("teacher.source", "models:/flowers@champion"),
        ("teacher.source", "torchvision:ResNet18_Weights.IMAGENET1K_V1"),
        ("student.weights", "pretrained"),
        ("student.weights", "IMAGENET1K_V1"),
        ("student.weights", "s3://bucket/own.safetensors"),
        ("student.weights", "hf-hub:timm/mobilenetv3_small_100.lamb_in1k"),
        ("teacher.members.0.weights", "models:/flowers/3"),
    ],
)
def test_what_lies_elsewhere_is_no_path(name, address):
    assert local_path(name, address) is None


def test_nothing_is_fetched_to_look_at_a_name(monkeypatch):
    monkeypatch.setattr("socket.socket", lambda *_, **__: pytest.fail("it went out"))
    for weights in ("pretrained", "IMAGENET1K_V1", "models:/flowers@champion"):
        refuse_missing(parse_params({"student": {"name": "mobilenet_v3_small", "weights": weights}}))
    refuse_missing(parse_params({"student": {"name": "timm:mobilenetv3_small_100", "weights": "hf-hub:timm/x"}}))
    refuse_missing(parse_params({"teacher": {"source": "models:/flowers@champion"}}))


@pytest.mark.parametrize("name", ["evaluate.frontier", "gate.deploy_bench", "decide.unknown"])
def test_an_address_that_no_step_could_fetch_is_told_as_such(name):
    section, key = name.split(".")
    content = {section: NAMED[name][section] | {key: "s3://bucket/there"}}
    (sentence,) = told(content)
    assert sentence.startswith(f"{name} is s3://bucket/there, but only a ")


def test_what_is_there_and_is_something_else_is_told_too(here, teacher):
    (here / "there").mkdir()
    (here / "there.json").write_text("{}")
    (sentence,) = told(NAMED["decide.unknown"])
    assert sentence.startswith("decide.unknown there has no pictures (")
    (sentence,) = told(NAMED["evaluate.frontier"])
    assert sentence.startswith("evaluate.frontier: ")
    assert "frontier.json" in sentence
    (sentence,) = told(NAMED["gate.deploy_bench"])
    assert sentence.startswith("gate.deploy_bench: ")
    (sentence,) = told({"student": {"name": "resnet14", "weights": str(teacher)}})
    assert "are of a resnet8, and student.name is resnet14" in sentence
    (sentence,) = told({"student": {"name": "mobilenet_v3_small", "weights": "IMAGENET1K_V9"}})
    assert "student.weights of mobilenet_v3_small 'IMAGENET1K_V9' is unknown" in sentence
    (sentence,) = told({"student": {"name": "timm:mobilenetv3_small_100", "weights": "lamb_in22k"}})
    assert "student.weights of timm:mobilenetv3_small_100 'lamb_in22k' is unknown" in sentence


def test_what_is_there_is_let_through(here, teacher):
    one = Candidate("one", "resnet8", 3, 0.9, 0.9, 0.8, 0.95, 1.0, 2.0, 0.3, macs=10**6, parameters=10)
    (here / "there").mkdir()
    Frontier([one], None, None, {"processor": "any"}, "d" * 64, "t" * 64).save(here / "there")
    refuse_missing(parse_params(NAMED["evaluate.frontier"] | {"student": {"name": "resnet8", "weights": str(teacher)}}))
    (here / "pictures" / "deep").mkdir(parents=True)
    Image.new("L", (8, 8)).save(here / "pictures" / "deep" / "a.png")
    refuse_missing(parse_params({"decide": {"precision": 0.9, "unknown": "pictures"}}))
