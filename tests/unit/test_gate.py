"""The gate's rules, each with values worked out by hand."""

import math

import numpy as np
import pytest

from gkd_core.errors import GkdError
from gkd_core.evaluation.statistics import paired_difference
from gkd_core.gate import Champion, Check, TargetLatency, decide

Z = 1.6448536269514722  # one-sided 95 %
DATA, OTHER = "d" * 64, "e" * 64


def bits(count: int, right: int) -> np.ndarray:
    """[count] bool, the first `right` of them true."""
    return np.arange(count) < right


def judged(
    *,
    gain: float | None = 0.02,
    error: float = 0.01,
    correct: np.ndarray | None = None,
    champion: Champion | None = None,
    onnx_bytes: int = 300_000,
    latency: float = 0.5,
    parity: float = 1e-6,
    version: int = 7,
    promotion_blocked: str | None = None,
    balanced: dict[str, float] | None = None,
    decision: dict[str, object] | None = None,
    smaller: dict[str, dict[str, object]] | None = None,
    **limits,
):
    correct = bits(100, 90) if correct is None else correct
    metrics = {
        "data": {"sha256": DATA, "test_images": correct.size},
        "onnx": {"top1": float(correct.mean()), "onnx_bytes": onnx_bytes},
        "differences": {},
        **({} if decision is None else {"decision": decision}),
        **{precision: {"decision": found} for precision, found in (smaller or {}).items()},
    }
    if gain is not None:
        metrics["differences"]["student_minus_baseline"] = {
            **{"difference": gain, "standard_error": error},
            **{name: {"difference": other, "standard_error": 0.001} for name, other in (balanced or {}).items()},
        }
    defaults = {
        "min_gain_over_baseline": 0.0,
        "max_drop_to_champion": 0.0,
        "confidence": 0.95,
        "max_parity": 1e-3,
        "max_size_mb": None,
        "max_latency_ms": None,
        "new_data": "refuse",
    }
    return decide(
        metrics,
        {"onnx": {"latency_ms_p50": latency}},
        version=version,
        correct=correct,
        parity=parity,
        champion=champion,
        promotion_blocked=promotion_blocked,
        **defaults | limits,
    )


def check(decision, name: str) -> Check:
    (found,) = [one for one in decision.checks if one.check == name]
    return found


def test_everything_in_order():
    decision = judged()
    assert decision.passed
    assert decision.sentence == "version 7 passed all 5 checks"
    assert [one.check for one in decision.checks] == ["baseline", "champion", "parity", "size", "latency"]
    assert decision.as_dict()["reasons"][0] == {
        "check": "baseline",
        "passed": True,
        "value": 0.02,
        "limit": round(-Z * 0.01, 6),
        "sentence": "top-1 is +2.00 points against the student alone, +0.00 is asked, and 100 test images leave 1.64 "
        "to chance",
    }


# Against the student alone.


def test_the_baseline_rule_refuses_only_what_the_test_set_can_show():
    # d + z·SE = -0.02 + 1.645 · 0.01 = -0.0036 < 0, and -0.02 + 1.645 · 0.013 = +0.0014
    assert not judged(gain=-0.02, error=0.01).passed
    assert judged(gain=-0.02, error=0.013).passed


def test_the_same_loss_on_more_images_flips_the_decision():
    # Of N images 3 % were gained and 5 % lost: SE ≈ √(.08 − .0004) / √N, 0.028 at 100 images and 0.0028 at 10,000.
    small, large = (math.sqrt((0.08 - 0.02**2) / count) for count in (100, 10_000))
    assert judged(gain=-0.02, error=small).passed
    decision = judged(gain=-0.02, error=large)
    assert not decision.passed
    assert decision.sentence.startswith("version 7 was refused: top-1 is -2.00 points against the student alone")


