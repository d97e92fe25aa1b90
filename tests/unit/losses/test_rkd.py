import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist, squareform
from torch.nn import functional

from gkd_core.losses.rkd import RelationalDistillation, rkd_angle_loss, rkd_distance_loss
from tests.unit.losses.draws import normal


def huber(x):
    return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5


def distance_oracle(student, teacher):
    """scipy's distances, sample by sample."""
    total, relative = 0.0, []
    for embedding in (student, teacher):
        distances = squareform(pdist(embedding.numpy()))
        relative.append(distances / distances[~np.eye(len(distances), dtype=bool)].mean())
    for i in range(len(student)):
        for j in range(len(student)):
            total += huber(relative[0][i, j] - relative[1][i, j])
    return total / len(student) ** 2


def angle_oracle(student, teacher):
    """Three loops over samples, plain Python."""

    def cosine(x, i, j, k):
        a, b = (x[j] - x[i]).tolist(), (x[k] - x[i]).tolist()
        if not (any(a) and any(b)):
            return 0.0
        return sum(u * v for u, v in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))

    n = range(len(student))
    triples = [huber(cosine(student, i, j, k) - cosine(teacher, i, j, k)) for i in n for j in n for k in n]
    return sum(triples) / len(triples)


def test_distance_by_hand():
    # On a line: distances 1, 2, 3 with mean 2 against 1, 1, 2 with mean 4/3; each pair counts twice among nine.
    student, teacher = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[0.0], [1.0], [2.0]])
    differences = (1 / 2 - 3 / 4, 2 / 2 - 3 / 4, 3 / 2 - 3 / 2)
    assert rkd_distance_loss(student, teacher).item() == pytest.approx(2 * sum(map(huber, differences)) / 9)


def test_samples_that_coincide_are_a_pair_like_any_other():
    """The authors' code gives them a distance of 1e-6, and .0785 here."""
    student = torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    teacher = torch.tensor([[0.0, 1.0], [2.0, 0.0], [1.0, 3.0], [4.0, 2.0]])
    assert rkd_distance_loss(student, teacher).item() == pytest.approx(0.0785, abs=5e-5)
    assert rkd_distance_loss(student, teacher).item() == pytest.approx(distance_oracle(student, teacher), rel=1e-5)


def test_angle_by_hand():
    # A right angle at the first sample, and two of 45°, against three samples on a line, the first in the middle.
    student = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    teacher = torch.tensor([[0.0], [1.0], [-1.0]])
    half = math.sqrt(0.5)
    # Ordered triples with three different samples: 0 against −1 twice, √½ against 1 four times; others agree.
    expected = (2 * huber(1.0) + 4 * huber(1 - half)) / 27
    assert rkd_angle_loss(student, teacher).item() == pytest.approx(expected, rel=1e-5)


def test_against_naive_loops():
    for seed in range(3):
        student, teacher = normal(6, 3, seed=seed), normal(6, 5, seed=seed + 10)
        assert rkd_distance_loss(student, teacher).item() == pytest.approx(distance_oracle(student, teacher), rel=1e-12)
        assert rkd_angle_loss(student, teacher).item() == pytest.approx(angle_oracle(student, teacher), rel=1e-12)


def test_small_distances_are_not_lost_to_rounding():
    student = (1000 + 1e-2 * normal(6, 3)).float()
    teacher = normal(6, 4, seed=1)
    for loss, oracle in ((rkd_distance_loss, distance_oracle), (rkd_angle_loss, angle_oracle)):
        assert loss(student, teacher.float()).item() == pytest.approx(oracle(student.double(), teacher), rel=1e-3)


@pytest.mark.parametrize("loss", [rkd_distance_loss, rkd_angle_loss])
class TestBoth:
    def test_never_nan_where_samples_coincide(self, loss):
        twins = normal(4, 3)
        twins[2] = twins[0]
        for student, teacher in (
            (torch.zeros(4, 3), normal(4, 2)),
            (normal(4, 3), torch.zeros(4, 2)),
            (twins, normal(4, 2)),
            (normal(1, 3), normal(1, 2)),
        ):
            leaf = student.clone().requires_grad_()
            value = loss(leaf, teacher)
            value.backward()
            assert value.isfinite()
            assert leaf.grad.abs().max() < 10


class TestMethod:
    def test_terms(self, make_network, make_pair, make_batch):
        pair = make_pair(make_network(), make_network(channels=7, seed=1))
        batch = make_batch(pair)
        terms = RelationalDistillation(*pair)(*batch)
        assert set(terms) == {"ce", "distance", "angle"}
        assert torch.equal(terms["ce"], functional.cross_entropy(batch.student.logits, batch.labels))
        embeddings = batch.student.embedding, batch.teacher.embedding
        assert torch.equal(terms["distance"], 25 * rkd_distance_loss(*embeddings))
        assert torch.equal(terms["angle"], 50 * rkd_angle_loss(*embeddings))
        assert set(RelationalDistillation(*pair, weight_angle=0.0)(*batch)) == {"ce", "distance"}
