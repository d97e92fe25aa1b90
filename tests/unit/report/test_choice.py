"""Which images are chosen: ten answers that can be read at a glance, and numpy's own sums."""

from dataclasses import replace

import numpy as np

from gkd_core.report import choice
from gkd_core.report.choice import Answers

#                  0  1  2  3  4  5  6  7  8  9
LABELS = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 2])
STUDENT = np.array([0, 1, 1, 2, 1, 0, 1, 2, 2, 0])
SURE = np.array([0.9, 0.6, 0.8, 0.5, 0.7, 0.9, 0.4, 0.9, 0.8, 0.7])
TEACHER = np.array([0, 0, 1, 1, 1, 1, 2, 2, 2, 0])


def answers(named: np.ndarray, sure: np.ndarray = SURE) -> Answers:
    right = named == LABELS
    return Answers(named, sure, (named + 1) % 3, np.where(right, sure, 1 - sure), np.zeros(10, bool))


def test_answers_are_those_of_the_softmax() -> None:
    random = np.random.default_rng(0)
    logits, labels = random.normal(size=(5000, 4)).astype(np.float32) * 3, random.integers(0, 4, 5000)
    probabilities = np.exp(logits.astype(np.float64)) / np.exp(logits.astype(np.float64)).sum(1, keepdims=True)
    found = Answers.of(logits, labels)
    ordered = np.argsort(-probabilities, axis=1)
    np.testing.assert_array_equal(found.named, ordered[:, 0])
    np.testing.assert_array_equal(found.second, ordered[:, 1])
    np.testing.assert_allclose(found.confidence, probabilities.max(1))
    np.testing.assert_allclose(found.of_label, probabilities[np.arange(5000), labels])
    one = Answers.of(np.array([[1000.0]], np.float32), np.array([0]))
    assert (one.named[0], one.second[0], one.confidence[0]) == (0, 0, 1.0)


def test_a_temperature_is_that_of_the_probabilities_alone() -> None:
    logits, labels = np.log(np.array([[81, 16, 1], [4, 4, 1]], np.float32)), np.array([1, 2])
    found = Answers.of(logits, labels, temperature=2.0)  # the roots 9, 4, 1 and 2, 2, 1
    assert (found.named.tolist(), found.second.tolist()) == ([0, 0], [1, 1])
    np.testing.assert_allclose(found.confidence, [9 / 14, 2 / 5], rtol=1e-6)
    np.testing.assert_allclose(found.of_label, [4 / 14, 1 / 5], rtol=1e-6)
    assert found.withheld.tolist() == [False, False]


def test_the_surest_mistake_comes_first_and_what_is_withheld_last() -> None:
    assert choice.mistakes(answers(STUDENT), LABELS).tolist() == [5, 2, 9, 1, 3]
    some = replace(answers(STUDENT), withheld=np.isin(np.arange(10), [0, 2, 5]))
    assert choice.mistakes(some, LABELS).tolist() == [9, 1, 3, 5, 2]


def test_pairs_are_counted_both_ways_and_one_mistake_makes_none() -> None:
    pairs = choice.confused_pairs(answers(STUDENT), LABELS, 9)
    assert [(pair.first, pair.second, pair.mistakes) for pair in pairs] == [(0, 1, 3), (0, 2, 2)]
    assert pairs[0].first_as_second.tolist() == [2, 1]
    assert pairs[0].second_as_first.tolist() == [5]
    assert len(choice.confused_pairs(answers(STUDENT), LABELS, 1)) == 1
    assert choice.confused_pairs(answers(LABELS), LABELS, 9) == []


def test_a_disagreement_says_who_is_right() -> None:
    found = choice.disagreements(answers(STUDENT), answers(TEACHER, np.full(10, 0.65)), LABELS)
    # Of 1 and 5 the teacher is right, of 6 the student, of 3 neither; on 2 and 9 both err alike.
    assert {who: images.tolist() for who, images in found.items()} == {
        "teacher": [5, 1],
        "student": [6],
        "neither": [3],
    }


def test_the_least_sure_and_the_spread_of_a_class() -> None:
    assert choice.least_sure(answers(STUDENT))[:3].tolist() == [6, 3, 1]
    # The probability of class 0: .9, .4, .2, .5
    assert choice.spread(answers(STUDENT), LABELS, 0, 3).tolist() == [0, 1, 2]
    assert choice.spread(answers(STUDENT), LABELS, 0, 9).tolist() == [0, 3, 1, 2]
    assert choice.spread(answers(STUDENT), LABELS, 0, 1).tolist() == [0]
    assert choice.spread(answers(STUDENT), LABELS, 7, 3).tolist() == []
