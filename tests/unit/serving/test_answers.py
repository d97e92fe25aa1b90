"""Answers are counted by class where there is something to compare them with, and nowhere else."""

import json

import numpy as np
import pytest

from gkd_core.serving.answers import Answers, Decisions
from gkd_core.serving.metrics import Metrics
from gkd_core.serving.model import InvalidModelError, Model, ModelFile

REFERENCE = {"images": 20, "predicted": [2] * 10, "mean_confidence": 0.5}


@pytest.fixture(scope="module")
def deploy(tmp_path_factory, make_deploy):
    return make_deploy(tmp_path_factory.mktemp("deploy"), reference=REFERENCE)


def opened(deploy, *, version="1", **changes) -> Model:
    manifest = json.loads((deploy / "manifest.json").read_text()) | changes
    return Model(ModelFile(deploy / "model.onnx", manifest=manifest), version=version)


def lines(metrics: Metrics) -> list[str]:
    return [line for line in metrics.text().decode().splitlines() if "predictions" in line or "confidence" in line]


def test_a_model_without_a_reference_counts_nothing(deploy):
    metrics, model = Metrics(), Model(ModelFile(deploy / "model.onnx"), version="1")
    metrics.serving(model)
    assert model.answers is None
    assert lines(metrics) == []
    twins = opened(deploy, classes=["a", "a", *"cdefghij"])
    assert twins.answers is None, "Prometheus tells classes apart by name"


@pytest.mark.parametrize("predicted", [[2] * 9, [0] * 10, [-1, *[2] * 9]])
def test_a_reference_of_something_else_is_refused(deploy, predicted):
    with pytest.raises(InvalidModelError, match="counts no images of 10 classes"):
        opened(deploy, reference=REFERENCE | {"predicted": predicted})


def test_another_model_begins_at_nothing(deploy):
    metrics, first = Metrics(), opened(deploy)
    metrics.serving(first)
    first.run(np.zeros((3, 8, 8, 1), np.uint8))
    assert 'gkd_confidence_count{version="1"} 3.0' in lines(metrics)
    metrics.serving(opened(deploy, version="2"))
    assert 'gkd_confidence_count{version="2"} 0.0' in lines(metrics)
    assert not [line for line in lines(metrics) if 'version="1"' in line]


def test_what_is_not_finite_names_no_class():
    answers = Answers(("a", "b"), {"images": 2, "predicted": [1, 1], "mean_confidence": 0.5})
    answers.add(np.array([[np.nan, 0], [0, np.inf], [0, 0]], np.float32))
    assert answers.read() == ([1, 0], 0.5)


def test_a_decision_is_a_class_or_none():
    decisions = Decisions(0.25)
    decisions.add(np.array([2, -1, 0]))
    decisions.add(np.array([-1, -1]))
    assert decisions.read() == (2, 3)
