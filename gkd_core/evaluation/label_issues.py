"""Labels that are probably wrong: confident learning (Northcutt et al. 2021, arXiv:1911.00068), by cleanlab.

A network that was trained on a label has learned it, mistake or not, so its own answers prove little. What it answers
here is therefore out of sample: a linear classifier on its embeddings, fitted five times, each time on four fifths of
the images, tells of the others; copies of a picture are on one side. The embeddings of a teacher that saw the labels
lean towards them all the same, and hide a part of the mistakes; published weights (`torchvision:WEIGHTS`) never did.
"""

import importlib.util
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from gkd_core.data.health import Finding, Look, same_pictures
from gkd_core.data.images import Unreadable, fit, read_image
from gkd_core.data.progress import progress
from gkd_core.data.sources.base import Source
from gkd_core.errors import GkdError
from gkd_core.models.network import Network
from gkd_core.training.device import choose_device

FOLDS = 5
FEWEST = 2 * FOLDS  # images of a class, or nothing is said of it
BATCH_SIZE = 32


def require_cleanlab() -> None:
    """Raises: GkdError: cleanlab is not installed."""
    if importlib.util.find_spec("cleanlab") is None:
        raise GkdError("wrong labels are looked for by the package cleanlab: pip install 'gkd[photos]'")


def label_issues(network: Network, source: Source, looks: Sequence[Look]) -> list[Finding]:
    """Images of all splits whose label a classifier that never saw them holds for wrong, the most certain first.

    Args:
        network: gives the embeddings; it need not know the classes.
        looks: of `look_at`; blank and unreadable ones are left out, and classes with fewer than `FEWEST` images.
    """
    from cleanlab.filter import find_label_issues

    counts = np.bincount([look.label for look in looks if _usable(look)], minlength=len(source.classes))
    asked = [look for look in looks if _usable(look) and counts[look.label] >= FEWEST]
    known = np.unique([look.label for look in asked])
    if len(known) < 2:
        return []
    labels = np.searchsorted(known, [look.label for look in asked])
    probabilities = _out_of_sample(_embeddings(network, source, asked), labels, _groups(asked))
    suspects = find_label_issues(labels, probabilities, return_indices_ranked_by="self_confidence", n_jobs=1)
    return [_finding(asked[row], source.classes, known, probabilities[row], labels[row]) for row in suspects.tolist()]


def _usable(look: Look) -> bool:
    return not look.unreadable and not look.blank and look.label >= 0


def _groups(looks: Sequence[Look]) -> NDArray[np.int64]:
    """A number for each picture, the same for its copies."""
    group = {id(look): number for number, copies in enumerate(same_pictures(looks)) for look in copies}
    return np.array([group.get(id(look), len(looks) + row) for row, look in enumerate(looks)], dtype=np.int64)


@torch.no_grad()
def _embeddings(network: Network, source: Source, looks: Sequence[Look]) -> NDArray[np.float32]:
    """[N, D]."""
    device = choose_device("auto")
    network.to(device).eval()
    parts = []
    with progress("embeddings", len(looks), unit="images") as advance:
        for start in range(0, len(looks), BATCH_SIZE):
            some = looks[start : start + BATCH_SIZE]
            pixels = np.stack([_pixels(network, source, look) for look in some])
            images = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).float() / 255
            parts.append(network(images).embedding.float().cpu())
            advance(len(some))
    return torch.cat(parts).numpy()


def _pixels(network: Network, source: Source, look: Look) -> NDArray[np.uint8]:
    """The picture as large as the network's own images are, whatever size the data is prepared in."""
    side, channels = round(network.spec.image_size / network.spec.crop_fraction), network.spec.in_channels
    examples = source.splits[look.split]
    try:
        if examples.open is None:
            return fit(examples.read(look.position), side, channels)
        with examples.open(look.position) as stream:
            return read_image(stream, side, channels)
    except Unreadable as error:
        raise GkdError(f"{look.name} cannot be read any more ({error}): check again") from None


def _out_of_sample(
    embeddings: NDArray[np.float32], labels: NDArray[np.int64], groups: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Class probabilities [N, C] of each image by a classifier that was fitted without it and its copies."""
    probabilities = np.zeros((len(labels), int(labels.max()) + 1))
    # Of C from 0.0001 to 1 about 1/D named the fewest right labels of flowers, and hardly fewer wrong ones.
    strength = 1 / embeddings.shape[1]
    for fitted, held_out in StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0).split(embeddings, labels, groups):
        classifier = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=500))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a fit that has not converged to the last digit ranks all the same
            classifier.fit(embeddings[fitted], labels[fitted])
        probabilities[held_out[:, None], classifier.classes_] = classifier.predict_proba(embeddings[held_out])
    return probabilities


def _finding(
    look: Look, classes: tuple[str, ...], known: NDArray[np.int64], probabilities: NDArray[np.float64], label: int
) -> Finding:
    likely = int(probabilities.argmax())
    ours, theirs = classes[look.label], classes[known[likely]]
    detail = f"labelled {ours!r} ({probabilities[label]:.2f}), looks like {theirs!r} ({probabilities[likely]:.2f})"
    return Finding("label_issues", (look,), detail)
