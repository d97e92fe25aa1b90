import math

import numpy as np
import pytest

from gkd_core.evaluation.calibration import reliability


def logits_of(confidences: list[float]) -> np.ndarray:
    """Two-class logits whose first class has these probabilities."""
    return np.array([[math.log(p / (1 - p)), 0.0] for p in confidences])


def test_calibration_error_by_hand() -> None:
    # Bins of width 1/5: (.6, .8] holds .7 (right) and .75 (wrong), (.8, 1] holds .9 (right) and .95 (right).
    # gaps: |.5 − .725| and |1 − .925|, two images of four in each.
    found = reliability(logits_of([0.7, 0.75, 0.9, 0.95]), np.array([0, 1, 0, 0]), bins=5)
    assert found.count.tolist() == [0, 0, 0, 2, 2]
    assert found.confidence[3:] == pytest.approx([0.725, 0.925])
    assert found.accuracy[3:].tolist() == [0.5, 1.0]
    assert found.expected_calibration_error == pytest.approx(0.5 * 0.225 + 0.5 * 0.075)


def test_empty_bins_are_not_numbers_and_do_not_count() -> None:
    found = reliability(logits_of([0.9]), np.array([0]), bins=15)
    assert np.isnan(found.accuracy).sum() == np.isnan(found.confidence).sum() == 14
    assert found.expected_calibration_error == pytest.approx(0.1)


def test_the_surest_and_the_least_sure_have_a_bin() -> None:
    sure = reliability(np.array([[2000.0, 0.0]]), np.array([0]))
    assert sure.count[-1] == 1
    assert sure.expected_calibration_error == 0.0
    # 1/2 is an edge of two bins and belongs to the lower one.
    tied = reliability(np.array([[0.0, 0.0]]), np.array([1]), bins=2)
    assert tied.count.tolist() == [1, 0]
    assert tied.expected_calibration_error == pytest.approx(0.5)


def test_a_network_that_says_the_truth_is_nearly_calibrated() -> None:
    random = np.random.default_rng(0)
    probabilities = random.uniform(0.5, 0.99, 20000)
    labels = (random.random(20000) > probabilities).astype(np.int64)
    assert reliability(logits_of(probabilities.tolist()), labels).expected_calibration_error < 0.01
