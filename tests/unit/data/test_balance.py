"""Classes of different size: counts, weights, frequencies, and an order in which all come equally often."""

import math

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from gkd_core.data.balance import balanced_order, class_counts, class_weights, log_priors
from gkd_core.data.loader import Loader
from gkd_core.data.prepared import Split

LABELS = np.repeat([0, 1, 2], [40, 15, 5])


def test_counts_leave_out_what_has_no_label():
    assert class_counts(np.array([2, 0, -1, 2, -1]), 4).tolist() == [1, 0, 2, 0]


def test_weights_are_those_that_scikit_learn_calls_balanced_and_their_mean_over_the_images_is_one():
    weights = class_weights(class_counts(LABELS, 3))
    expected = compute_class_weight("balanced", classes=np.arange(3), y=LABELS)
    assert weights.tolist() == pytest.approx(expected.tolist())
    assert weights[LABELS].mean() == pytest.approx(1)
    totals = [weights[LABELS][one == LABELS].sum() for one in range(3)]
    assert totals == pytest.approx([20, 20, 20])


def test_a_class_without_images_changes_no_other_class_and_gives_no_infinity():
    counts = np.array([30, 0, 10])
    assert class_weights(counts)[[0, 2]].tolist() == class_weights(np.array([30, 10])).tolist()
    assert log_priors(counts).tolist() == pytest.approx([math.log(3 / 4), math.log(1 / 40), math.log(1 / 4)])


class TestTheOrder:
    def order(self, labels=LABELS, seed=0):
        return balanced_order(labels, np.random.default_rng(seed))

    def test_every_class_comes_equally_often_in_as_many_rows_as_there_are(self):
        order = self.order()
        assert len(order) == len(LABELS)
        assert np.bincount(LABELS[order]).tolist() == [20, 20, 20]

    def test_what_is_left_over_goes_to_classes_at_random(self):
        labels = LABELS[:-1]  # 59 = 3 · 19 + 2
        counts = [tuple(np.bincount(labels[self.order(labels, seed)])) for seed in range(20)]
        assert {tuple(sorted(each)) for each in counts} == {(19, 20, 20)}
        assert len(set(counts)) == 3

    def test_no_image_comes_again_before_all_of_its_class_came(self):
        times = np.bincount(self.order(), minlength=60)
        assert set(times[:40]) == {0, 1}
        assert set(times[40:55]) == {1, 2}
        assert set(times[55:]) == {4}

    def test_another_epoch_shows_another_part_of_a_large_class(self):
        parts = [frozenset(row for row in self.order(seed=seed) if row < 40) for seed in range(3)]
        assert len(set(parts)) == 3

    def test_rows_without_a_label_come_once_each(self):
        labels = np.concatenate([LABELS, np.full(7, -1)])
        order = self.order(labels)
        assert np.bincount(order, minlength=67)[60:].tolist() == [1] * 7
        assert np.bincount(labels[order[order < 60]]).tolist() == [20, 20, 20]
        assert sorted(self.order(np.full(4, -1))) == [0, 1, 2, 3]


def loader(**more):
    images = np.random.default_rng(0).integers(0, 256, (len(LABELS), 4, 4, 1), dtype=np.uint8)
    settings = {"batch_size": 8, "device": "cpu", "seed": 5, "shuffle": True, "balanced": True, "num_classes": 3}
    return Loader(Split(images, LABELS, (0.5,)), **settings | more)


@pytest.mark.parametrize("resident", [True, False])
def test_a_loaders_balanced_epoch_is_a_function_of_seed_and_number_alone(resident):
    def indices(each, n):
        return [batch.indices.tolist() for batch in each.epoch(n)]

    used = loader(resident=resident)
    for n in range(3):
        indices(used, n)
    assert indices(used, 2) == indices(loader(resident=resident), 2)
    assert indices(used, 2) != indices(used, 1)
    assert indices(used, 2) != indices(loader(seed=6), 2)
    labels = np.concatenate([batch.labels for batch in used.epoch(2)])
    assert np.bincount(labels).tolist() == [20, 20, 20]


def test_processes_share_the_batches_of_a_balanced_epoch():
    whole = [batch.indices.tolist() for batch in loader().epoch(1)]
    first, second = ([b.indices.tolist() for b in loader(processes=2, rank=rank).epoch(1)] for rank in range(2))
    assert [a + b for a, b in zip(first, second, strict=True)] == whole


def test_only_a_shuffled_epoch_is_balanced():
    assert [i for batch in loader(shuffle=False).epoch(0) for i in batch.indices.tolist()] == list(range(60))
