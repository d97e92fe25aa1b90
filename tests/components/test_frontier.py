"""Students by what they cost: trained as a comparison trains them, measured on this machine."""

import csv
import json

import pytest

from components import frontier, teacher
from gkd_core.config import parse_params
from gkd_core.errors import GkdError
from gkd_core.files import kind_of

PARAMS = parse_params(
    {
        "teacher": {"name": "resnet8", "train": {"epochs": 1, "device": "cpu"}},
        "distill": {"method": "kd"},
        "train": {"epochs": 1, "device": "cpu"},
        "evaluate": {"latency_runs": 10},
    }
)


@pytest.fixture(scope="module")
def given(tmp_path_factory, few_digits):
    root = tmp_path_factory.mktemp("frontier")
    teacher.run(data=few_digits, out=root / "teacher", work=root / "work", params=PARAMS)
    return {"data": few_digits, "teacher": root / "teacher", "work": root / "work", "params": PARAMS}


@pytest.mark.slow
def test_one_command_says_which_student(given, tmp_path):
    everything = frontier.run(**given, out=tmp_path / "all", students=["resnet8", "resnet14"], seeds=[0])
    sizes = {one.name: one.size_mb for one in everything.candidates}
    assert sizes["resnet8"] < sizes["resnet14"]
    assert all(one.latency_ms_p50 > 0 and one.macs > 0 and one.parameters > 0 for one in everything.candidates)
    entries = [{"name": "short"}, {"name": "softer", "distill": {"temperature": 8.0}}]
    entries.append({"name": "deeper", "student": {"name": "resnet14"}})
    limit = (sizes["resnet8"] + sizes["resnet14"]) / 2
    found = frontier.run(**given, out=tmp_path / "out", contenders=entries, seeds=[0], max_mb=limit)
    assert found.recommended.name in ("short", "softer")
    by_name = {one.name: one for one in found.candidates}
    assert by_name["short"].latency_ms_p50 == by_name["softer"].latency_ms_p50, "one network has one latency"
    assert len(list((given["work"] / "compare").glob("*/result.json"))) == 3, "what was trained was trained again"
    content = json.loads((tmp_path / "out" / "frontier.json").read_text())
    assert content["recommended"] == found.recommended.name
    assert content["hardware"]["threads"] == 1
    runs = list(csv.DictReader((tmp_path / "out" / "runs.csv").open()))
    assert {row["name"]: float(row["top1"]) for row in runs} == pytest.approx(
        {name: one.top1 for name, one in by_name.items()}, abs=1e-6
    )
    assert all(row["hardware"] and row["torch"] for row in runs)
    assert kind_of(tmp_path / "out") == "frontier"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "give either --students a,b,… or --contenders FILE"),
        ({"students": ["resnet8"], "contenders": ["kd"]}, "give either"),
        ({"students": ["resnett8"]}, "--students: the network 'resnett8' is unknown; did you mean 'resnet8'"),
        ({"students": ["resnet8", "resnet14", "resnet8"]}, "--students names resnet8 twice: name each once"),
        ({"students": ["resnet8"], "max_mb": 0.0}, "--max-mb is 0: give a number above 0"),
        ({"students": ["resnet8"], "max_latency_ms": float("nan")}, "--max-latency-ms is nan"),
        ({"students": ["resnet8"], "max_mb": float("inf")}, "--max-mb is inf: give a number above 0, or leave it out"),
        ({"students": ["resnet8"], "seeds": [0, 0]}, "--seeds names"),
        ({"contenders": [{"name": "a", "train": {"epoch": 1}}]}, "--contenders: 'a': parameter 'train.epoch'"),
    ],
)
def test_what_cannot_be_answered_is_refused_before_anything_is_trained(arguments, words, few_digits, tmp_path):
    given = {"data": few_digits, "teacher": tmp_path, "out": tmp_path / "out", "work": tmp_path / "work"}
    with pytest.raises(GkdError, match=words):
        frontier.run(**given, params=PARAMS, **arguments)
    assert not (tmp_path / "work").exists()
