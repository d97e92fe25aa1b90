"""Temperature and thresholds from validation, against values by hand and other libraries."""

import numpy as np
import pytest
import torch
from pytorch_ood.detector import EnergyBased, Mahalanobis, MaxSoftmax
from scipy.optimize import minimize
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score

from gkd_core.decision import Decision
from gkd_core.export.class_distance import ClassDistance
from gkd_core.export.decide import choose_decision, fit_temperature, threshold

# Ten validation images, surest first: 1 1 1 0 1 1 1 0 1 0.
SCORES = np.array([0.99, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3])
RIGHT = np.array([1, 1, 1, 0, 1, 1, 1, 0, 1, 0], bool)


@pytest.mark.parametrize(
    ("asked", "target", "last"),
    [
        ("precision", 0.85, 0.6),  # 6 of 7 are right; 6 of 8 and 7 of 9 are too few
        ("precision", 0.75, 0.4),  # 7 of 9
        ("precision", 0.7, 0.3),  # 7 of 10: all
        ("precision", 0.9, 0.9),  # 3 of 3: of 4, 5, 6 and 7 fewer are right
        ("coverage", 0.7, 0.6),
        ("coverage", 0.65, 0.6),  # half an image is one
        ("coverage", 1.0, 0.3),
        ("coverage", 0.01, 0.99),
    ],
)
def test_the_threshold_is_just_below_the_last_image_that_is_given_a_class(asked, target, last):
    found = threshold(SCORES, RIGHT, asked, target)
    assert last - 1e-5 < found < last
    mixed = np.random.default_rng(0).permutation(10)
    assert threshold(SCORES[mixed], RIGHT[mixed], asked, target) == found


def test_a_precision_that_no_threshold_gives_is_none():
    assert threshold(SCORES, np.arange(10) > 0, "precision", 0.95) is None


def test_images_of_one_score_are_given_a_class_together():
    same = np.array([0.9, 0.5, 0.5, 0.5])
    assert threshold(same, np.array([True, True, False, False]), "precision", 0.6) > 0.5  # not the first of the three
    assert threshold(same, np.array([True, True, False, True]), "precision", 0.75) < 0.5


def test_scores_below_zero_have_thresholds_below_them():
    assert -30.001 < threshold(np.array([-10.0, -30.0]), np.array([True, True]), "coverage", 1.0) < -30


def images(count=600, heat=2.5, classes=4, seed=0):
    """Logits that are `heat` times too large for what they say, and labels drawn by what they should say."""
    random = np.random.default_rng(seed)
    honest = random.normal(0, 2, (count, classes))
    shares = np.exp(honest) / np.exp(honest).sum(1, keepdims=True)
    labels = np.array([random.choice(classes, p=row) for row in shares])
    return (honest * heat).astype(np.float32), labels


def test_the_temperature_is_the_one_with_the_lowest_nll():
    logits, labels = images()
    temperature, note = fit_temperature(logits, labels)
    values = torch.tensor(logits, dtype=torch.float64)

    def nll(power):
        return float(torch.nn.functional.cross_entropy(values / np.exp(power[0]), torch.tensor(labels)))

    oracle = np.exp(minimize(nll, [0.0], method="Nelder-Mead", options={"xatol": 1e-8}).x[0])
    assert note == ""
    assert temperature == pytest.approx(oracle, rel=1e-4)
    assert 2.0 < temperature < 3.1


@pytest.mark.parametrize(
    ("logits", "labels", "why"),
    [
        (np.eye(4)[np.arange(40) % 4] * 3, np.arange(40) % 4, "all right"),
        (np.eye(2)[[0] * 8], np.array([0, 1] * 4), "too few"),
    ],
)
def test_no_temperature_is_kept_where_none_can_be_told(logits, labels, why):
    temperature, note = fit_temperature(logits, labels)
    assert temperature == 1.0
    assert why in note


def test_no_temperature_is_kept_that_does_not_lower_nll_on_images_it_was_not_fitted_to():
    found = [fit_temperature(*images(count=12, heat=1.0, classes=2, seed=seed)) for seed in range(20)]
    kept = [temperature for temperature, note in found if not note]
    assert len(kept) < 20
    assert all(temperature == 1.0 for temperature, note in found if note)
    assert any("cross-fitted" in note for _, note in found)


