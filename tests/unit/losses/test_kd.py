import pytest
import torch
from torch.nn import functional

from gkd_core.errors import GkdError
from gkd_core.losses.kd import KnowledgeDistillation
from gkd_core.methods import check_hyperparameters, hyperparameters


@pytest.fixture
def context(make_network, make_context):
    return make_context(make_network(seed=1), make_network(channels=7, seed=2))


def test_terms_by_their_formula(context, make_step):
    step = make_step(context)
    student, teacher = step.student.logits, step.teacher.logits
    for alpha, temperature in ((0.9, 4.0), (0.3, 2.0)):
        terms = KnowledgeDistillation(context, alpha=alpha, temperature=temperature)(step)
        p, q = (teacher / temperature).softmax(1), (student / temperature).softmax(1)
        kl = (p * (p / q).log()).sum(1).mean()
        assert set(terms) == {"ce", "kd"}
        assert torch.allclose(terms["ce"], (1 - alpha) * functional.cross_entropy(student, step.labels))
        assert torch.allclose(terms["kd"], alpha * temperature**2 * kl, rtol=1e-4)


def test_defaults_are_the_benchmarks(context, make_step):
    step = make_step(context)
    default = KnowledgeDistillation(context)(step)
    explicit = KnowledgeDistillation(context, alpha=0.9, temperature=4.0)(step)
    assert default == explicit
    assert {name: parameter.default for name, parameter in hyperparameters("kd").items()} == {
        "alpha": 0.9,
        "temperature": 4.0,
    }


def test_a_student_like_its_teacher_has_nothing_to_learn_from_it(make_network, make_context, make_step):
    context = make_context(make_network(seed=1), make_network(seed=1))
    term = KnowledgeDistillation(context)(make_step(context))["kd"]
    term.backward()
    assert term.item() == pytest.approx(0, abs=1e-6)
    assert all(p.grad.abs().max() < 1e-6 for p in context.student.parameters() if p.grad is not None)
    assert all(p.grad is None for p in context.teacher.parameters())


def test_needs_a_teacher(make_network, make_context):
    with pytest.raises(GkdError, match="given none"):
        KnowledgeDistillation(make_context(make_network(), None))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"alpha": 1.5}, r"distill\.options\.kd\.alpha is 1\.5"),
        ({"temperature": 0}, r"distill\.options\.kd\.temperature is 0"),
        ({"alhpa": 0.5}, "kd\\.alpha'"),
    ],
)
def test_options_out_of_range_are_one_sentence(given, words):
    with pytest.raises(GkdError, match=words):
        check_hyperparameters("kd", given)
