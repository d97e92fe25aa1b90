"""Learning-rate factors against torch's own schedulers, stepped once per step."""

import pytest
import torch
from torch.optim import lr_scheduler

from gkd_core.training.learning_rate import learning_rate_factor

EPOCHS, STEPS = 10, 7


def torch_factors(scheduler_class, **arguments) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = scheduler_class(optimizer, **arguments)
    factors = []
    for _ in range(EPOCHS * STEPS):
        factors.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return factors


def ours(name, **arguments) -> list[float]:
    factor = learning_rate_factor(name, epochs=EPOCHS, **arguments)
    return [factor(i / STEPS) for i in range(EPOCHS * STEPS)]


def test_cosine_is_torchs():
    expected = torch_factors(lr_scheduler.CosineAnnealingLR, T_max=EPOCHS * STEPS)
    assert ours("cosine") == pytest.approx(expected, abs=1e-12)


def test_multistep_is_torchs():
    expected = torch_factors(lr_scheduler.MultiStepLR, milestones=[4 * STEPS, 8 * STEPS], gamma=0.2)
    assert ours("multistep", milestones=(4, 8), decay_factor=0.2) == pytest.approx(expected, rel=1e-12)


def test_onecycle_is_torchs_up_to_where_torch_puts_its_last_step():
    # torch counts steps 0 … n−1 and reaches the end at n−1; we reach it at n.
    n = EPOCHS * STEPS + 1
    expected = torch_factors(lr_scheduler.OneCycleLR, max_lr=1.0, total_steps=n, pct_start=(0.3 * (n - 1) + 1) / n)
    assert ours("onecycle") == pytest.approx(expected, abs=1e-9)


def test_constant_and_warmup_by_hand():
    factor = learning_rate_factor("constant", epochs=10, warmup_epochs=4.0)
    assert [factor(t) for t in (0.0, 1.0, 3.0, 4.0, 9.0)] == [0.0, 0.25, 0.75, 1.0, 1.0]


def test_cosine_starts_to_fall_after_warmup():
    factor = learning_rate_factor("cosine", epochs=10, warmup_epochs=2.0)
    assert factor(2.0) == pytest.approx(1.0)
    assert factor(6.0) == pytest.approx(0.5)
    assert factor(10.0) == pytest.approx(0.0)


def test_an_unknown_name_is_refused_at_once():
    with pytest.raises(ValueError, match="'cosin' is unknown"):
        learning_rate_factor("cosin", epochs=2)