def test_a_decision_by_class_keeps_its_word_in_each_and_rare_classes_have_the_common_threshold():
    logits, labels = images(count=2000)
    logits[:, 3] = -50  # never named
    labels[labels == 3] = 0
    common = choose_decision(logits, labels, score="energy", asked="precision", target=0.8)
    mine = choose_decision(logits, labels, score="energy", asked="precision", target=0.8, by_class=True)
    assert mine.thresholds[3] == common.threshold
    given = mine.decide(logits)[0]
    for each in range(3):
        assert (labels[given == each] == each).mean() >= 0.8
    assert mine.validation.coverage == pytest.approx((given >= 0).mean(), abs=1e-6)
    assert mine.validation.precision == pytest.approx((given == labels)[given >= 0].mean(), abs=1e-6)
    assert common.validation.precision >= 0.8 - 1e-6


def test_a_precision_out_of_reach_gives_no_image_a_class_and_says_so():
    logits, _ = images(count=50)
    wrong = (logits.argmax(1) + 1) % 4
    found = choose_decision(logits, wrong, score="max_probability", asked="precision", target=0.9)
    assert (found.decide(logits)[0] == -1).all()
    assert found.validation.coverage == 0
    text = " ".join(found.words())
    assert "no threshold gives a precision of 90 % on 50 validation images" in text
    assert "chosen" not in text  # there is none


def test_why_probabilities_are_not_calibrated_is_said_whatever_the_threshold():
    # Class 0 is right on ten images of ten, class 1 on none of ten: 90 % is in reach of the first alone.
    logits = np.repeat(np.array([[2.0, 0.0], [0.0, 3.0]], np.float32), 10, axis=0)
    labels = np.zeros(20, int)
    for by_class, never in ((True, "1 of the 2 classes is never named"), (False, "Every image is none of these")):
        found = choose_decision(
            logits, labels, score="max_probability", asked="precision", target=0.9, by_class=by_class
        )
        found = found.model_copy(update={"temperature": 1.0})
        found = found.model_copy(update={"validation": found.validation.model_copy(update={"note": "why not"})})
        text = " ".join(found.words())
        assert found.decide(logits)[0].tolist() == ([0] * 10 if by_class else [-1] * 10) + [-1] * 10
        assert never in text
        assert "not calibrated: why not" in text


def test_the_scores_are_pytorch_oods():
    logits, labels = images(count=100)
    for score, oracle in (
        ("max_probability", MaxSoftmax.score(torch.tensor(logits))),
        ("energy", EnergyBased.score(torch.tensor(logits))),
    ):
        mine = choose_decision(logits, labels, score=score, asked="coverage", target=0.5, calibrate=False)
        assert isinstance(mine, Decision)
        assert np.allclose(mine.scores(logits), -oracle.numpy(), atol=1e-5)


def features(count, size, seed=0, shift=0.0):
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    mixing = np.random.default_rng(99).normal(size=(size, size)) / np.sqrt(size)
    found = random.normal(size=(count, size)) @ mixing + 2 * np.eye(3, size)[labels] + shift
    return found * random.uniform(0.5, 3, (count, 1)), labels


def of_length_one(values):
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def test_the_distance_of_features_is_mahalanobis_with_ledoit_and_wolfs_covariance():
    known, labels = features(400, 12)
    short = of_length_one(known)
    means = np.stack([short[labels == each].mean(0) for each in range(3)])
    oracle = LedoitWolf(assume_centered=True).fit(short - means[labels])
    other, _ = features(50, 12, seed=1, shift=0.5)
    expected = -np.min([oracle.mahalanobis(of_length_one(other) - mean) for mean in means], axis=0)
    assert np.allclose(ClassDistance.fit(known, labels).scores(other), expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize(
    ("count", "size", "directions", "less"),
    [(2000, 12, 64, 0.02), (2000, 30, 20, 0.03)],  # the second leaves ten of thirty out
)
def test_the_distance_of_features_tells_unknowns_as_well_as_pytorch_oods(count, size, directions, less):
    known, labels = features(count, size)
    seen, unseen = features(600, size, seed=1)[0], features(600, size, seed=2, shift=0.6)[0]
    truth = np.repeat([1, 0], 600)
    both = np.concatenate([seen, unseen])
    short = [torch.tensor(of_length_one(each), dtype=torch.float32) for each in (known, both)]
    oracle = Mahalanobis(None).fit_features(short[0], torch.tensor(labels))
    theirs = roc_auc_score(truth, -oracle.predict_features(short[1]).numpy())
    mine = roc_auc_score(truth, ClassDistance.fit(known, labels, directions).scores(both))
    assert mine > theirs - less


def test_features_that_are_all_zero_have_a_score_too():
    known, labels = features(300, 12)
    assert np.isfinite(ClassDistance.fit(known, labels).scores(np.zeros((2, 12)))).all()


def test_features_that_never_change_do_not_make_it_infinite():
    known, labels = features(300, 12)
    known[:, 5] = 0.0
    assert np.isfinite(ClassDistance.fit(known, labels).scores(features(10, 12)[0])).all()
