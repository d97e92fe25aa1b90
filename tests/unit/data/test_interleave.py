"""Images without a label in the batches of those with one: how many, where, which, and the same however they come."""

from typing import Any

import numpy as np
import pytest
import torch

from gkd_core.data.augment import Augmentation
from gkd_core.data.interleave import Interleaved, unlabelled_per_batch
from gkd_core.data.loader import Batch, Loader
from gkd_core.data.prepared import Split
from tests.unit.data.test_loader import EVERYTHING, same, split

COUNT, POOL = 21, 13


def pool(count: int = POOL) -> Split:
    images = np.random.default_rng(100).integers(0, 256, (count, 6, 6, 3), dtype=np.uint8)
    return Split(images, np.full(count, -1), (0.5,) * 3)


def loader(data: Split | None = None, **more: Any) -> Loader:
    given = {"batch_size": 8, "device": "cpu", "shuffle": True, "num_classes": 5, "unlabelled": pool()}
    return Loader(split(COUNT) if data is None else data, **{**given, "unlabelled_fraction": 0.5, **more})


def rows(batches: list[Batch]) -> list[int]:
    return torch.cat([batch.indices for batch in batches]).tolist()


@pytest.mark.parametrize(("fraction", "extra"), [(0.5, 8), (0.75, 24), (0.1, 1), (0.01, 1), (0.9, 72)])
def test_the_fraction_is_that_of_the_whole_batch(fraction, extra):
    assert unlabelled_per_batch(8, fraction) == extra
    batches = list(loader(unlabelled_fraction=fraction).epoch(0))
    assert [int((batch.labels < 0).sum()) for batch in batches[:2]] == [extra, extra]
    assert [batch.shards.labelled for batch in batches] == [8, 8, 5]


def test_an_epoch_is_one_pass_over_the_labelled_images_in_the_batches_they_have_by_themselves():
    alone = Loader(split(COUNT), batch_size=8, device="cpu", shuffle=True, num_classes=5)
    for n in range(3):
        for batch, plain in zip(loader().epoch(n), alone.epoch(n), strict=True):
            known = batch.labels >= 0
            assert torch.equal(batch.indices[known], plain.indices)
            assert torch.equal(batch.images[known], plain.images)
            assert torch.equal(batch.labels[known], plain.labels)
    assert loader().steps_per_epoch == alone.steps_per_epoch


def test_the_others_come_equally_often_wherever_epochs_end():
    batches = [batch for n in range(POOL) for batch in loader().epoch(n)]  # 13 epochs of 21: 21 rounds of 13
    seen = np.bincount(np.array(rows(batches)), minlength=COUNT + POOL)
    assert (seen[:COUNT] == POOL).all()
    assert (seen[COUNT:] == COUNT).all()
    images = {int(i): image for batch in batches for i, image in zip(batch.indices, batch.images, strict=True)}
    for i in range(POOL):
        expected = pool().images[i].transpose(2, 0, 1) / np.float32(255)
        assert np.array_equal(images[COUNT + i].numpy(), expected)


@pytest.mark.parametrize("resident", [True, False])
def test_an_epoch_is_a_function_of_seed_and_number_alone(resident):
    used = loader(seed=4, augmentation=EVERYTHING, resident=resident)
    list(used.epoch(0))
    fresh = loader(seed=4, augmentation=EVERYTHING, resident=not resident)
    assert all(same(a, b) for a, b in zip(used.epoch(2), fresh.epoch(2), strict=True))
    other = list(loader(seed=5).epoch(2))
    assert not any(same(a, b) for a, b in zip(loader(seed=4).epoch(2), other, strict=True))


@pytest.mark.parametrize("augmentation", [None, EVERYTHING])
@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.8])
def test_processes_share_both_kinds(augmentation, fraction):
    given: dict[str, Any] = {"data": split(22), "augmentation": augmentation, "unlabelled_fraction": fraction}
    whole = list(loader(**given).epoch(1))
    parts = [list(loader(**given, processes=3, rank=rank).epoch(1)) for rank in range(3)]
    for batch, *each in zip(whole, *parts, strict=True):
        assert torch.equal(batch.images, torch.cat([part.images for part in each]))
        assert torch.equal(batch.labels, torch.cat([part.labels for part in each]))
        assert {part.shards.labelled for part in each} == {batch.shards.labelled}
        share = batch.shards.labelled / batch.shards.total
        for part in each:
            assert abs(int((part.labels >= 0).sum()) - share * len(part.labels)) <= 1


def test_mixup_mixes_either_kind_among_themselves():
    data = Split(np.zeros((COUNT, 6, 6, 3), np.uint8), split(COUNT).labels, (0.5,) * 3)
    white = Split(np.full((POOL, 6, 6, 3), 255, np.uint8), np.full(POOL, -1), (0.5,) * 3)
    for batch in loader(data, unlabelled=white, augmentation=Augmentation(mixup=1.0)).epoch(0):
        known = batch.labels >= 0
        assert batch.targets is not None
        assert (batch.images[known] == 0).all()
        assert (batch.images[~known] == 1).all()
        torch.testing.assert_close(batch.targets.sum(1), known.float())


def test_rows_are_spread_evenly():
    spread = Interleaved(labelled=10, pool=3, batch_size=4, extra=6).has_label()
    assert len(spread) == 25
    assert spread.tolist()[:10] == [True, False, True, False, False, True, False, True, False, False]
    fair = [spread[i : i + 5].sum() for i in range(21)]
    assert {int(count) for count in fair} == {2}
