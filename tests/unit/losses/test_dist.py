import pytest
import torch
from scipy.stats import pearsonr

from gkd_core.losses.dist import Dist, relation_losses


def logits(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype) * 2


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
    assert inter.item() == pytest.approx(1 - sum(pearsonr(s[i], t[i]).statistic for i in range(6)) / 6, abs=1e-12)
    assert intra.item() == pytest.approx(1 - sum(pearsonr(s[:, c], t[:, c]).statistic for c in range(5)) / 5, abs=1e-12)


def test_zero_loss_and_gradient_at_equality():
    student = logits(4, 7).requires_grad_()
    value = both(student, student.detach() + 3.0)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-12)
    assert student.grad.abs().max() < 1e-12


def test_it_is_the_relation_that_counts_not_the_value():
    """Probabilities drawn towards uniform keep every relation, and KL would punish them."""
    teacher = logits(5, 4)
    p = (teacher / 4).softmax(1)
    student = 4 * (0.3 * p + 0.7 / 4).log()
    assert both(student, teacher).item() == pytest.approx(0, abs=1e-12)


def test_no_gradient_into_the_teacher():
    student, teacher = logits(4, 7).requires_grad_(), logits(4, 7, seed=1).requires_grad_()
    both(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


def test_gradcheck():
    teacher = logits(3, 4, seed=1)
    assert torch.autograd.gradcheck(lambda s: relation_losses(s, teacher), logits(3, 4).requires_grad_())


def test_half_types_are_computed_in_float32():
    student, teacher = logits(8, 10, dtype=torch.float32), logits(8, 10, seed=1, dtype=torch.float32)
    low = both(student.bfloat16(), teacher.bfloat16())
    assert low.dtype == torch.float32
    assert low.item() == pytest.approx(both(student, teacher).item(), rel=0.02)
    assert both(student.double(), teacher.double()).dtype == torch.float64


def test_the_order_of_the_batch_does_not_matter():
    student, teacher = logits(5, 6), logits(5, 6, seed=1)
    order = torch.tensor([3, 0, 4, 1, 2])
    got, expected = relation_losses(student[order], teacher[order]), relation_losses(student, teacher)
    torch.testing.assert_close(got, expected, atol=1e-13, rtol=0)


def test_a_batch_of_one_has_no_relation_within_classes():
    student = logits(1, 5, dtype=torch.float32).requires_grad_()
    inter, intra = relation_losses(student, logits(1, 5, seed=1, dtype=torch.float32))
    (gradient,) = torch.autograd.grad(intra, student, retain_graph=True)
    assert intra.item() == 1.0
    assert torch.equal(gradient, torch.zeros(1, 5))
    assert torch.autograd.grad(inter, student)[0].abs().sum() > 0


def test_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="differ in shape"):
        relation_losses(logits(2, 3), logits(2, 4))


def test_the_method_weighs_as_the_authors_do_and_squares_tau_once(make_network, make_context, make_step):
    context = make_context(make_network(seed=1), make_network(seed=2))
    step = make_step(context)
    inter, intra = relation_losses(step.student.logits, step.teacher.logits, 4.0)
    terms = Dist(context)(step)
    assert terms["ce"].item() == step.cross_entropy(step.student.logits).item()
    assert terms["inter"].item() == pytest.approx(2 * 16 * inter.item())
    assert terms["intra"].item() == pytest.approx(2 * 16 * intra.item())
