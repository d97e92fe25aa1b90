import math

import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    f1_score,
    log_loss,
    recall_score,
    top_k_accuracy_score,
)

from gkd_core.evaluation.quality import (
    agreement,
    kl_divergence,
    log_probabilities,
    negative_log_likelihood,
    per_class,
    top_k_correct,
)

RANDOM = np.random.default_rng(0)
LOGITS = RANDOM.normal(size=(300, 12)).astype(np.float32) * 3
LABELS = RANDOM.integers(0, 12, 300)


def test_accuracy_and_likelihood_agree_with_scikit_learn() -> None:
    probabilities = np.exp(log_probabilities(LOGITS))
    assert top_k_correct(LOGITS, LABELS, 1).mean() == accuracy_score(LABELS, LOGITS.argmax(1))
    assert top_k_correct(LOGITS, LABELS, 5).mean() == top_k_accuracy_score(LABELS, LOGITS, k=5, labels=np.arange(12))
    assert negative_log_likelihood(LOGITS, LABELS) == pytest.approx(
        log_loss(LABELS, probabilities, labels=np.arange(12))
    )


def test_of_equal_logits_the_first_class_is_taken_as_by_argmax() -> None:
    logits = np.array([[1.0, 1.0, 0.0]], dtype=np.float32)
    assert top_k_correct(logits, np.array([0]), 1).tolist() == [True]
    assert top_k_correct(logits, np.array([1]), 1).tolist() == [False]
    assert top_k_correct(logits, np.array([1]), 2).tolist() == [True]


def test_likelihood_by_hand_and_without_overflow() -> None:
    assert negative_log_likelihood(np.array([[math.log(3), 0.0]]), np.array([0])) == pytest.approx(-math.log(0.75))
    assert negative_log_likelihood(np.array([[0.0, 2000.0]], dtype=np.float32), np.array([0])) == pytest.approx(2000.0)


def test_divergence_by_hand() -> None:
    # p = (3/4, 1/4), q = (1/2, 1/2): ¾ ln 1.5 + ¼ ln ½
    reference, ours = np.array([[math.log(3), 0.0]]), np.array([[7.0, 7.0]])
    assert kl_divergence(reference, ours) == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert kl_divergence(ours, reference) == pytest.approx(0.5 * math.log(2 / 3) + 0.5 * math.log(2))
    assert kl_divergence(LOGITS, LOGITS + 5) == pytest.approx(0.0, abs=1e-6)


def test_agreement_counts_equal_predictions() -> None:
    other = LOGITS.copy()
    other[:30] = -other[:30]
    assert agreement(LOGITS, LOGITS) == 1.0
    assert agreement(LOGITS, other) == pytest.approx(0.9)


def test_classes_by_hand() -> None:
    # Class 2 is never predicted, class 3 has no image.
    labels = np.array([0, 0, 0, 1, 1, 2])
    predicted = np.array([0, 0, 1, 1, 0, 3])
    found = per_class(predicted, labels, 4)
    assert found.support.tolist() == [3, 2, 1, 0]
    np.testing.assert_allclose(found.recall, [2 / 3, 1 / 2, 0, np.nan])
    np.testing.assert_allclose(found.precision, [2 / 3, 1 / 2, np.nan, 0])
    assert found.f1[0] == pytest.approx(2 / 3)


def test_measures_that_count_classes_alike_are_scikit_learns() -> None:
    labels = np.random.default_rng(1).choice(5, 200, p=[0.6, 0.25, 0.1, 0.04, 0.01])
    predicted = np.where(np.random.default_rng(2).random(200) < 0.6, labels, 0)
    found = per_class(predicted, labels, 5)
    assert found.balanced_accuracy == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert found.macro_f1 == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert found.recall.tolist() == pytest.approx(recall_score(labels, predicted, average=None).tolist())


def test_a_class_without_images_does_not_count_and_one_that_is_never_named_counts_zero() -> None:
    labels, predicted = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 0, 3])
    found = per_class(predicted, labels, 4)
    assert found.balanced_accuracy == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert found.macro_f1 == pytest.approx(f1_score(labels, predicted, labels=[0, 1, 2], average="macro"))


def test_images_without_a_label_are_in_no_count() -> None:
    labels, predicted = np.array([0, 0, 1, -1, -1]), np.array([0, 1, 1, 0, 1])
    found, known = per_class(predicted, labels, 2), per_class(predicted[:3], labels[:3], 2)
    assert (found.support.tolist(), found.macro_f1) == (known.support.tolist(), known.macro_f1)
    assert found.precision.tolist() == known.precision.tolist()
