"""The decision of a deployed model: calibrated probabilities, and when an image is none of the classes.

A model carries its decision in the metadata of its ONNX file (`METADATA`) and, the same, under `decision` in
manifest.json. It is also part of the graph, whose outputs `OUTPUTS` follow from it; what stands here is the same in
numpy, for who has logits. Imports numpy and pydantic alone: whatever serves has them.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from gkd_core.errors import GkdError

METADATA = "gkd.decision"
OUTPUTS = ("probabilities", "score", "decision")
"""float32 [B, C], float32 [B] and int64 [B]: the graph's outputs beside `logits`."""
NONE_OF_THESE = -1
WORDS = "none of these"
NEVER = float(np.finfo(np.float32).max)  # the threshold of a class that is never named

LEAST = 1e-30  # of the probability of all other classes: in float32 it may come to 0, which has no logarithm

Score = Literal["max_probability", "energy", "feature_distance", "probability_and_distance"]
OF_FEATURES: tuple[Score, ...] = ("feature_distance", "probability_and_distance")  # they look at more than the logits
ABOUT: dict[Score, str] = {
    "max_probability": "the largest probability",
    "energy": "the logsumexp of the logits",
    "feature_distance": "minus the squared Mahalanobis distance of the features to the nearest class",
    "probability_and_distance": "minus the logarithm of the probability of all other classes, lowered where the "
    "features are farther from every class than those of validation,",
}
Part = Annotated[float, Field(ge=0.0, le=1.0)]


class _Read(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)


class Shown(_Read):
    """What the validation images showed of a decision.

    Attributes:
        images: how many.
        coverage: the part of them that is given a class.
        precision: the part of these that is given the right one; None where there are none.
        nll: mean −log p(label) at temperature 1, in nats.
        calibrated_nll: the same at the decision's temperature.
        note: why the temperature is 1 though one was looked for, in a sentence; else empty.
    """

    images: Annotated[int, Field(ge=1)]
    coverage: Part
    precision: Part | None
    nll: float
    calibrated_nll: float
    note: str = ""


class Spread(_Read):
    """Mean and standard deviation of the score `feature_distance` on the validation images."""

    mean: float
    deviation: Annotated[float, Field(gt=0.0)]

    @staticmethod
    def of(distances: NDArray[np.floating[Any]]) -> "Spread":
        """Of distances [N], N ≥ 1; where all are the same, a deviation that is small and not zero."""
        mean, deviation = float(distances.mean(dtype=np.float64)), float(distances.std(dtype=np.float64))
        least = 1e-6 * (abs(mean) or 1.0)
        return Spread(mean=float(f"{mean:.6g}"), deviation=float(f"{max(deviation, least):.6g}"))