def test_a_higher_confidence_forgives_more():
    assert not judged(gain=-0.02, error=0.01, confidence=0.95).passed
    assert judged(gain=-0.02, error=0.01, confidence=0.99).passed  # z = 2.326: -0.02 + 0.0233 > 0


def test_equality_passes_though_decimal_fractions_are_not_exact():
    assert 0.97 - 0.95 > 0.02
    assert judged(gain=0.02, error=0.0, min_gain_over_baseline=0.97 - 0.95).passed
    assert judged(gain=0.02 - 1e-12, error=0.0, min_gain_over_baseline=0.02).passed
    assert not judged(gain=0.02 - 1e-6, error=0.0, min_gain_over_baseline=0.02).passed


def test_a_required_gain_counts():
    assert judged(gain=0.02, error=0.005, min_gain_over_baseline=0.028).passed  # 0.02 + 0.0082 ≥ 0.028
    assert not judged(gain=0.02, error=0.005, min_gain_over_baseline=0.029).passed


def test_without_a_baseline_the_check_says_that_it_was_not_made():
    decision = judged(gain=None)
    assert decision.passed
    assert check(decision, "baseline") == Check(
        "baseline", True, None, None, "not compared with the student alone: it was not trained (references.baseline)"
    )


# Against the champion.


def test_the_first_version_has_no_champion_to_beat():
    assert check(judged(), "champion").sentence == "there is no champion yet to compare with"


def test_the_champion_is_not_compared_with_itself():
    decision = judged(version=3, champion=Champion(3, DATA, 0.99, None))
    assert check(decision, "champion") == Check("champion", True, None, None, "version 3 is the champion already")


def test_images_are_compared_one_by_one():
    # 6 images lost, 0 gained of 100. Half an image added to each of the four cases: total 102, more = -6,
    # SE = √(6 + 1 − 36/102) / 102 = √6.647 / 102 = 0.02528; limit = −1.645 · 0.02528 = −0.04158 > −0.06.
    decision = judged(correct=bits(100, 84), champion=Champion(2, DATA, 0.90, bits(100, 90)))
    found = check(decision, "champion")
    assert not found.passed
    assert found.value == -0.06
    assert found.limit == pytest.approx(-Z * math.sqrt(7 - 36 / 102) / 102, abs=1e-6)
    assert "-6.00 points against the champion, version 2 (image by image), a drop of 0.00 is allowed" in found.sentence
    assert decision.sentence.startswith("version 7 was refused: top-1 is -6.00 points against the champion")


def test_pairing_sees_what_accuracies_alone_do_not():
    # The same 6 points, but 40 images swapped sides: SE = √(47 + 1 ...) is far larger, and chance explains the loss.
    champion = Champion(2, DATA, 0.90, bits(100, 90))
    swapped = bits(100, 90).copy()
    swapped[:16], swapped[90:] = False, True
    assert swapped.mean() == 0.84
    assert judged(correct=swapped, champion=champion).passed
    assert not judged(correct=bits(100, 84), champion=champion).passed


def test_an_allowed_drop_counts():
    champion = Champion(2, DATA, 0.90, bits(100, 90))
    assert not judged(correct=bits(100, 84), champion=champion, max_drop_to_champion=0.018).passed
    assert judged(
        correct=bits(100, 84), champion=champion, max_drop_to_champion=0.019
    ).passed  # 0.06 − 0.04158 = .01842


