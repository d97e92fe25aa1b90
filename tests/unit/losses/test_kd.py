import pytest
import torch
from torch.nn import functional

from gkd_core.losses.kd import KnowledgeDistillation


@pytest.fixture
def pair(make_network, make_pair):
    return make_pair(make_network(seed=1), make_network(channels=7, seed=2))


def test_terms_by_their_formula(pair, make_batch):
    batch = make_batch(pair)
    student, teacher = batch.student.logits, batch.teacher.logits
    for weight, temperature in ((0.9, 4.0), (0.3, 2.0)):
        terms = KnowledgeDistillation(*pair, weight=weight, temperature=temperature)(*batch)
        p, q = (teacher / temperature).softmax(1), (student / temperature).softmax(1)
        kl = (p * (p / q).log()).sum(1).mean()
        assert set(terms) == {"ce", "kd"}
        assert torch.allclose(terms["ce"], (1 - weight) * functional.cross_entropy(student, batch.labels))
        assert torch.allclose(terms["kd"], weight * temperature**2 * kl, rtol=1e-4)
