"""Room for bytes: taken as they come, given back, refused when there is none."""

import pytest

from gkd_core.serving.limits import Budget, Limits, Overloaded


def test_all_bodies_together_have_a_limit():
    budget = Budget(Limits(max_request_bytes=60, memory_bytes=100))
    budget.take(60)
    budget.take(40)
    with pytest.raises(Overloaded, match="try again in a moment") as told:
        budget.take(1)
    assert (told.value.status, told.value.reason) == (503, "memory")
    budget.give_back(60)
    budget.take(60)


def test_one_whole_request_always_fits():
    budget = Budget(Limits(max_request_bytes=60, memory_bytes=10))
    budget.take(60)
    with pytest.raises(Overloaded):
        budget.take(1)
