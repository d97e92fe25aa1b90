import pytest
import torch

from gkd_core.losses.crd import ClassSampler

LABELS = torch.tensor([2, 0, 1, 2, 2, 0, 4, 2, 1, 4])  # unequal classes, none of class 3


@pytest.fixture
def sampler():
    return ClassSampler(LABELS, 5)


def test_every_image_of_another_class_once_and_none_of_the_own(sampler):
    """Exhaustive: all numbers there are, for every class, also one without images."""
    for own in range(5):
        others = [i for i, label in enumerate(LABELS.tolist()) if label != own]
        numbers = torch.arange(3 * len(others))[None]
        got = sampler.other_class(numbers, torch.tensor([own]))[0]
        for turn in got.split(len(others)):
            assert sorted(turn.tolist()) == others


def test_draws_are_uniform_over_the_other_classes(sampler):
    labels = torch.tensor([0, 1, 2, 4])
    draws = sampler.other_classes(labels, 40_000)
    assert draws.shape == (4, 40_000)
    for own, row in zip(labels.tolist(), draws, strict=True):
        count = torch.bincount(row, minlength=10)
        others = own != LABELS
        assert count[~others].sum() == 0
        expected = 40_000 / others.sum()
        assert ((count[others] - expected).abs() < 5 * expected.sqrt()).all()


def test_same_class_is_uniform_over_the_own(sampler):
    draws = sampler.same_class(torch.full((40_000,), 2))
    count = torch.bincount(draws, minlength=10)
    assert count[LABELS != 2].sum() == 0
    assert (count[LABELS == 2] / 10_000 - 1).abs().max() < 0.05


def test_the_global_generator_decides(sampler):
    labels = torch.tensor([0, 1])
    state = torch.get_rng_state()
    first = sampler.other_classes(labels, 50)
    second = sampler.other_classes(labels, 50)
    torch.set_rng_state(state)
    assert torch.equal(sampler.other_classes(labels, 50), first)
    assert not torch.equal(second, first)


def test_nothing_of_it_is_saved(sampler):
    assert sampler.state_dict() == {}
