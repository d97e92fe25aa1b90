"""Which test images a person should see, from what two networks answered and the labels alone."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ROWS = 4096  # of logits at a time: probabilities of all would double what the logits take

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Answers:
    """What a network says of each image, as far as a page tells of it.

    Attributes:
        named: [N], the class with the largest probability.
        confidence: [N], that probability.
        second: [N], the class with the next one; `named` where there is one class only.
        of_label: [N], the probability of the right class.
        withheld: [N], whether the answer is none of the classes.
    """

    named: Indices
    confidence: NDArray[np.float64]
    second: Indices
    of_label: NDArray[np.float64]
    withheld: NDArray[np.bool_]

    @classmethod
    def of(
        cls,
        logits: NDArray[np.float32],
        labels: Indices,
        *,
        temperature: float = 1.0,
        withheld: NDArray[np.bool_] | None = None,
    ) -> "Answers":
        """From logits [N, C], which are divided by the temperature, and labels [N]; `withheld` None is nowhere."""
        refused = np.zeros(len(labels), bool) if withheld is None else withheld
        parts = []
        for start in range(0, len(labels), ROWS):
            part = slice(start, start + ROWS)
            some = logits[part].astype(np.float64) / temperature
            exponents = np.exp(some - some.max(1, keepdims=True))
            probabilities = exponents / exponents.sum(1, keepdims=True)
            rows = np.arange(len(some))
            named = some.argmax(1)
            some[rows, named] = -np.inf
            second = some.argmax(1) if some.shape[1] > 1 else named
            of_label = probabilities[rows, labels[part]]
            parts.append((named, probabilities[rows, named], second, of_label, refused[part]))
        return cls(*(np.concatenate(each) for each in zip(*parts, strict=True)))


@dataclass(frozen=True)
class Pair:
    """Two classes that are taken for each other, `first` being the one before in label order.

    Attributes:
        first_as_second, second_as_first: images of the one that were named the other, in the order of `mistakes`.
    """

    first: int
    second: int
    first_as_second: Indices
    second_as_first: Indices

    @property
    def mistakes(self) -> int:
        """How many images were taken for the other class, both ways."""
        return len(self.first_as_second) + len(self.second_as_first)


def mistakes(answers: Answers, labels: Indices) -> Indices:
    """Images named wrongly, the most confident first; all whose answer is withheld after the others."""
    wrong = np.flatnonzero(answers.named != labels)
    return wrong[np.lexsort((-answers.confidence[wrong], answers.withheld[wrong]))]


def confused_pairs(answers: Answers, labels: Indices, count: int) -> list[Pair]:
    """At most `count` pairs of classes with at least two mistakes between them, those with the most first."""
    wrong = mistakes(answers, labels)
    ends = np.sort(np.stack([labels[wrong], answers.named[wrong]], 1), axis=1)
    pairs, counts = np.unique(ends, axis=0, return_counts=True)
    found = []
    for place in np.argsort(-counts, kind="stable")[:count]:
        if counts[place] < 2:
            break
        first, second = (int(end) for end in pairs[place])
        of_pair = wrong[(ends == pairs[place]).all(1)]
        is_first = labels[of_pair] == first
        found.append(Pair(first, second, of_pair[is_first], of_pair[~is_first]))
    return found


def disagreements(student: Answers, teacher: Answers, labels: Indices) -> dict[str, Indices]:
    """Images of which the two name different classes by who is right: "teacher", "student" or "neither".

    Within each the images of which both are sure come first: those with the largest of the smaller of the two
    confidences.
    """
    differ = student.named != teacher.named
    right = {"teacher": teacher.named == labels, "student": student.named == labels}
    right["neither"] = ~right["teacher"] & ~right["student"]
    sureness = np.minimum(student.confidence, teacher.confidence)
    return {who: _sorted(np.flatnonzero(differ & mask), -sureness) for who, mask in right.items()}


def least_sure(answers: Answers) -> Indices:
    """All images, that with the smallest confidence first."""
    return np.argsort(answers.confidence, kind="stable")


def spread(answers: Answers, labels: Indices, label: int, count: int) -> Indices:
    """At most `count` images of a class, from the one whose class is clearest to the student to the one where it is
    least so, in even steps.
    """
    ordered = _sorted(np.flatnonzero(labels == label), -answers.of_label)
    places = np.unique(np.linspace(0, len(ordered) - 1, min(count, len(ordered))).round().astype(np.int64))
    return ordered[places] if len(ordered) else ordered


def _sorted(images: Indices, by: NDArray[np.float64]) -> Indices:
    return images[np.argsort(by[images], kind="stable")]
