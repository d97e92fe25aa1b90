"""A decision's measures against values by hand, scikit-learn's and pytorch-ood's."""

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_ood.metrics import OODMetrics
from sklearn.metrics import roc_curve

from gkd_core.data.unknown import BATCH, UnknownPictures
from gkd_core.decision import Decision, Shown
from gkd_core.errors import GkdError
from gkd_core.evaluation.decision import (
    area_under_risk_coverage,
    auroc,
    fpr_at_tpr,
    measure_decision,
    measure_unknown,
    most_with_precision,
    risk_coverage,
)

SCORES = np.array([0.3, 0.9, 0.8, 0.9, 0.5])
RIGHT = np.array([False, True, False, True, True])


def test_images_of_one_score_are_counted_together():
    assert most_with_precision(SCORES, RIGHT, 0.9) == 2
    assert most_with_precision(SCORES, RIGHT, 0.75) == 4
    assert most_with_precision(SCORES, ~RIGHT, 0.75) == 0
    assert risk_coverage(SCORES, RIGHT) == [
        {"threshold": 0.9, "coverage": 0.4, "risk": 0.0},
        {"threshold": 0.8, "coverage": 0.6, "risk": pytest.approx(1 / 3, abs=1e-6)},
        {"threshold": 0.5, "coverage": 0.8, "risk": 0.25},
        {"threshold": 0.3, "coverage": 1.0, "risk": 0.4},
    ]
    assert area_under_risk_coverage(SCORES, RIGHT) == pytest.approx((0 + 0 + 1 / 3 + 1 / 4 + 2 / 5) / 5)


def test_a_curve_has_its_ends_however_many_images_there_are():
    random = np.random.default_rng(0)
    curve = risk_coverage(random.random(5000), random.random(5000) < 0.9)
    assert len(curve) == 200
    assert curve[-1]["coverage"] == 1.0
    assert curve[0]["coverage"] == 1 / 5000


def test_unknown_pictures_are_told_apart_as_others_measure_it():
    random = np.random.default_rng(0)
    known, unknown = random.normal(1, 1, 400), random.normal(0, 1, 300)
    metrics = OODMetrics()
    labels = torch.cat([torch.zeros(400), -torch.ones(300)])
    metrics.update(torch.tensor(-np.concatenate([known, unknown])), labels)
    assert auroc(known, unknown) == pytest.approx(float(metrics.compute()["AUROC"]), abs=1e-6)
    false, true, _ = roc_curve(np.repeat([1, 0], [400, 300]), np.concatenate([known, unknown]), drop_intermediate=False)
    assert fpr_at_tpr(known, unknown) == pytest.approx(false[np.flatnonzero(true >= 0.95)[0]])
    assert auroc(np.ones(3), np.ones(4)) == 0.5
    assert fpr_at_tpr(np.arange(20.0), np.array([-1.0, 0.5, 1.0, 30.0])) == 0.5  # 19 of 20 have at least 1


def test_what_is_measured_by_hand():
    logits = np.log(np.array([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [0.3, 0.7]]))
    labels = np.array([0, 1, 0, 1])
    shown = Shown(images=4, coverage=1.0, precision=1.0, nll=0.0, calibrated_nll=0.0)
    decision = Decision(
        score="max_probability", threshold=0.65, asked="precision", target=0.75, temperature=2.0, validation=shown
    ).model_copy(update={"temperature": 1.0})
    found = measure_decision(decision, logits, decision.scores(logits), labels, bins=10)
    assert (found["coverage"], found["precision"]) == (0.75, pytest.approx(2 / 3))
    assert found["coverage_at_precision"] == 1.0  # 3 of 4
    assert found["precision_low"] == pytest.approx(0.2077, abs=1e-3)  # Wilson, 2 of 3
    assert found["nll"] == pytest.approx(-np.log([0.9, 0.2, 0.6, 0.7]).mean())
    assert found["ece"] == pytest.approx((0.1 + 0.8 + 0.4 + 0.3) / 4)
    hotter = decision.model_copy(update={"temperature": 2.0})
    odds = np.sqrt([9, 1 / 4, 3 / 2, 7 / 3])
    assert measure_decision(hotter, logits, decision.scores(logits), labels)["calibrated_nll"] == pytest.approx(
        -np.log(odds / (1 + odds)).mean()
    )
    nobody = measure_decision(decision.model_copy(update={"threshold": None}), logits, decision.scores(logits), labels)
    assert (nobody["coverage"], nobody["precision"], nobody["precision_low"]) == (0.0, None, None)


def test_of_unknown_pictures_those_are_refused_that_the_model_refuses():
    found = measure_unknown(np.array([-1, 0, -1, -1]), np.array([3.0, 4.0]), np.array([1.0, 3.5, 2.0, 0.0]))
    assert found == {"images": 4, "refused": 0.75, "auroc": 7 / 8, "fpr_at_95_tpr": 0.25}


def test_a_folder_of_pictures_is_read_whole_and_in_order(tmp_path, caplog):
    (tmp_path / "deeper").mkdir()
    for number in range(BATCH + 3):
        Image.new("L", (9, 5), number).save(tmp_path / ("deeper" if number % 2 else ".") / f"{number:03}.png")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff no")
    (tmp_path / "notes.txt").write_text("no picture")
    pictures = UnknownPictures(tmp_path, 4, 3)
    found = list(pictures.batches())
    assert [batch.shape[1:] for batch in found] == [(4, 4, 3)] * 2
    seen = np.concatenate(found)[:, 0, 0, 0].tolist()
    assert sorted(seen) == list(range(BATCH + 3))
    assert (pictures.unreadable, len(pictures)) == (1, BATCH + 4)
    assert "broken.jpg" in caplog.text
    again = UnknownPictures(tmp_path, 4, 3)
    list(again.batches())
    assert again.sha256 == pictures.sha256 != ""


def test_a_folder_without_pictures_is_told_in_one_sentence(tmp_path):
    with pytest.raises(GkdError, match=r"decide\.unknown .* is no folder"):
        UnknownPictures(tmp_path / "none", 4, 3)
    with pytest.raises(GkdError, match=r"decide\.unknown .* has no pictures \(\.avif, .*\): put some there"):
        UnknownPictures(tmp_path, 4, 3)
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff no")
    with pytest.raises(GkdError, match=r"none of the 1 pictures of decide\.unknown"):
        list(UnknownPictures(tmp_path, 4, 3).batches())
