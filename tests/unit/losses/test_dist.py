"""Relations among predictions, and the correlation they are measured by."""

import pytest
import torch
from scipy.stats import pearsonr
from torch.nn import functional

from gkd_core.losses.dist import Dist, pearson_correlation, relation_losses
from tests.unit.losses.draws import logits, normal


def both(student, teacher, temperature=4.0):
    return sum(relation_losses(student, teacher, temperature))


def test_value_by_hand():
    # Probabilities by rows: student (½, ⅜, ⅛), (⅛, ⅜, ½); teacher (½, ⅛, ⅜), (⅜, ⅛, ½).
    student = torch.tensor([[4.0, 3.0, 1.0], [1.0, 3.0, 4.0]]).log()
    teacher = torch.tensor([[4.0, 1.0, 3.0], [3.0, 1.0, 4.0]]).log()
    inter, intra = relation_losses(student, teacher, 1.0)
    # Eighths, centred and tripled: (4, 1, −5) with (4, −5, 1), and (−5, 1, 4) with (1, −5, 4), all of length √42.
    row_1 = (4 * 4 + 1 * -5 + -5 * 1) / 42
    row_2 = (-5 * 1 + 1 * -5 + 4 * 4) / 42
    assert inter.item() == pytest.approx(1 - (row_1 + row_2) / 2, abs=1e-6)
    # Columns of two: falling/falling 1, constant 0, rising/rising 1.
    assert intra.item() == pytest.approx(1 - (1 + 0 + 1) / 3, abs=1e-6)


def test_scipy_agrees():
    student, teacher = logits(6, 5), logits(6, 5, seed=1)
    s, t = (student / 4).softmax(1).numpy(), (teacher / 4).softmax(1).numpy()
    inter, intra = relation_losses(student, teacher)
    # ε = 1e-8 below the fraction line is what they differ by.
    assert inter.item() == pytest.approx(1 - sum(pearsonr(s[i], t[i]).statistic for i in range(6)) / 6, abs=1e-6)
    assert intra.item() == pytest.approx(1 - sum(pearsonr(s[:, c], t[:, c]).statistic for c in range(5)) / 5, abs=1e-6)


def published(student, teacher, temperature):
    """The authors' code, written as they do it: ε on the product of the lengths."""

    def correlation(a, b):
        a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
        return ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-8)).mean()

    s, t = (student / temperature).softmax(1), (teacher / temperature).softmax(1)
    return (1 - correlation(s, t)) + (1 - correlation(s.T, t.T))


@pytest.mark.parametrize("rows", [2, 8])
@pytest.mark.parametrize("confidence", [1, 10])
def test_values_and_gradients_are_the_published_ones_also_where_epsilon_counts(rows, confidence):
    student, teacher = (confidence * logits(rows, 5, seed=seed) for seed in (0, 1))
    student.requires_grad_()
    ours, theirs = both(student, teacher, 1.0), published(student, teacher, 1.0)
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-14)
    gradients = [torch.autograd.grad(loss, student)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-14)


def test_it_is_the_relation_that_counts_not_the_value():
    """Probabilities drawn towards uniform keep every relation, and KL would punish them."""
    teacher = logits(5, 4)
    p = (teacher / 4).softmax(1)
    student = 4 * (0.3 * p + 0.7 / 4).log()
    assert both(student, teacher).item() == pytest.approx(0, abs=1e-5)  # but for ε


def test_a_batch_of_one_has_no_relation_within_classes():
    student = logits(1, 5, dtype=torch.float32).requires_grad_()
    inter, intra = relation_losses(student, logits(1, 5, seed=1, dtype=torch.float32))
    (gradient,) = torch.autograd.grad(intra, student, retain_graph=True)
    assert intra.item() == 1.0
    assert torch.equal(gradient, torch.zeros(1, 5))
    assert torch.autograd.grad(inter, student)[0].abs().sum() > 0


def test_the_method_weighs_as_the_authors_do_and_squares_tau_once(make_network, make_pair, make_batch):
    pair = make_pair(make_network(seed=1), make_network(seed=2))
    batch = make_batch(pair)
    inter, intra = relation_losses(batch.student.logits, batch.teacher.logits, 4.0)
    terms = Dist(*pair)(*batch)
    assert terms["ce"].item() == functional.cross_entropy(batch.student.logits, batch.labels).item()
    assert terms["inter"].item() == pytest.approx(2 * 16 * inter.item())
    assert terms["intra"].item() == pytest.approx(2 * 16 * intra.item())


@pytest.mark.parametrize("constant", [0.0, 0.1, -7.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_constant_vector_correlates_with_nothing_and_gets_no_gradient(constant, dtype):
    x = torch.full((1, 7), constant, dtype=dtype, requires_grad=True)
    y = normal(1, 7).to(dtype).requires_grad_()
    correlation = pearson_correlation(x, y)
    correlation.sum().backward()
    assert correlation.item() == 0.0
    assert torch.equal(x.grad, torch.zeros_like(x))
    assert torch.equal(y.grad, torch.zeros_like(y))


def test_small_variation_on_a_large_mean_still_counts():
    x = torch.tensor([[1.0, 1.001, 1.002, 0.999]])
    assert pearson_correlation(x, 2 * x - 5).item() == pytest.approx(1.0, abs=1e-3)