@pytest.mark.parametrize(("count", "passed"), [(100, True), (10_000, False)])
def test_two_points_below_the_champion_are_chance_on_few_images_and_not_on_many(count, passed):
    # 2 % lost, none gained. 100: SE = √(3 − 4/102)/102 = .01687, limit −.0277. 10,000: SE ≈ .0014, limit −.0023.
    champion = Champion(2, DATA, 0.90, bits(count, count * 90 // 100))
    assert judged(correct=bits(count, count * 88 // 100), champion=champion).passed is passed


def test_a_champion_without_kept_predictions_is_compared_as_if_on_other_images():
    # p̃ = (84 + 1)/102, (90 + 1)/102; SE = √((p̃₁(1−p̃₁) + p̃₂(1−p̃₂)) / 102) = 0.04780, limit −0.0786: −6 points pass.
    p, q = 85 / 102, 91 / 102
    error = math.sqrt((p * (1 - p) + q * (1 - q)) / 102)
    found = check(judged(correct=bits(100, 84), champion=Champion(2, DATA, 0.90, None)), "champion")
    assert found.passed
    assert found.limit == pytest.approx(-Z * error, abs=1e-6)
    assert "by accuracy alone" in found.sentence
    paired = paired_difference(bits(100, 84), bits(100, 90)).standard_error
    assert error > paired, "without pairing less can be told apart"
    assert not judged(correct=bits(100, 80), champion=Champion(2, DATA, 0.90, None)).passed


def test_predictions_of_another_length_are_not_paired():
    found = check(judged(correct=bits(100, 84), champion=Champion(2, DATA, 0.90, bits(50, 45))), "champion")
    assert "by accuracy alone" in found.sentence


def test_predictions_alone_are_enough():
    assert check(judged(champion=Champion(2, DATA, None, bits(100, 90))), "champion").value == 0.0


def test_perfect_accuracies_still_leave_doubt():
    found = check(judged(correct=bits(100, 100), champion=Champion(2, DATA, 1.0, None)), "champion")
    assert found.passed
    assert found.limit < -0.01


def test_a_champion_measured_on_other_data():
    champion = Champion(2, OTHER, 0.90, bits(100, 90))
    refused = judged(champion=champion)
    assert not refused.passed
    assert check(refused, "champion").sentence == (
        "the champion, version 2, was measured on other data (eeeeeeeeeeee, here dddddddddddd), so the two cannot be "
        "compared: set gate.new_data to promote, or use `gkd registry promote`"
    )
    promoted = judged(champion=champion, new_data="promote")
    assert promoted.passed
    assert "not compared, as gate.new_data is promote" in check(promoted, "champion").sentence


@pytest.mark.parametrize("champion", [Champion(2, None, None, None), Champion(2, DATA, None, None)])
def test_a_champion_without_a_record(champion):
    assert "without a record of its accuracy" in check(judged(champion=champion), "champion").sentence
    assert not judged(champion=champion).passed
    assert judged(champion=champion, new_data="promote").passed


# Parity, size, latency.


def test_parity():
    assert judged(parity=1e-3).passed
    refused = judged(parity=2e-3)
    assert check(refused, "parity") == Check(
        "parity",
        False,
        0.002,
        0.001,
        "the ONNX logits differ from torch's by at most 2.0e-03, 1.0e-03 is allowed",
    )
    assert not judged(parity=math.inf).passed
    assert not judged(parity=math.nan).passed


def test_size_in_millions_of_bytes():
    assert check(judged(), "size") == Check("size", True, 0.3, None, "the ONNX file has 0.30 MB, no limit is set")
    assert judged(max_size_mb=0.3).passed
    assert not judged(onnx_bytes=300_001, max_size_mb=0.3).passed


def test_latency():
    assert check(judged(), "latency").limit is None
    assert judged(latency=0.5, max_latency_ms=0.5).passed
    elsewhere = TargetLatency(0.7, "ARM, fp32, CPU, 4 threads")
    slower = judged(latency=0.5, max_latency_ms=0.6, target=elsewhere)
    assert check(slower, "latency").value == 0.7
    assert slower.sentence == (
        "version 7 was refused: on the target (ARM, fp32, CPU, 4 threads) one image takes a median of 0.700 ms, "
        "0.600 ms is allowed"
    )
    assert judged(latency=0.9, max_latency_ms=0.8, target=elsewhere).passed, "where it will not run is of no matter"
    refused = judged(latency=0.6, max_latency_ms=0.5)
    assert refused.sentence == "version 7 was refused: one image takes a median of 0.600 ms, 0.500 ms is allowed"


def test_all_that_failed_is_named():
    decision = judged(gain=-0.5, latency=2.0, max_latency_ms=1.0, parity=1.0)
    assert [one.check for one in decision.checks if not one.passed] == ["baseline", "parity", "latency"]
    for name in ("baseline", "parity", "latency"):
        assert check(decision, name).sentence in decision.sentence


def test_the_gate_does_not_overrule_a_person():
    decision = judged(promotion_blocked="2026-11-21: wrong on sevens")
    assert not decision.passed
    assert "taken back by hand (2026-11-21: wrong on sevens)" in decision.sentence
    assert "`gkd registry promote 7`" in decision.sentence


class TestAnotherMetric:
    """1,000 images of one class, 40 of the other."""

    LABELS = np.repeat([0, 1], [1000, 40])
    BALANCED = "balanced_accuracy"

    def challenger(self, common: int, rare: int) -> np.ndarray:
        """So many of each class right."""
        right = np.concatenate([bits(1000, common), bits(40, rare)])
        return np.where(right, self.LABELS, 1 - self.LABELS)

    def judged(self, predicted: np.ndarray, champion: Champion | None = None, metric: str = BALANCED, **more):
        correct = predicted == self.LABELS
        return judged(correct=correct, champion=champion, metric=metric, answers=(predicted, self.LABELS), **more)

    def champion(self, predicted: np.ndarray) -> Champion:
        correct = predicted == self.LABELS
        return Champion(2, DATA, float(correct.mean()), correct, predicted)

    def test_what_top1_forgives_balanced_accuracy_refuses(self):
        """Half of the rare class lost, some of the common one gained."""
        worse, champion = self.challenger(950, 10), self.champion(self.challenger(920, 30))
        assert check(self.judged(worse, champion, "top1", balanced={}), "champion").passed
        for metric, word in ((self.BALANCED, "balanced accuracy"), ("macro_f1", "macro-F1")):
            found = check(self.judged(worse, champion, metric, balanced={metric: 0.0}), "champion")
            assert not found.passed
            assert found.sentence.startswith(f"{word} is -")
            assert "(image by image)" in found.sentence
        found = check(self.judged(worse, champion, balanced={self.BALANCED: 0.0}), "champion")
        assert found.value == pytest.approx((0.95 + 0.25) / 2 - (0.92 + 0.75) / 2)
        # The rare class's part of the error: 20 of its 40 images lost.
        assert found.limit == pytest.approx(-Z * math.sqrt(0.25 / 40 + 0.03 * 0.97 / 1000) / 2, rel=0.08)

    def test_the_other_way_round_it_promotes(self):
        better, champion = self.challenger(880, 36), self.champion(self.challenger(950, 10))
        assert not check(self.judged(better, champion, "top1", balanced={}), "champion").passed
        assert check(self.judged(better, champion, balanced={self.BALANCED: 0.0}), "champion").passed

    def test_the_baseline_is_compared_by_it_too(self):
        kept = self.challenger(900, 30)
        decision = self.judged(kept, gain=0.5, balanced={self.BALANCED: -0.02})
        found = check(decision, "baseline")
        assert (found.passed, found.value) == (False, -0.02)
        assert found.sentence.startswith("balanced accuracy is -2.00 points against the student alone")

    def test_a_report_that_does_not_know_it_is_to_be_made_again(self):
        with pytest.raises(GkdError, match=r"no difference in balanced accuracy, gate\.metric: run `gkd evaluate`"):
            self.judged(self.challenger(900, 30), balanced={})

    def test_a_champion_without_predictions_cannot_be_compared(self):
        champion = Champion(2, DATA, 0.9, bits(1040, 930))
        given = {"champion": champion, "balanced": {self.BALANCED: 0.0}}
        found = check(self.judged(self.challenger(900, 30), **given), "champion")
        assert not found.passed
        assert "without its predictions, so the two cannot be compared" in found.sentence
        assert check(self.judged(self.challenger(900, 30), **given, new_data="promote"), "champion").passed


@pytest.mark.parametrize(
    ("coverage", "precision", "asked", "passes"),
    [
        (0.95, 0.97, "precision", True),
        (0.85, 0.97, "precision", True),  # 86/102 ± 0.0360: 0.85 + 0.0592 reaches 0.9
        (0.83, 0.97, "precision", False),  # 84/102 ± 0.0377: 0.83 + 0.0621 does not
        (0.95, 0.90, "precision", True),  # 86.5/97 ± 0.0316: 0.9 + 0.0520 reaches 0.95
        (0.95, 0.85, "precision", False),  # 81.75/97 ± 0.0370: 0.85 + 0.0608 does not
        (0.95, 0.85, "coverage", True),  # nobody asked for a precision
    ],
)
def test_coverage_and_the_precision_that_was_asked_for_are_held_as_far_as_the_images_tell(
    coverage, precision, asked, passes
):
    decision = {"coverage": coverage, "precision": precision, "asked": asked, "target": 0.95}
    found = judged(decision=decision, min_coverage=0.9)
    assert found.passed is passes
    assert found.checks[-1].check == "coverage"
    assert f"{100 * coverage:.2f} % of the test images are given a class, 90.00 is asked" in found.checks[-1].sentence


@pytest.mark.parametrize(
    ("int8", "passes", "said"),
    [
        ((0.95, 0.97), True, "of int8, 95.00 % of the test images are given a class, 90.00 is asked"),
        ((0.83, 0.97), False, "of int8, 83.00 % of the test images are given a class, 90.00 is asked"),
        ((0.95, 0.85), False, "85.00 % of these have the right one, 95.00 is asked"),
        ((0.0, None), False, "of int8, none of the 100 test images is given a class"),
    ],
)
def test_what_is_asked_of_a_decision_is_asked_of_the_smaller_files_too(int8, passes, said):
    wish = {"asked": "precision", "target": 0.95}
    fp32 = {"coverage": 0.95, "precision": 0.97} | wish
    smaller = {"int8": dict(zip(("coverage", "precision"), int8, strict=True)) | wish, "fp16": fp32}
    found = judged(decision=fp32, smaller=smaller, min_coverage=0.9)
    assert found.passed is passes
    checks = {check.check: check for check in found.checks[-3:]}
    assert list(checks) == ["coverage", "coverage_int8", "coverage_fp16"]
    assert [check.passed for check in checks.values()] == [True, passes, True]
    assert said in checks["coverage_int8"].sentence


@pytest.mark.parametrize("min_coverage", [None, 1e-6, 0.9])
@pytest.mark.parametrize("asked", ["precision", "coverage"])
def test_a_model_that_names_no_class_keeps_no_promise_whatever_is_asked_of_its_coverage(asked, min_coverage):
    silent = {"coverage": 0.0, "precision": None, "asked": asked, "target": 0.95}
    found = judged(decision=silent, min_coverage=min_coverage)
    assert not found.passed
    (check,) = [each for each in found.checks if not each.passed]
    assert (check.check, check.value, check.limit) == ("coverage", 0.0, min_coverage)
    assert f"so the {asked} of 95.00 % that decide asks for is not kept" in check.sentence


def test_nothing_more_is_asked_of_a_decision_that_names_classes_where_min_coverage_is_null():
    poor = {"coverage": 0.01, "precision": 0.5, "asked": "precision", "target": 0.95}
    assert [check.check for check in judged(decision=poor).checks] == [check.check for check in judged().checks]


def test_a_coverage_that_is_asked_for_needs_a_decision():
    with pytest.raises(GkdError, match=r"gate\.min_coverage asks for a decision.* give decide"):
        judged(min_coverage=0.9)
    assert [check.check for check in judged().checks] == ["baseline", "champion", "parity", "size", "latency"]
