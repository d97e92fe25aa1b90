"""Conditions on a version: the grammar, what holds, and what servers' counts say."""

import math

import pytest

from gkd_core.conditions import LIVE_METRICS, Condition, judge, live_values, parse_condition
from gkd_core.errors import GkdError

ALL = ["live." + name for name in LIVE_METRICS]


@pytest.mark.parametrize(
    ("text", "condition"),
    [
        ("onnx_top1>=0.9", Condition("onnx_top1", ">=", 0.9)),
        (" int8_top1  <  1e-3 ", Condition("int8_top1", "<", 0.001)),
        ("onnx_latency_ms_p50<=5", Condition("onnx_latency_ms_p50", "<=", 5.0)),
        ("a/b.c-d>-.5", Condition("a/b.c-d", ">", -0.5)),
        ("live.error_rate<=0.01", Condition("live.error_rate", "<=", 0.01)),
    ],
)
def test_what_is_a_condition(text, condition):
    assert parse_condition(text) == condition


@pytest.mark.parametrize(
    "text", ["", "top1", "top1=1", "top1==1", "top1>=", ">=1", "top1>=nan", "top1>=1;x<2", "top1=>1"]
)
def test_what_is_none_is_told_in_one_sentence(text):
    with pytest.raises(GkdError, match="is no condition: write NAME>=NUMBER"):
        parse_condition(text)


def test_a_live_metric_that_there_is_not():
    with pytest.raises(GkdError, match=r"'live.eror_rate' is unknown; did you mean 'live.error_rate'\?"):
        parse_condition("live.eror_rate<1")


def check(*texts, version=3, **values):
    return judge([parse_condition(text) for text in texts], values, version=version)


def test_all_must_hold_and_each_has_its_sentence():
    found = check("a>=0.5", "b<=2", a=0.5, b=2.0)
    assert found.passed
    assert found.sentence == "version 3 meets a>=0.5, b<=2"
    found = check("a>0.5", "b<2", "b<3", a=0.5, b=2.0)
    assert not found.passed
    assert [each.passed for each in found.checks] == [False, False, True]
    assert found.sentence == "version 3 was not promoted: a is 0.5, and > 0.5 is asked; b is 2, and < 2 is asked"
    assert found.as_dict()["reasons"][0] | {"sentence": ""} == {
        "check": "a>0.5", "passed": False, "value": 0.5, "limit": 0.5, "sentence": ""
    }  # fmt: skip


def test_decimal_fractions_are_compared_as_they_are_written():
    assert check("a>=0.3", "a<=0.3", a=0.1 + 0.2).passed


def test_what_is_not_known_does_not_hold():
    for condition in ("a>=0", "a<=0", "a>0", "a<0"):
        assert not check(condition, a=math.nan).passed
        assert "is not known: nobody asked yet" in check(condition, a="nobody asked yet").sentence


def test_a_metric_that_the_version_has_not():
    with pytest.raises(GkdError, match=r"metric of version 3 'top' is unknown; did you mean 'top1'\? Known: nll, top1"):
        check("top>=1", top1=1.0, nll=2.0)


def test_what_was_taken_back_by_hand_stays_back():
    found = judge([parse_condition("a>=0")], {"a": 1.0}, version=3, promotion_blocked="Monday: it was worse")
    assert not found.passed
    assert "taken back by hand (Monday: it was worse)" in found.sentence


def samples(lines: dict[str, float]) -> dict:
    """`name{a="b",c="d"}` as a key of samples."""
    found = {}
    for line, value in lines.items():
        name, _, rest = line.partition("{")
        labels = [part.split("=") for part in rest.rstrip("}").replace('"', "").split(",") if part]
        found[name, frozenset((label, text) for label, text in labels)] = float(value)
    return found


