"""A real server counts its answers; the alert rules of docs and bundles see them drift, evaluated on its /metrics."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from gkd_core.conditions import live_values
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
    """The rules of a bundle that is called digits."""
    file = tmp_path_factory.mktemp("rule") / "rule.yaml"
    render("prometheus-rule.yaml.j2", file, {"name": "digits", "classes": CLASSES})
    return yaml.safe_load(file.read_text())["spec"]["groups"]


def test_the_page_shows_the_bundles_rule(groups):
    (block,) = re.findall(r"```yaml\n(groups:.*?)```", (ROOT / "docs/serving.md").read_text(), re.DOTALL)
    assert yaml.safe_load(block) == {"groups": groups}
    for rule in groups[0]["rules"]:
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
