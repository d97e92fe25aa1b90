import pytest
import torch
from torch.nn import functional

from gkd_core.errors import GkdError
from gkd_core.losses.kd import KnowledgeDistillation
from gkd_core.methods import check_hyperparameters, hyperparameters


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


def test_defaults_are_the_benchmarks(pair, make_batch):
    batch = make_batch(pair)
    default = KnowledgeDistillation(*pair)(*batch)
    explicit = KnowledgeDistillation(*pair, weight=0.9, temperature=4.0)(*batch)
    assert default == explicit
    assert {name: parameter.default for name, parameter in hyperparameters("kd").items()} == {
        "weight": 0.9,
        "temperature": 4.0,
    }


def test_a_student_like_its_teacher_has_nothing_to_learn_from_it(make_network, make_pair, make_batch):
    pair = make_pair(make_network(seed=1), make_network(seed=1))
    term = KnowledgeDistillation(*pair)(*make_batch(pair))["kd"]
    term.backward()
    assert term.item() == pytest.approx(0, abs=1e-6)
    assert all(p.grad.abs().max() < 1e-6 for p in pair.student.parameters() if p.grad is not None)
    assert all(p.grad is None for p in pair.teacher.parameters())


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"weight": 1.5}, r"distill\.options\.kd\.weight is 1\.5"),
        ({"temperature": 0}, r"distill\.options\.kd\.temperature is 0"),
        ({"weigth": 0.5}, "kd\\.weight'"),
    ],
)
def test_options_out_of_range_are_one_sentence(given, words):
    with pytest.raises(GkdError, match=words):
        check_hyperparameters("kd", given)
