"""Wrong labels are found by a classifier that never saw them."""

from dataclasses import replace

import numpy as np

from gkd_core.data.health import examine, look_at, removals
from gkd_core.data.sources import open_source
from gkd_core.evaluation.label_issues import label_issues
from gkd_core.models.weights import load_model


def test_planted_wrong_labels_are_found_named_and_not_removed(teacher):
    source = open_source("digits")
    examples = source.splits["train"]
    labels = examples.labels[:600].copy()
    wrong = np.random.default_rng(0).choice(len(labels), 12, replace=False)
    labels[wrong] = (labels[wrong] + 1) % 10
    source = replace(source, splits={"train": replace(examples, labels=labels)})
    looks = look_at(source)
    found = label_issues(load_model(teacher), source, looks)
    planted = {f"train/{row}" for row in wrong}
    names = [finding.looks[0].name for finding in found]
    assert len(planted & set(names)) >= 10
    assert len(names) <= 40
    assert len(planted & set(names[:12])) >= 8  # the most certain come first
    row = wrong[0]
    detail = next(finding.detail for finding in found if finding.looks[0].name == f"train/{row}")
    assert f"labelled '{labels[row]}'" in detail
    assert f"looks like '{(labels[row] - 1) % 10}'" in detail
    health = examine(source, looks, suspected=found)
    assert len(health.by_kind()["label_issues"]) == len(found)
    assert not planted & set(removals(health))  # which label is right, a person must say


def test_classes_with_too_few_images_are_left_alone(teacher):
    source = open_source("digits")
    examples = source.splits["train"]
    few = replace(source, splits={"train": replace(examples, labels=examples.labels[:30])})
    assert label_issues(load_model(teacher), few, look_at(few)) == []
