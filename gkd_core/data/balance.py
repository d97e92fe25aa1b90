"""Classes of different size: how many images each has, and three ways to make up for it (`train.balance`).

Rows without a label (−1) are in no count.
"""

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.integer]


def class_counts(labels: Labels, num_classes: int) -> NDArray[np.int64]:
    """Labelled images of each class, [C]."""
    return np.bincount(labels[labels >= 0], minlength=num_classes)


def class_weights(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """w_c = N / (C · n_c), [C]: all classes count alike, and the mean over the N images is 1.

    C counts the classes with images; one without has weight 0, which no image asks for.

    Source: King & Zeng 2001, "Logistic regression in rare events data", eq. 8; scikit-learn's `balanced`.

    Example:
        >>> class_weights(np.array([30, 10])).round(3).tolist()
        [0.667, 2.0]
    """
    there = counts > 0
    weights: NDArray[np.float64] = np.where(there, counts.sum() / (there.sum() * np.maximum(counts, 1)), 0.0)
    return weights


def log_priors(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """log π_c, [C], π_c = n_c / N; a class without images counts as one with a single image, so that it is finite.

    Example:
        >>> np.exp(log_priors(np.array([30, 10]))).tolist()
        [0.75, 0.25]
    """
    priors: NDArray[np.float64] = np.log(np.maximum(counts, 1) / counts.sum())
    return priors


def balanced_order(labels: Labels, generator: np.random.Generator) -> NDArray[np.int64]:
    """As many rows as there are, in which all classes come equally often: [N].

    Each class gets N / C places (what is left over goes to classes drawn at random). It fills them with its images in
    random order, all of them once before any a second time: of a large class an epoch shows a part, another one each
    time, and a small class's images come again and again. Rows without a label come once each.

    Args:
        labels: [N] int64.
        generator: all that is random; nothing else is.
    """
    unlabelled, labelled = np.flatnonzero(labels < 0), np.flatnonzero(labels >= 0)
    classes = np.unique(labels[labelled])
    rows = [unlabelled]
    if len(classes):
        each, over = divmod(len(labelled), len(classes))
        larger = set(generator.permutation(classes)[:over].tolist())
        for one in classes:
            own, places = np.flatnonzero(labels == one), each + (int(one) in larger)
            rounds = [generator.permutation(own) for _ in range(-(-places // len(own)))]
            rows.append(np.concatenate([*rounds, own[:0]])[:places])
    return generator.permutation(np.concatenate(rows))
