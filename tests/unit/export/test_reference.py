"""What a model answers on the validation images, in numbers worked out by hand."""

import math

import numpy as np
import pytest

from gkd_core.export.reference import confidences, reference, total_variation

LOGITS = np.log(np.array([[1, 3], [9, 1], [1, 1], [4, 1]], np.float32))


def test_confidence_is_the_largest_probability():
    assert confidences(LOGITS) == pytest.approx([0.75, 0.9, 0.5, 0.8])
    assert confidences(np.array([[1e30, -1e30]], np.float32)) == pytest.approx([1.0])


def test_of_logits_that_are_not_finite_there_is_none():
    odd = np.array([[np.nan, 0], [np.inf, 0], [0, 0]], np.float32)
    assert np.isnan(confidences(odd)).tolist() == [True, True, False]


def test_the_reference_counts_classes_and_has_the_mean_confidence():
    assert reference(LOGITS) == {"images": 4, "predicted": [3, 1], "mean_confidence": 0.7375}
    assert reference(np.zeros((2, 3), np.float32))["predicted"] == [2, 0, 0]


def test_total_variation_is_the_part_that_would_have_to_move():
    assert total_variation([3, 1], [30, 10]) == 0
    assert total_variation([1, 0], [0, 5]) == 1
    assert total_variation([3, 1, 0], [0.25, 0.25, 0.5]) == pytest.approx(0.5)
    assert math.isnan(total_variation([0, 0], [1, 1]))