SERVER = {
    'gkd_model_info{version="3",model_sha256="abc",precision="fp32"}': 1,
    'gkd_reloads_total{outcome="loaded"}': 0,
    'gkd_requests_total{endpoint="infer",status="200"}': 90,
    'gkd_requests_total{endpoint="classify",status="503"}': 4,
    'gkd_requests_total{endpoint="infer",status="400"}': 6,
    'gkd_requests_total{endpoint="ready",status="503"}': 1000,
    'gkd_request_seconds_bucket{endpoint="infer",le="0.01"}': 50,
    'gkd_request_seconds_bucket{endpoint="infer",le="0.03"}': 100,
    'gkd_request_seconds_bucket{endpoint="infer",le="+Inf"}': 100,
    'gkd_request_seconds_bucket{endpoint="ready",le="+Inf"}': 1000,
    'gkd_predictions_total{version="3",class="a"}': 30,
    'gkd_predictions_total{version="3",class="b"}': 10,
    'gkd_reference_share{version="3",class="a"}': 0.5,
    'gkd_reference_share{version="3",class="b"}': 0.5,
    'gkd_confidence_sum{version="3"}': 24,
    'gkd_confidence_count{version="3"}': 40,
    'gkd_reference_confidence{version="3"}': 0.9,
    'gkd_decisions_total{version="3",decision="class"}': 30,
    'gkd_decisions_total{version="3",decision="none"}': 10,
}


def live(*servers, version=3, digests=("abc",)):
    named = {f"server {number}": samples(lines) for number, lines in enumerate(servers, 1)}
    return live_values(named, version=version, digests=frozenset(digests))


def test_what_a_server_counted():
    assert live(SERVER) == pytest.approx({
        "live.requests": 100,
        "live.error_rate": 0.04,  # 5xx; what a client did wrong is no error of the model's
        "live.latency_ms_p50": 10,
        "live.latency_ms_p95": 28,  # 45 of the 50 in the bucket from 10 to 30
        "live.latency_ms_p99": 29.6,
        "live.images": 40,
        "live.class_drift": 0.25,
        "live.confidence_shift": 0.3,
        "live.none_of_these": 0.25,
    })  # fmt: skip


def test_counts_of_several_servers_add_up():
    idle = SERVER | {line: 0 for line in SERVER if "_total" in line or "_bucket" in line or "confidence_" in line[:15]}
    twice, both = live(SERVER, SERVER), live(SERVER, idle | {'gkd_confidence_count{version="3"}': 0})
    assert (twice["live.requests"], twice["live.images"]) == (200, 80)
    for name in ("error_rate", "latency_ms_p95", "class_drift", "confidence_shift", "none_of_these"):
        assert twice[f"live.{name}"] == pytest.approx(live(SERVER)[f"live.{name}"])
        assert both[f"live.{name}"] == pytest.approx(live(SERVER)[f"live.{name}"])


def test_another_model_says_nothing():
    assert live(SERVER, digests=["abc", "def"])["live.requests"] == 100
    assert live(SERVER, version=4, digests=[]) == dict.fromkeys(ALL, "server 1 serves version 3, not 4")
    assert live(SERVER, digests=["def"]) == dict.fromkeys(ALL, "server 1 serves another model (abc) than version 3")
    assert live(SERVER, {}) == dict.fromkeys(ALL, "server 2 serves no model of gkd")


def test_nothing_counted_yet_and_no_reference():
    none = live({line: value for line, value in SERVER.items() if "info" in line})
    assert none["live.requests"] == 0
    assert none["live.error_rate"] == none["live.latency_ms_p50"] == "no request was counted yet"
    assert "came without a reference" in none["live.class_drift"]
    new = live(SERVER | {'gkd_confidence_count{version="3"}': 0})
    assert (new["live.images"], new["live.class_drift"]) == (0, "no image was counted yet")
    assert none["live.none_of_these"] == "the model gives every image a class: export it with decide"
    idle = live(SERVER | {f'gkd_decisions_total{{version="3",decision="{each}"}}': 0 for each in ("class", "none")})
    assert idle["live.none_of_these"] == "no image was counted yet"


def test_a_server_that_has_changed_its_model_counts_requests_of_both():
    found = live(SERVER | {'gkd_reloads_total{outcome="loaded"}': 1})
    assert "has changed its model" in found["live.error_rate"]
    assert found["live.class_drift"] == 0.25, "answers are counted by model"
