"""The gate: may this challenger become champion? A pure function of what was measured and of the champion's record.

An accuracy measured on N images is uncertain, so a rule on accuracy refuses only what the test set can show: with the
observed difference d, its standard error SE, the threshold m and z the normal quantile of `confidence`, a rule "d is
at least m" refuses when d + z·SE < m: when the one-sided upper confidence bound of the true difference lies below m.
A few hundred images forgive a point, fifty thousand do not. The price is that doubt decides in the challenger's favour;
each one is compared with its own student alone too, so champions cannot creep down without end.

Both accuracies are compared on the same images, image by image; balanced accuracy and macro-F1 (`gate.metric`)
likewise, with the standard error of a bootstrap. Numbers are compared with a tolerance of 1e-9, since decimal fractions
such as 0.97 − 0.95 are not exact.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gkd_core.errors import GkdError
from gkd_core.evaluation.statistics import bootstrap_difference, paired_difference
from gkd_core.export.manifest import SMALLER
from gkd_core.tables import DIGITS, rounded

TOLERANCE = 1e-9
Metric = Literal["top1", "balanced_accuracy", "macro_f1"]
WORDS: dict[Metric, str] = {"top1": "top-1", "balanced_accuracy": "balanced accuracy", "macro_f1": "macro-F1"}


class GateRefused(GkdError):
    """The gate refused and `gate.on_refusal` is fail."""

    exit_code = 1


@dataclass(frozen=True)
class Check:
    """One rule's outcome.

    Attributes:
        check: the rule's name: baseline, champion, parity, size, latency, and where they apply coverage, coverage_int8,
            coverage_fp16 and promotion_blocked.
        passed: also true for a rule that had nothing to compare or no limit, as `sentence` then says.
        value: what was measured; None when nothing was.
        limit: what `value` had to reach or stay within, slack included; None when there is no limit.
        sentence: the outcome in words.
    """

    check: str
    passed: bool
    value: float | None
    limit: float | None
    sentence: str


@dataclass(frozen=True)
class GateDecision:
    """All checks, whether all passed, and the whole in one sentence."""

    passed: bool
    checks: tuple[Check, ...]
    sentence: str

    def as_dict(self) -> dict[str, Any]:
        """passed, sentence, reasons: what gate.json holds of the decision."""
        return {"passed": self.passed, "sentence": self.sentence, "reasons": [asdict(check) for check in self.checks]}


@dataclass(frozen=True)
class Champion:
    """What the registry knows of the current champion.

    Attributes:
        version: its number.
        data_sha256: digest of the data it was measured on; None when it was registered without.
        top1: accuracy of its ONNX on the test images, in [0, 1]; None likewise.
        correct: [N] whether it was right on each test image, in their order; None when that was not kept.
        predicted: [N] the class it named; None when that was not kept, or nobody asks.
    """

    version: int
    data_sha256: str | None
    top1: float | None
    correct: NDArray[np.bool_] | None
    predicted: NDArray[np.integer] | None = None

    @property
    def accuracy(self) -> float | None:
        """`top1`, or the mean of `correct` where only that was kept."""
        return float(self.correct.mean()) if self.top1 is None and self.correct is not None else self.top1


@dataclass(frozen=True)
class TargetLatency:
    """What one image takes where the model will run.

    Attributes:
        milliseconds: median.
        where: machine and settings, in words.
    """

    milliseconds: float
    where: str


def decide(
    metrics: Mapping[str, Any],
    timings: Mapping[str, Any],
    *,
    version: int,
    correct: NDArray[np.bool_],
    parity: float,
    champion: Champion | None,
    promotion_blocked: str | None = None,
    metric: Metric = "top1",
    answers: tuple[NDArray[np.integer], NDArray[np.integer]] | None = None,
    target: TargetLatency | None = None,
    min_gain_over_baseline: float,
    max_drop_to_champion: float,
    confidence: float,
    max_parity: float,
    max_size_mb: float | None,
    max_latency_ms: float | None,
    new_data: Literal["refuse", "promote"],
    min_coverage: float | None = None,
) -> GateDecision:
    """Apply every rule to a challenger.

    Args:
        metrics: content of the evaluate step's metrics.json.
        timings: content of its timings.json.
        version: the challenger's number in the registry.
        correct: [N] whether the challenger's ONNX was right on each test image.
        parity: largest |onnxruntime − torch| seen on a logit.
        champion: the current champion, or None while there is none.
        promotion_blocked: why a person took the challenger back earlier; the gate does not overrule that.
        metric: what the student is compared by.
        answers: [N] classes that the challenger's ONNX names, and [N] labels; needed where `metric` is not top1.
        target: latency that counts in place of the one in `timings`.
        min_gain_over_baseline: of `metric`, how much the student must gain over the student alone, in [−1, 1].
        max_drop_to_champion: how much of it it may lose to the champion, in [0, 1].
        confidence: one-sided level of the two rules on accuracy, in (0.5, 1).
        max_parity: largest `parity`.
        max_size_mb: largest ONNX file in 10⁶ bytes; None does not limit.
        max_latency_ms: largest median latency of one image; None does not limit.
        new_data: what a champion measured on other data means.
        min_coverage: part of the test images that the decision of every file must give a class, in [0, 1]; None asks
            that it give one to any.
    Raises:
        GkdError: the report says nothing of `metric`, or of the decision that `min_coverage` asks for.
    """
    z = NormalDist().inv_cdf(confidence)
    latency = timings["onnx"]["latency_ms_p50"] if target is None else target.milliseconds
    on_target = "" if target is None else f"on the target ({target.where}) "
    checks: tuple[Check, ...] = (
        _against_baseline(metrics, metric, z, min_gain_over_baseline),
        _against_champion(metrics, version, metric, correct, answers, champion, z, max_drop_to_champion, new_data),
        _at_most("parity", parity, max_parity, "the ONNX logits differ from torch's by at most", "{:.1e}".format),
        _at_most("size", metrics["onnx"]["onnx_bytes"] / 1e6, max_size_mb, "the ONNX file has", "{:.2f} MB".format),
        _at_most("latency", latency, max_latency_ms, f"{on_target}one image takes a median of", "{:.3f} ms".format),
    )
    checks += tuple(_covers(metrics, z, min_coverage))
    if promotion_blocked is not None:
        sentence = (
            f"it was taken back by hand ({promotion_blocked}), and only `gkd registry promote {version}` brings it back"
        )
        checks += (Check("promotion_blocked", False, None, None, sentence),)
    failed = [check.sentence for check in checks if not check.passed]
    if failed:
        return GateDecision(False, checks, f"version {version} was refused: {'; '.join(failed)}")
    return GateDecision(True, checks, f"version {version} passed all {len(checks)} checks")


def _against_baseline(metrics: Mapping[str, Any], metric: Metric, z: float, min_gain: float) -> Check:
    difference = metrics.get("differences", {}).get("student_minus_baseline")
    if difference is None:
        sentence = "not compared with the student alone: it was not trained (references.baseline)"
        return Check("baseline", True, None, None, sentence)
    if metric != "top1":
        difference = difference.get(metric)
    if difference is None:
        raise GkdError(f"the report has no difference in {WORDS[metric]}, gate.metric: run `gkd evaluate` again")
    gain, slack = float(difference["difference"]), z * float(difference["standard_error"])
    images = metrics["data"]["test_images"]
    sentence = (
        f"{WORDS[metric]} is {_points(gain)} points against the student alone, {_points(min_gain)} is asked, and "
        f"{images} test images leave {100 * slack:.2f} to chance"
    )
    return _at_least("baseline", gain, min_gain - slack, sentence)


def _against_champion(
    metrics: Mapping[str, Any],
    version: int,
    metric: Metric,
    correct: NDArray[np.bool_],
    answers: tuple[NDArray[np.integer], NDArray[np.integer]] | None,
    champion: Champion | None,
    z: float,
    max_drop: float,
    new_data: str,
) -> Check:
    if champion is None:
        return Check("champion", True, None, None, "there is no champion yet to compare with")
    who = f"the champion, version {champion.version}"
    if champion.version == version:
        return Check("champion", True, None, None, f"version {version} is the champion already")
    measured, accuracy = metrics["data"]["sha256"], champion.accuracy
    known = accuracy is not None if metric == "top1" else champion.predicted is not None
    if champion.data_sha256 != measured or not known:
        if champion.data_sha256 is None or champion.data_sha256 == measured:
            lacking = "a record of its accuracy" if metric == "top1" else "its predictions"
            why = f"{who}, was registered without {lacking}"
        else:
            why = f"{who}, was measured on other data ({champion.data_sha256[:12]}, here {measured[:12]})"
        if new_data == "promote":
            return Check("champion", True, None, None, f"{why}: not compared, as gate.new_data is promote")
        fix = "set gate.new_data to promote, or use `gkd registry promote`"
        return Check("champion", False, None, None, f"{why}, so the two cannot be compared: {fix}")

    if metric != "top1":
        assert answers is not None
        assert champion.predicted is not None
        predicted, labels = answers
        found = bootstrap_difference(predicted, champion.predicted, labels, metric)
        difference, error, how = found.difference, found.standard_error, "image by image"
    elif champion.correct is not None and champion.correct.shape == correct.shape:
        paired = paired_difference(correct, champion.correct)
        difference, error, how = paired.difference, paired.standard_error, "image by image"
    else:
        assert accuracy is not None
        difference = float(correct.mean()) - accuracy
        error = _unpaired_error(float(correct.mean()), accuracy, correct.size)
        how = "by accuracy alone, since its predictions were not kept"
    slack = z * error
    sentence = (
        f"{WORDS[metric]} is {_points(difference)} points against {who} ({how}), a drop of "
        f"{100 * max_drop:.2f} is allowed, and {correct.size} test images leave {100 * slack:.2f} to chance"
    )
    return _at_least("champion", difference, -max_drop - slack, sentence)


def _covers(metrics: Mapping[str, Any], z: float, min_coverage: float | None) -> Iterator[Check]:
    """Of each file that is shipped: enough images are given a class; and where a precision was asked for, enough of
    these the right one. Where nobody asks, that any image is given one: nothing else could keep a promise.
    """
    if min_coverage is not None and metrics.get("decision") is None:
        raise GkdError(
            "gate.min_coverage asks for a decision, and the report has none: give decide, such as {precision: 0.95}, "
            "and run `gkd export` and `gkd evaluate` again"
        )
    images = int(metrics["data"]["test_images"])
    found = {"": metrics.get("decision")} | {name: metrics.get(name, {}).get("decision") for name in SMALLER}
    for file, decision in found.items():
        if decision is None:
            continue
        check, of_file = ("coverage", "") if not file else (f"coverage_{file}", f"of {file}, ")
        if float(decision["coverage"]) == 0.0:
            kind = "precision" if decision["asked"] == "precision" else "coverage"
            sentence = (
                f"{of_file}none of the {images} test images is given a class, so the {kind} of "
                f"{100 * float(decision['target']):.2f} % that decide asks for is not kept: ask for less, or train "
                "a better student"
            )
            yield Check(check, False, 0.0, rounded(min_coverage), sentence)
        elif min_coverage is not None:
            yield _covers_enough(check, of_file, decision, images, z, min_coverage)


def _covers_enough(
    check: str, of_file: str, found: Mapping[str, Any], images: int, z: float, min_coverage: float
) -> Check:
    coverage = float(found["coverage"])
    slack = z * _error(coverage, images)
    sentence = (
        f"{of_file}{100 * coverage:.2f} % of the test images are given a class, {100 * min_coverage:.2f} is asked, and "
        f"{images} images leave {100 * slack:.2f} to chance"
    )
    enough = _at_least(check, coverage, min_coverage - slack, sentence)
    if found["asked"] != "precision":
        return enough
    precision, target = float(found["precision"]), float(found["target"])
    slack = z * _error(precision, round(coverage * images))
    sentence += (
        f"; {100 * precision:.2f} % of these have the right one, {100 * target:.2f} is asked (decide.precision), with "
        f"{100 * slack:.2f} left to chance"
    )
    precise = _at_least(check, precision, target - slack, sentence)
    return replace(enough, sentence=sentence) if precise.passed else precise


def _error(part: float, count: int) -> float:
    """Standard error of a part of so many images, one more of each kind added, so that it is not 0 at 0 and 1."""
    adjusted = (part * count + 1) / (count + 2)
    return math.sqrt(adjusted * (1 - adjusted) / (count + 2))


def _unpaired_error(first: float, second: float, count: int) -> float:
    """Standard error of the difference of two accuracies as if measured on different images, which is never too small.

    A success and a failure are added to each before Wald's formula, so that it is not 0 at an accuracy of 1.
    Source: Agresti & Caffo 2000, The American Statistician 54:280.
    """
    adjusted = [(accuracy * count + 1) / (count + 2) for accuracy in (first, second)]
    return math.sqrt(sum(p * (1 - p) for p in adjusted) / (count + 2))


def _at_least(check: str, value: float, limit: float, sentence: str) -> Check:
    return Check(check, value >= limit - TOLERANCE, rounded(value), rounded(limit), sentence)


def _at_most(check: str, value: float, limit: float | None, what: str, show: Callable[[float], str]) -> Check:
    shown = float(f"{value:.{DIGITS}g}")
    if limit is None:
        return Check(check, True, shown, None, f"{what} {show(value)}, no limit is set")
    return Check(check, value <= limit + TOLERANCE, shown, limit, f"{what} {show(value)}, {show(limit)} is allowed")


def _points(fraction: float) -> str:
    return f"{100 * fraction:+.2f}"
