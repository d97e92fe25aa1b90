import math

import pytest
import torch
from torch.nn import functional

from gkd_core.losses.ctkd import CurriculumTemperature, reverse_gradient
from gkd_core.losses.soft_labels import kd_loss
from tests.unit.losses.draws import logits


@pytest.fixture
def pair(make_network, make_pair):
    return make_pair(make_network(seed=1), make_network(seed=2))


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_the_gradient_is_reversed_and_the_value_is_not(strength):
    x = torch.tensor([2.0, -3.0], requires_grad=True)
    y = reverse_gradient(x, strength)
    (y * torch.tensor([1.0, 10.0])).sum().backward()
    assert torch.equal(y, x)
    assert x.grad.tolist() == pytest.approx([-strength, -10 * strength])


class TestLearnedTemperature:
    """`kd_loss` with τ as a tensor."""

    def test_gradcheck_in_tau_and_student(self):
        teacher, tau = logits(3, 4, seed=1), torch.tensor(2.5, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda s, t: kd_loss(s, teacher, t), (logits(3, 4).requires_grad_(), tau))

    def test_no_gradient_in_tau_at_equality(self):
        tau, z = torch.tensor(2.5, dtype=torch.float64, requires_grad=True), logits(3, 4)
        kd_loss(z, z, tau).backward()
        assert tau.grad.abs() < 1e-12


class TestCurriculum:
    def test_the_authors_values_at_whole_epochs(self, pair):
        """Their factor falls from 0 to −1: (cos(iπ/10) + 1)/2 · (0 − −1) + −1, in epoch i counted from 1."""
        loss = CurriculumTemperature(*pair, epochs=240)
        for epoch in range(1, 13):
            theirs = (math.cos(min(epoch, 10) * math.pi / 10) + 1) * 0.5 - 1
            for begun in (0.0, 0.5, 0.99):
                assert -loss.strength(epoch - 1 + begun) == pytest.approx(theirs, abs=1e-15)


class TestMethod:
    def test_starts_where_the_authors_start(self, pair, make_batch):
        batch = make_batch(pair)
        loss = CurriculumTemperature(*pair, epochs=240)
        tau = 1 + 20 / (1 + math.exp(-1))
        assert loss.temperature(3.0).item() == pytest.approx(tau, rel=1e-6)
        terms = loss(*batch, epoch=3.0)
        assert terms["ce"].item() == pytest.approx(
            0.1 * functional.cross_entropy(batch.student.logits, batch.labels).item()
        )
        soft = 0.9 * kd_loss(batch.student.logits, batch.teacher.logits, tau)
        assert terms["kd"].item() == pytest.approx(soft.item(), rel=1e-5)

    @pytest.mark.parametrize("epoch", [0.0, 2.0, 5.0, 30.0])
    def test_tau_climbs_the_loss_that_the_student_descends(self, pair, make_batch, epoch):
        """Against a finite difference of the loss in the raw temperature, with the sign turned."""
        loss = CurriculumTemperature(*pair, epochs=10).double()
        student, teacher = logits(6, 4).requires_grad_(), logits(6, 4, seed=1)
        kd_loss(student, teacher, loss.temperature(epoch)).backward()

        def value(raw: float) -> float:
            return kd_loss(student, teacher, 1 + 20 / (1 + math.exp(-raw))).item()

        slope = (value(1 + 1e-5) - value(1 - 1e-5)) / 2e-5
        assert abs(slope) > 1e-3
        assert loss.raw_temperature.grad.item() == pytest.approx(-loss.strength(epoch) * slope, rel=1e-6)
        tau = loss.temperature(epoch).item()
        (plain,) = torch.autograd.grad(kd_loss(student, teacher, tau), student)
        torch.testing.assert_close(student.grad, plain)

    def test_cross_entropy_leaves_tau_alone(self, pair, make_batch):
        loss = CurriculumTemperature(*pair, epochs=240)
        terms = loss(*make_batch(pair), epoch=5.0)
        assert torch.autograd.grad(terms["ce"], loss.raw_temperature, allow_unused=True) == (None,)

    def test_tau_stays_in_its_range(self, pair):
        loss = CurriculumTemperature(*pair, epochs=10, temperature_start=2.0, temperature_range=5.0)
        for raw, expected in ((-100.0, 2.0), (0.0, 4.5), (100.0, 7.0)):
            loss.raw_temperature.data.fill_(raw)
            assert loss.temperature(0.0).item() == pytest.approx(expected)
