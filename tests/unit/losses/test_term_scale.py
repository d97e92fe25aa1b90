"""Factors that bring terms to the size of cross-entropy, beside the formula in plain numbers."""

import pytest
import torch

from gkd_core.data import shards
from gkd_core.losses.term_scale import LARGEST_FACTOR, MOMENTUM, RunningScale

STEPS = [(2.0, 50.0, 0.25), (1.5, 40.0, 0.5), (1.0, 8.0, 0.75)]  # cross-entropy and two terms


def after(scale, values):
    """The terms, scaled."""
    ce, *terms = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in values)
    scaled = scale(ce, {"first": terms[0], "second": terms[1]})
    assert list(scaled) == ["first", "second"]
    return [term.item() for term in scaled.values()]


def expected(steps):
    """Each mean is Σ .99^(n−k)·value_k over the steps, up to a factor that all have in common."""
    means = [sum(MOMENTUM ** (len(steps) - k) * step[i] for k, step in enumerate(steps)) for i in range(3)]
    return [steps[-1][i] * means[0] / means[i] for i in (1, 2)]


def test_terms_follow_the_ratio_of_the_running_means():
    scale = RunningScale(2).double()
    for n in range(1, 4):
        assert after(scale, STEPS[n - 1]) == pytest.approx(expected(STEPS[:n]), rel=1e-12)


def test_at_the_first_step_a_term_is_as_large_as_cross_entropy():
    assert after(RunningScale(2).double(), (2.0, 70.0, 0.01)) == pytest.approx([2.0, 2.0], rel=1e-12)


def test_the_factor_is_a_constant_for_the_gradient():
    scale = RunningScale(1).double()
    ce, x = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (2.0, 4.0))
    (term,) = scale(ce, {"square": x**2}).values()
    of_ce, of_x = torch.autograd.grad(term, (ce, x), allow_unused=True)
    assert of_ce is None
    assert of_x.item() == pytest.approx(2 / 16 * 2 * 4)


def test_evaluation_takes_the_same_factors_and_remembers_nothing():
    training, looking = RunningScale(2).double(), RunningScale(2).double()
    for step in STEPS[:2]:
        after(training, step)
    looking.load_state_dict(training.state_dict())
    looking.eval()
    for _ in range(2):
        assert after(looking, STEPS[2]) == pytest.approx(expected(STEPS), rel=1e-12)
    assert torch.equal(looking.means, training.means)


def test_a_term_that_vanishes_is_not_blown_up():
    scale = RunningScale(2)
    assert after(scale, (2.0, 0.0, 1e-9)) == pytest.approx([0.0, 1e-9 * LARGEST_FACTOR], rel=1e-6)
    assert after(RunningScale(2), (0.0, 0.0, 1.0)) == [0.0, 0.0]
    after(scale, (2.0, 1.0, 1.0))
    assert scale.means.isfinite().all()


def test_a_checkpoint_goes_on_where_it_was():
    scale, again = RunningScale(2), RunningScale(2)
    after(scale, STEPS[0])
    again.load_state_dict(scale.state_dict())
    assert after(again, STEPS[1]) == after(scale, STEPS[1])


class Two(shards.Shards):
    """Two processes with 3 and 1 rows; the second one's values are 4 throughout."""

    def mean(self, value):
        return (3 * value + 4.0) / 4


def test_processes_that_share_a_batch_go_by_the_means_over_all_of_it():
    scale = RunningScale(2).double()
    with shards.sharing(Two((3, 1))):
        found = after(scale, (2.0, 50.0, 0.25))
    ce, first, second = ((3 * value + 4) / 4 for value in (2.0, 50.0, 0.25))
    assert found == pytest.approx([50.0 * ce / first, 0.25 * ce / second], rel=1e-12)


def test_nothing_waits_for_the_device(nothing_read_back):
    scale = RunningScale(1)
    value = torch.tensor(3.0, requires_grad=True)
    with nothing_read_back():
        (term,) = scale(value, {"term": value.bfloat16()}).values()
        term.backward()
    assert term.dtype == torch.bfloat16
