"""A decision read from a model's metadata, on logits, and in words."""

import json
import math

import numpy as np
import pytest

from gkd_core.decision import LEAST, METADATA, Decision, Shown, Spread
from gkd_core.errors import GkdError

SHOWN = Shown(images=10, coverage=0.8, precision=0.875, nll=0.5, calibrated_nll=0.4)
LOGITS = np.log(np.array([[8.0, 1.0, 1.0], [1.0, 1.0, 2.0], [1.0, 6.0, 3.0]], np.float32))


def decision(**given):
    return Decision(**{"score": "max_probability", "threshold": 0.55, "asked": "precision", "target": 0.9} | given,
                    validation=SHOWN)  # fmt: skip


def test_an_image_below_the_threshold_is_given_no_class():
    named, score = decision().decide(LOGITS)
    assert named.tolist() == [0, -1, 1]
    assert named.dtype == np.int64
    assert np.allclose(score, [0.8, 0.5, 0.6])


def test_temperature_two_takes_the_square_root_of_odds():
    found = decision(temperature=2.0).probabilities(np.log(np.array([[9.0, 1.0]])))
    assert np.allclose(found, [[0.75, 0.25]])


def test_energy_is_the_logsumexp_of_the_logits_whatever_the_temperature():
    named, score = decision(score="energy", temperature=3.0, threshold=math.log(5)).decide(LOGITS)
    assert np.allclose(score, np.log([10, 4, 10]))
    assert named.tolist() == [0, -1, 1]


def test_each_class_may_have_its_own_threshold_and_one_may_never_be_named():
    named, _ = decision(threshold=0.1, thresholds=(0.9, None, 0.45)).decide(LOGITS)
    assert named.tolist() == [-1, 2, -1]


def test_without_a_threshold_no_image_is_given_a_class():
    assert decision(threshold=None).decide(LOGITS)[0].tolist() == [-1, -1, -1]


def test_a_logit_that_is_no_number_gives_no_class():
    assert decision().decide(np.array([[np.nan, 1.0]]))[0].tolist() == [-1]


def test_a_score_of_features_must_be_the_graphs():
    mine = decision(score="feature_distance", threshold=-4.0)
    assert mine.decide(LOGITS, np.array([-5.0, -3.0, -4.0]))[0].tolist() == [-1, 2, 1]
    with pytest.raises(GkdError, match="output `score`"):
        mine.decide(LOGITS)


def test_probability_and_distance_by_hand():
    """a = −10 − 3 · 2 = −16: at a the score loses ln 2, far above it nothing, 10 σ below it 10."""
    mine = decision(score="probability_and_distance", distance=Spread(mean=-10.0, deviation=2.0), threshold=1.0)
    logits = np.log(np.array([[9.0, 1.0], [1.0, 9.0], [9.0, 1.0], [1.0, 1.0]]))
    named, score = mine.decide(logits, mine.scores(logits, np.array([100.0, -16.0, -36.0, 100.0])))
    assert np.allclose(score, [math.log(10), math.log(10) - math.log(2), math.log(10) - 10, math.log(2)], atol=1e-4)
    assert named.tolist() == [0, 1, -1, -1]
    hotter = mine.model_copy(update={"temperature": 2.0})  # 3 : 1
    assert np.allclose(hotter.scores(logits[:1], np.array([100.0])), math.log(4))


def test_a_probability_that_is_one_but_for_rounding_does_not_hide_the_distance():
    mine = decision(score="probability_and_distance", distance=Spread(mean=0.0, deviation=1.0))
    logits = np.array([[0.0, 30.0, 0.0], [0.0, 500.0, 0.0], [0.0, 500.0, 0.0]], np.float32)
    near, surest, far = mine.scores(logits, np.array([9.0, 9.0, -1003.0]))
    assert near == pytest.approx(30 - math.log(2), rel=1e-5)
    assert surest == pytest.approx(-math.log(LEAST), rel=1e-5)
    assert far == pytest.approx(-math.log(LEAST) - 1000, rel=1e-5)
    assert mine.scores(np.zeros((1, 1)), np.array([9.0])) == pytest.approx(-math.log(LEAST))  # one class, no other
    assert mine.decide(np.array([[np.nan, 1.0]]), mine.scores(np.array([[np.nan, 1.0]]), np.zeros(1)))[0] == [-1]


def test_what_is_usual_of_features_has_a_width_that_is_not_zero():
    assert Spread.of(np.array([-4.0, -8.0])) == Spread(mean=-6.0, deviation=2.0)
    assert Spread.of(np.array([-4.0, -4.0])) == Spread(mean=-4.0, deviation=4e-6)
    assert Spread.of(np.zeros(3)).deviation == 1e-6


def test_other_scores_are_written_as_before_and_a_score_needs_what_it_reads():
    assert list(json.loads(decision().as_json())) == [
        *("temperature", "score", "threshold", "thresholds", "asked", "target", "model", "validation")
    ]
    both = decision(score="probability_and_distance", distance=Spread(mean=-1.0, deviation=2.0))
    assert Decision.read({METADATA: both.as_json()}) == both
    assert Decision.model_validate(both.model_dump(mode="json")) == both
    for wrong in ({"score": "probability_and_distance"}, {"distance": {"mean": 0.0, "deviation": 1.0}}):
        with pytest.raises(GkdError, match=r"gkd\.decision is damaged .*probability_and_distance, and to no other"):
            Decision.read({METADATA: json.dumps(json.loads(decision().as_json()) | wrong)})


@pytest.mark.parametrize("thresholds", [None, (0.5, None, 0.25)])
def test_the_metadata_give_the_same_decision_back(thresholds):
    before = decision(thresholds=thresholds)
    assert Decision.read({METADATA: before.as_json()}) == before
    assert Decision.model_validate(json.loads(before.as_json())) == before  # as manifest.json has it
    assert Decision.read({"classes": "[]"}) is None


@pytest.mark.parametrize("damage", ["", "{}", '{"score": "luck"}', "[1]"])
def test_damaged_metadata_are_told_in_one_sentence(damage):
    with pytest.raises(GkdError, match=r"gkd\.decision is damaged .*export it again"):
        Decision.read({METADATA: damage})


def test_the_words_name_score_threshold_goal_and_what_validation_showed():
    text = " ".join(decision(temperature=1.5).words())
    for part in (
        "largest calibrated probability",
        "0.55",
        "none of these",
        "90 %",
        "80.0 %",
        "87.5 %",
        "1.5",
        "0.4000",
    ):
        assert part in text
    assert "calibrated" not in " ".join(decision().words())
