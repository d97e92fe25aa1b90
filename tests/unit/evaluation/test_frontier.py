"""Which students are on the frontier, and which is recommended, worked out by hand."""

import json
import xml.etree.ElementTree as ElementTree

import pytest
from scipy import stats

from gkd_core.errors import GkdError
from gkd_core.evaluation.frontier import Candidate, Frontier
from gkd_core.evaluation.standings import standings


def candidate(name, validation, milliseconds, megabytes, top1=0.5):
    cost = {"latency_ms_p50": milliseconds, "latency_ms_p95": 2 * milliseconds, "size_mb": megabytes}
    return Candidate(name, "resnet8", 3, validation, top1, top1 - 0.01, top1 + 0.01, macs=10**6, parameters=10, **cost)


STUDENTS = [
    candidate("large", 0.90, 4.0, 3.0),
    candidate("slow", 0.80, 5.0, 2.0),  # less accurate and slower than large, but smaller
    candidate("small", 0.80, 1.0, 0.5),  # as accurate as slow, faster and smaller
    candidate("tiny", 0.60, 0.5, 0.1),
    candidate("twin", 0.60, 0.5, 0.1, top1=0.9),  # the same by all that is chosen by
    candidate("fat", 0.70, 1.0, 0.6),  # beaten by small
]


def frontier(milliseconds=None, megabytes=None, candidates=STUDENTS):
    return Frontier(candidates, milliseconds, megabytes, {"processor": "a | b"}, "d" * 64, "t" * 64)


def test_on_it_is_whom_no_other_beats():
    assert [one.name for one in frontier().pareto] == ["tiny", "twin", "small", "large"]


@pytest.mark.parametrize(
    ("milliseconds", "megabytes", "name", "words"),
    [
        (None, None, "large", "of all 6"),
        (4.0, 3.0, "large", "of the 5 of 6"),
        (1.0, 1.0, "small", "of the 4 of 6 that keep to 1 ms and 1 MB"),
        (None, 0.55, "small", "that keep to 0.55 MB"),
        (0.9, None, "tiny", "that keep to 0.9 ms"),
        (5.0, 2.5, "small", "of the 5 of 6"),  # slow is as accurate
    ],
)
def test_recommended_is_the_most_accurate_on_validation_within_the_limits(milliseconds, megabytes, name, words):
    found = frontier(milliseconds, megabytes)
    assert found.recommended.name == name
    assert found.sentence().startswith(f"{name} (resnet8): the most accurate on validation ")
    assert words in found.sentence()


def test_where_nothing_keeps_to_the_limits_it_says_what_comes_nearest():
    found = frontier(0.1, 0.05)
    assert found.recommended is None
    assert found.sentence() == (
        "None of the 6 keeps to 0.1 ms and 0.05 MB: the fastest is tiny with 0.5 ms, the smallest tiny with 0.1 MB."
    )
    assert found.as_dict()["recommended"] is None


def test_the_interval_is_students_over_the_seeds():
    values = {0: 0.5, 1: 0.52, 2: 0.56}
    rows = [{"student": "resnet8", "validation_top1": 0.4 + seed / 10} for seed in values]
    cost = {"latency_ms_p50": 1.0, "latency_ms_p95": 2.0, "size_mb": 1.0, "macs": 1, "parameters": 1}
    found = Candidate.of(rows, standings({"a": values}, "a")[0], cost)
    expected = stats.ttest_1samp([*values.values()], 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.validation_top1 == pytest.approx(0.5)
    once = Candidate.of(rows[:1], standings({"a": {0: 0.5}}, "a")[0], cost)
    assert (once.low, once.high, once.seeds) == (None, None, 1)


@pytest.mark.parametrize(
    ("values", "ends"),
    [
        ({0: 0.36, 1: 0.51}, (0.0, 1.0)),  # Student's with one degree of freedom is 0.435 ± 0.953
        ({0: 0.02, 1: 0.04}, (0.0, 0.157062)),  # 0.03 ± 0.127062
        ({0: 0.97, 1: 0.99}, (0.852938, 1.0)),
    ],
)
def test_an_interval_of_an_accuracy_ends_at_0_and_1(values, ends):
    rows = [{"student": "resnet8", "validation_top1": 0.4} for _ in values]
    cost = {"latency_ms_p50": 1.0, "latency_ms_p95": 2.0, "size_mb": 1.0, "macs": 1, "parameters": 1}
    found = Candidate.of(rows, standings({"a": values}, "a")[0], cost)
    assert (found.low, found.high) == pytest.approx(ends, abs=1e-6)
    shown = frontier(candidates=[found])
    assert f"[{100 * ends[0]:.2f}, {100 * ends[1]:.2f}]" in shown.markdown()
    assert (shown.as_dict()["candidates"][0]["low"], shown.as_dict()["candidates"][0]["high"]) == pytest.approx(ends)


def test_it_is_read_back(tmp_path):
    found = frontier(1.0, None)
    found.save(tmp_path)
    again = Frontier.read(tmp_path)
    assert again == found
    assert again.plot() == found.plot()
    content = json.loads((tmp_path / "frontier.json").read_text())
    for broken, words in (
        ({"candidates": [content["candidates"][0] | {"top1": "high"}]}, r"wrong 'candidates\.0\.top1'"),
        ({"candidates": [{}]}, r"lacks 'candidates\.0\.name'"),
        ({"max_mb": "small"}, "wrong 'max_mb'"),
    ):
        (tmp_path / "frontier.json").write_text(json.dumps(content | broken))
        with pytest.raises(GkdError, match=words):
            Frontier.read(tmp_path)
    del content["data_sha256"]  # as it was before reports showed one
    (tmp_path / "frontier.json").write_text(json.dumps(content))
    with pytest.raises(GkdError, match=r"lacks 'data_sha256'.*run its step again"):
        Frontier.read(tmp_path)


def test_its_files_say_the_same(tmp_path):
    found = frontier(1.0, 1.0)
    found.save(tmp_path)
    page, text = ((tmp_path / f"frontier.{kind}").read_text() for kind in ("html", "md"))
    assert "| small | resnet8 | 80.00 | 50.00 | [49.00, 51.00] | 1.000 ms | 2.000 ms | 0.5 MB | 1 M | 10 " in text
    assert "| frontier, recommended |" in text
    for words in (found.sentence(), "on this machine"):
        assert words in text
        assert words in page.replace("&#39;", "'")
    labels = "".join(ElementTree.parse(tmp_path / "frontier.svg").getroot().itertext())
    assert all(one.name in labels for one in STUDENTS)
    assert "$" not in labels, "numbers of an axis are written in TeX"