class Decision(_Read):
    """Which class an image is given, and when none.

    Attributes:
        temperature: logits are divided by it before softmax; 1 leaves the probabilities as they are.
        score: what says how sure the model is; larger is surer (`ABOUT`).
        distance: what is usual for features, which `probability_and_distance` looks at; None for other scores.
        threshold: an image with a smaller score is none of the classes; None gives no image a class.
        thresholds: [C] the same by the class that would be named, in place of `threshold`; None where one is for all.
        asked: what the thresholds were chosen for: "precision" (of what is given a class, the part that is right) or
            "coverage" (of all, the part that is given a class).
        target: how much of it, in [0, 1].
        model: whose validation outputs it was chosen on: fp32, int8 or fp16. A smaller file has its own decision.
        validation: what these showed.
    """

    temperature: Annotated[float, Field(gt=0.0)] = 1.0
    score: Score
    distance: Spread | None = None
    threshold: float | None
    thresholds: Annotated[tuple[float | None, ...] | None, Field(strict=False)] = None
    asked: Literal["precision", "coverage"]
    target: Part
    model: str = "fp32"
    validation: Shown

    @model_validator(mode="after")
    def _has_distance(self) -> Self:
        if (self.distance is not None) != (self.score == "probability_and_distance"):
            raise ValueError("`distance` belongs to the score probability_and_distance, and to no other")
        return self

    @model_serializer(mode="wrap")
    def _without_none(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Other scores are written as they were before there was this one."""
        found: dict[str, Any] = handler(self)
        if self.distance is None:
            del found["distance"]
        return found

    def probabilities(self, logits: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """Calibrated probabilities [N, C] of logits [N, C].

        >>> from gkd_core.decision import Decision, Shown
        >>> shown = Shown(images=1, coverage=1.0, precision=1.0, nll=0.1, calibrated_nll=0.1)
        >>> half = Decision(
        ...     temperature=2.0, score="energy", threshold=0.0, asked="coverage", target=1.0, validation=shown
        ... )
        >>> half.probabilities(np.log([[9.0, 1.0]])).round(2).tolist()
        [[0.75, 0.25]]
        """
        exponentials = self._exponentials(logits)
        found: NDArray[np.float32] = (exponentials / exponentials.sum(axis=1, keepdims=True)).astype(np.float32)
        return found

    def _exponentials(self, logits: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """What the probabilities [N, C] are before they are made to sum to 1."""
        scaled = logits.astype(np.float64) / self.temperature
        found: NDArray[np.float64] = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        return found

    def scores(
        self, logits: NDArray[np.floating[Any]], distances: NDArray[np.floating[Any]] | None = None
    ) -> NDArray[np.float32]:
        """How sure the model is of each image, [N], larger is surer.

        Args:
            logits: [N, C].
            distances: [N] minus the squared distance of the features to the nearest class, which the scores
                `OF_FEATURES` need (`gkd_core.export.class_distance`).
        Raises:
            GkdError: the score needs distances, and there are none.

        The score `probability_and_distance` is −ln(1 − p) − ln(1 + exp((a − d) / σ)), with p the largest probability, d
        the distance (its minus in it), and a = μ − 3σ of the distances on validation: an order by p among what is as
        near as validation's images, and a loss of one for each σ beyond.
        Source: Xia & Bouganis 2022, §4 (arXiv:2207.07506), with the largest probability and the distance of features.

        >>> from gkd_core.decision import Decision, Shown, Spread
        >>> shown = Shown(images=1, coverage=1.0, precision=1.0, nll=0.1, calibrated_nll=0.1)
        >>> both = Decision(
        ...     score="probability_and_distance", distance=Spread(mean=-10.0, deviation=2.0), threshold=0.0,
        ...     asked="coverage", target=1.0, validation=shown,
        ... )  # fmt: skip
        >>> logits = np.log([[9.0, 1.0]] * 3)
        >>> both.scores(logits, np.array([-1.0, -16.0, -36.0])).round(2).tolist()  # near, at a, 10 σ beyond
        [2.3, 1.61, -7.7]
        """
        if self.score in OF_FEATURES and distances is None:
            raise GkdError(
                f"this model's score, {self.score}, looks at features, which logits do not tell: take its output "
                "`score`"
            )
        found: NDArray[np.floating[Any]]
        if self.score == "max_probability":
            found = self.probabilities(logits).max(axis=1)
        elif self.score == "energy":
            values = logits.astype(np.float64)
            largest = values.max(axis=1)
            found = largest + np.log(np.exp(values - largest[:, None]).sum(axis=1))
        else:
            assert distances is not None
            found = np.asarray(distances, np.float64)
            if self.distance is not None:
                exponentials = self._exponentials(logits)
                whole = exponentials.sum(axis=1)
                np.put_along_axis(exponentials, exponentials.argmax(axis=1)[:, None], 0.0, axis=1)
                others = np.maximum(exponentials.sum(axis=1) / whole, LEAST)
                far = self.distance.mean - 3 * self.distance.deviation
                found = -np.log(others) - np.logaddexp(0.0, (far - found) / self.distance.deviation)
        return found.astype(np.float32)

    def decide(
        self, logits: NDArray[np.floating[Any]], score: NDArray[np.floating[Any]] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The class [N] that each image is given, −1 for none of them, and its score [N].

        Args:
            logits: [N, C]; where one is NaN the image is given no class.
            score: [N] the graph's; None computes it from the logits.
        Raises:
            GkdError: see `scores`.
        """
        found = self.scores(logits) if score is None else np.asarray(score, np.float32)
        named = logits.argmax(axis=1).astype(np.int64)
        limits = self.limits(logits.shape[1])[named]
        with np.errstate(invalid="ignore"):
            return np.where(found >= limits, named, NONE_OF_THESE), found

    def limits(self, classes: int) -> NDArray[np.float32]:
        """The smallest score [C] with which each of so many classes is named."""
        values = (self.threshold,) * classes if self.thresholds is None else self.thresholds
        return np.array([NEVER if value is None else value for value in values], np.float32)

    def as_json(self) -> str:
        """What the metadata of an ONNX file holds."""
        return self.model_dump_json()

    @staticmethod
    def read(metadata: Mapping[str, str]) -> "Decision | None":
        """The decision among the metadata of an ONNX file; None where the model has none.

        Raises:
            GkdError: it is damaged.
        """
        if METADATA not in metadata:
            return None
        try:
            return Decision.model_validate_json(metadata[METADATA])
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise GkdError(f"the model's {METADATA} is damaged ({where}: {first['msg']}): export it again") from None

    def words(self) -> Iterator[str]:
        """What it does, in sentences for whoever reads a report, a README or a model card."""
        shown = self.validation
        limits = (self.threshold,) if self.thresholds is None else self.thresholds
        never = limits.count(None)
        if never == len(limits):
            yield (
                f"Every image is {WORDS}: no threshold gives a precision of {100 * self.target:g} % on "
                f"{shown.images:,} validation images of the {self.model} model."
            )
        else:
            yield from self._words_of_limits(never)
        if self.temperature != 1.0:
            yield (
                f"Probabilities are calibrated: softmax of the logits divided by {self.temperature:.4g} (NLL on "
                f"validation {shown.nll:.4f} before, {shown.calibrated_nll:.4f} after)."
            )
        elif shown.note:
            yield f"Probabilities are not calibrated: {shown.note}."

    def _words_of_limits(self, never: int) -> Iterator[str]:
        """Where images are given a class, and what that was chosen by; so many classes are never named."""
        shown, several = self.validation, self.thresholds is not None
        limit = "the threshold of that class" if several else f"{self.threshold:.6g}"
        about = ABOUT[self.score]
        if self.temperature != 1.0 and self.score in ("max_probability", "probability_and_distance"):
            about = about.replace("probability", "calibrated probability")
        yield f"An image is given its likeliest class where {about} is at least {limit}, else it is {WORDS}."
        if never:
            yield (
                f"{never} of the {len(self.thresholds or ())} classes {'is' if never == 1 else 'are'} never named: "
                f"validation shows no threshold that gives {'it' if never == 1 else 'them'} a precision of "
                f"{100 * self.target:g} %."
            )
        goal = (
            f"{100 * self.target:g} % of the named classes are right"
            if self.asked == "precision"
            else f"{100 * self.target:g} % of the images are given a class"
        )
        right = "" if shown.precision is None else f", {100 * shown.precision:.1f} % of these the right one"
        yield (
            f"{'The thresholds were' if several else 'The threshold was'} chosen on {shown.images:,} validation images "
            f"of the {self.model} model so that {goal}; there {100 * shown.coverage:.1f} % are given a class{right}."
        )
