"""A real server counts its answers; the alert rules of docs and bundles see them drift, evaluated on its /metrics."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from gkd_core.conditions import live_values
from gkd_core.decision import Decision, Shown
from gkd_core.export.reference import confidences, reference
from gkd_core.export.render import render
from tests import promql
from tests.conftest import ROOT
from tests.pipelines.conftest import expected

Y, X = np.mgrid[:8, :8]
PATTERNS = [(X * (number % 4) + Y * (number // 4 % 4)) % (2 + number // 16) == 0 for number in range(64)]
IMAGES = 255 * np.stack(PATTERNS)[..., None].astype(np.uint8)  # the network below gives them four of its ten classes
CLASSES = ('a "b"', "new\nline", "back\\slash", *(f"class {number}" for number in range(3, 10)))


@pytest.fixture(scope="module")
def groups(tmp_path_factory) -> list[dict[str, Any]]:
    """The rules of a bundle that is called digits, whose model gives every image a class."""
    return rules(tmp_path_factory.mktemp("rule"), decision=None)


def rules(folder: Path, decision: Decision | None) -> list[dict[str, Any]]:
    file = folder / "rule.yaml"
    render("prometheus-rule.yaml.j2", file, {"name": "digits", "classes": CLASSES, "decision": decision})
    found: list[dict[str, Any]] = yaml.safe_load(file.read_text())["spec"]["groups"]
    return found


SHOWN = Shown(images=64, coverage=0.75, precision=0.95, nll=0.7, calibrated_nll=0.6)
DECISION = Decision(score="energy", threshold=0.0, asked="precision", target=0.95, validation=SHOWN)


def test_the_page_shows_the_rule_of_a_bundle_that_decides(groups, tmp_path):
    (block,) = re.findall(r"```yaml\n(groups:.*?)```", (ROOT / "docs/serving.md").read_text(), re.DOTALL)
    (all_rules,) = rules(tmp_path, DECISION)
    assert yaml.safe_load(block) == {"groups": [all_rules]}
    *others, last = all_rules["rules"]
    assert (others, last["alert"]) == (groups[0]["rules"], "GkdNoneOfTheseDrifted")
    for rule in all_rules["rules"]:
        assert set(rule) in ({"record", "expr"}, {"alert", "expr", "for", "labels", "annotations"})


def test_answers_are_counted_and_drift_is_seen(start, make_deploy, tmp_path, groups):
    logits = expected(make_deploy(tmp_path / "deploy", seed=2, classes=CLASSES) / "model.onnx", IMAGES)
    assert len(set(logits.argmax(axis=1))) > 2, "a mix"
    deploy: Path = make_deploy(tmp_path / "deploy", seed=2, classes=CLASSES, reference=reference(logits))
    server = start(deploy)

    def look() -> promql.Series:
        return promql.read(server.ask("GET", "/metrics").content.decode(), namespace="vision", job="digits")

    first = look()
    counts = first["gkd_predictions_total"]
    assert set(counts.values()) == {0.0}, "a series a class from the start, nothing tried out in it"
    for _ in range(20):
        assert server.infer(IMAGES).status == 200
    same = look()
    predicted = np.bincount(logits.argmax(axis=1), minlength=10)
    for name, count in zip(CLASSES, predicted, strict=True):
        labels = frozenset({"version": "1", "class": name, "namespace": "vision", "job": "digits"}.items())
        assert same["gkd_predictions_total"][labels] == 20 * count
        assert same["gkd_reference_share"][labels] == pytest.approx(count / 64)
    (sure,), (number,) = same["gkd_confidence_sum"].values(), same["gkd_confidence_count"].values()
    assert number == 1280
    assert sure == pytest.approx(20 * confidences(logits).sum(), rel=1e-4)

    of_version = frozenset({"version": "1", "namespace": "vision", "job": "digits"}.items())
    fired, recorded = promql.alerts(groups, first, same)
    assert recorded["gkd:class_drift:1h"] == {of_version: pytest.approx(0.0, abs=1e-9)}
    assert fired == {"GkdClassMixDrifted": {}, "GkdConfidenceDrifted": {}}

    # One image only, whose class is rare: the mix moves by what all other classes had.
    rare = int(logits.argmax(axis=1)[predicted[logits.argmax(axis=1)].argmin()])
    one = IMAGES[logits.argmax(axis=1) == rare][:1]
    for _ in range(20):
        assert server.infer(np.repeat(one, 64, axis=0)).status == 200
    then = look()
    fired, recorded = promql.alerts(groups, same, then)
    assert recorded["gkd:class_drift:1h"][of_version] == pytest.approx(1 - predicted[rare] / 64)
    assert set(fired["GkdClassMixDrifted"]) == {of_version}
    moved = float(abs(confidences(expected(deploy / "model.onnx", one))[0] - confidences(logits).mean()))
    assert bool(fired["GkdConfidenceDrifted"]) == (moved > 0.1)

    # Too few images prove nothing.
    assert server.infer(np.repeat(one, 64, axis=0)).status == 200
    fired, _ = promql.alerts(groups, then, look())
    assert fired == {"GkdClassMixDrifted": {}, "GkdConfidenceDrifted": {}}
    # Another service's rule is not about this one.
    other = promql.read(server.ask("GET", "/metrics").content.decode(), namespace="vision", job="flowers")
    assert promql.alerts(groups, other, other)[0] == {"GkdClassMixDrifted": {}, "GkdConfidenceDrifted": {}}

    assert not [name for name in then if "decisions" in name or "none_of_these" in name], "it has no decision"
    samples = {
        (name, labels): v
        for name, series in promql.read(server.ask("GET", "/metrics").content.decode()).items()
        for labels, v in series.items()
    }
    live = live_values({"here": samples}, version=1, digests=frozenset())
    assert (live["live.requests"], live["live.images"], live["live.error_rate"]) == (41, 2624, 0)
    half = 0.5 * (1 - predicted[rare] / 64)
    assert live["live.class_drift"] == pytest.approx(half, abs=0.02), "half of all images since the start were that one"
    assert 0 < live["live.latency_ms_p50"] <= live["live.latency_ms_p99"]


def test_none_of_these_is_counted_and_a_rise_of_it_is_seen(start, make_deploy, tmp_path):
    logits = expected(make_deploy(tmp_path / "deploy", seed=2, classes=CLASSES) / "model.onnx", IMAGES)
    scores = DECISION.scores(logits)
    found = np.sort(scores)
    places = [n for n in range(16, 23) if found[n] - found[n - 1] > 1e-3]  # 25 % to 34 % are none of these
    middle = float(found[places[0] - 1] + found[places[0]]) / 2
    decision = DECISION.model_copy(update={"threshold": middle})
    # The reference is the manifest's own: a lone file's decisions are counted too.
    server = start(make_deploy(tmp_path / "deploy", seed=2, classes=CLASSES, decision=decision) / "model.onnx")
    alert = [{"rules": [rules(tmp_path, decision)[0]["rules"][-1]]}]

    def look() -> promql.Series:
        return promql.read(server.ask("GET", "/metrics").content.decode(), namespace="vision", job="digits")

    def counts(series: promql.Series) -> dict[str, float]:
        return {dict(labels)["decision"]: value for labels, value in series["gkd_decisions_total"].items()}

    first = look()
    assert counts(first) == {"class": 0, "none": 0}
    assert list(first["gkd_reference_none_of_these"].values()) == [0.25]
    assert "gkd_predictions_total" not in first
    for _ in range(3):
        assert server.infer(IMAGES).status == 200
    same = look()
    none = int((scores < middle).sum())
    assert counts(same) == {"class": 3 * (64 - none), "none": 3 * none}
    assert promql.alerts(alert, first, same)[0] == {"GkdNoneOfTheseDrifted": {}}, "validation had 25 %"

    unsure = IMAGES[scores < middle][:1]
    for _ in range(2):
        assert server.infer(np.repeat(unsure, 64, axis=0)).status == 200
    then = look()
    (risen,) = promql.alerts(alert, same, then)[0]["GkdNoneOfTheseDrifted"].values()
    assert risen == pytest.approx(1 - 0.25)
    samples = {(name, labels): v for name, series in then.items() for labels, v in series.items()}
    live = live_values({"here": samples}, version=1, digests=frozenset())
    assert live["live.none_of_these"] == pytest.approx((3 * none + 128) / (3 * 64 + 128))
