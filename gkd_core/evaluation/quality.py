"""What logits say about a network's quality. Logits are [N, C], labels int64 [N]; computed in float64."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax
from sklearn.metrics import precision_recall_fscore_support

Logits = NDArray[np.floating]
Labels = NDArray[np.integer]


def log_probabilities(logits: Logits) -> NDArray[np.float64]:
    """Log-softmax [N, C]."""
    result: NDArray[np.float64] = log_softmax(logits.astype(np.float64), axis=1)
    return result


def top_k_correct(logits: Logits, labels: Labels, k: int) -> NDArray[np.bool_]:
    """[N] whether the label is among the k largest logits; of equal logits the lower class is first, as in argmax."""
    best = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    correct: NDArray[np.bool_] = (best == labels[:, None]).any(axis=1)
    return correct


def negative_log_likelihood(logits: Logits, labels: Labels) -> float:
    """Mean −log p(label), in nats."""
    return float(-log_probabilities(logits)[np.arange(len(labels)), labels].mean())


def agreement(logits: Logits, reference_logits: Logits) -> float:
    """Fraction of images on which both predict the same class."""
    return float((logits.argmax(1) == reference_logits.argmax(1)).mean())


def kl_divergence(reference_logits: Logits, logits: Logits) -> float:
    """Mean KL(reference ‖ network) at temperature 1, in nats."""
    reference, ours = log_probabilities(reference_logits), log_probabilities(logits)
    return float((np.exp(reference) * (reference - ours)).sum(1).mean())


@dataclass(frozen=True)
class PerClass:
    """Quality by class, each [C]; NaN where it is not defined.

    Attributes:
        support: images of the class.
        recall: the part of them that was recognised, which is the class's own accuracy; NaN without images.
        precision: of the images taken for this class, the part that was; NaN where none was taken for it.
        f1: harmonic mean of the two.
    """

    support: NDArray[np.int64]
    recall: NDArray[np.float64]
    precision: NDArray[np.float64]
    f1: NDArray[np.float64]

    @property
    def balanced_accuracy(self) -> float:
        """Mean recall of the classes that have images: each class counts alike, however many images it has."""
        return float(self.recall[self.support > 0].mean())

    @property
    def macro_f1(self) -> float:
        """Mean F1 of the classes that have images; 0 for one that is never recognised."""
        return float(self.f1[self.support > 0].mean())


def per_class(predicted: Labels, labels: Labels, num_classes: int) -> PerClass:
    """Support, recall, precision and F1 of every class, in order; images with label −1 have no part in it."""
    predicted, labels = predicted[labels >= 0], labels[labels >= 0]
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, predicted, labels=np.arange(num_classes), zero_division=np.nan
    )
    return PerClass(support=support.astype(np.int64), recall=recall, precision=precision, f1=f1)
