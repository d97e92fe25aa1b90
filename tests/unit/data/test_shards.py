"""Several processes go through the same batches: put together, their rows are the batches of one."""

import numpy as np
import pytest
import torch

from gkd_core.data.augment import Augmentation
from gkd_core.data.loader import Batch, Loader
from gkd_core.data.prepared import Split
from gkd_core.data.shards import ALONE, Shards, current, sharing
from gkd_core.errors import GkdError

EVERYTHING = Augmentation(crop_padding=2, flip=True, cutout=3, mixup=0.5)
WITHOUT_MIXUP = Augmentation(crop_padding=2, flip=True, cutout=3)
PHOTOS = Augmentation(auto="rand", color_jitter=0.4, erasing=0.5)
MIXED_PHOTOS = Augmentation(auto="trivial", mixup=0.2, cutmix=1.0)


def split(count: int) -> Split:
    rng = np.random.default_rng(5)
    topology = rng.random((count, 3), dtype=np.float32)
    images = rng.integers(0, 256, (count, 6, 6, 1), dtype=np.uint8)
    return Split(images, rng.integers(0, 4, count), (0.3,), topology)


def loaders(data: Split, processes: int, *, shuffle: bool = True, batch_size: int = 12, **options) -> list[Loader]:
    given = {"batch_size": batch_size, "device": "cpu", "seed": 3, "shuffle": shuffle, "num_classes": 4} | options
    return [Loader(data, processes=processes, rank=rank, **given) for rank in range(processes)]


def rows_of(batch: Batch) -> list[torch.Tensor | None]:
    return [getattr(batch, name) for name in Batch._fields if name != "shards"]


def together(batches: tuple[Batch, ...]) -> list[torch.Tensor | None]:
    fields = zip(*map(rows_of, batches), strict=True)
    return [None if parts[0] is None else torch.cat(parts) for parts in fields]


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("augmentation", [None, WITHOUT_MIXUP, EVERYTHING, PHOTOS, MIXED_PHOTOS])
@pytest.mark.parametrize("processes", [2, 3])
def test_the_rows_of_all_are_the_batches_of_one(processes, augmentation, resident):
    data = split(12 * 2 + 7)
    options = {"augmentation": augmentation, "resident": resident}
    (alone,) = loaders(data, 1, **options)
    several = loaders(data, processes, **options)
    for n in range(2):
        shared = list(zip(*(loader.epoch(n) for loader in several), strict=True))
        whole = list(alone.epoch(n))
        assert len(shared) == len(whole) == several[0].steps_per_epoch == 3
        for batch, parts in zip(whole, shared, strict=True):
            for expected, found in zip(rows_of(batch), together(parts), strict=True):
                assert (expected is None and found is None) or torch.equal(expected, found)
        seen = torch.cat([part.indices for parts in shared for part in parts])
        assert sorted(seen.tolist()) == list(range(len(data))), "an image twice, or not at all"


def test_a_last_batch_too_short_for_all_joins_the_one_before():
    sizes = [batch.shards.sizes for batch in loaders(split(12 + 3), 2)[0].epoch(0)]
    assert sizes == [(8, 7)]
    assert [batch.shards.sizes for batch in loaders(split(12 + 4), 2)[0].epoch(0)] == [(6, 6), (2, 2)]
    with pytest.raises(GkdError, match="3 images are too few"):
        loaders(split(3), 2)


def test_in_validation_a_process_may_have_nothing_of_a_short_batch():
    first, second, third = loaders(split(14), 3, shuffle=False)
    assert [[len(b.labels) for b in loader.epoch(0)] for loader in (first, second, third)] == [[4, 1], [4, 1], [4]]


def test_a_share_counts_by_its_size():
    shards = [Shards.of(7, 3, rank) for rank in range(3)]
    assert shards[0].sizes == (3, 2, 2)
    assert [list(range(7))[s.mine] for s in shards] == [[0, 1, 2], [3, 4], [5, 6]]
    # Means of the parts, averaged over processes with these weights, are the mean of all.
    numbers = torch.tensor([1.0, 2.0, 6.0, 0.0, 4.0, 10.0, 12.0])
    weighted = [s.weight * numbers[s.mine].mean() for s in shards]
    assert torch.stack(weighted).mean().item() == pytest.approx(5.0)


def test_alone_everything_is_the_identity():
    numbers, shards = torch.arange(4.0, requires_grad=True), Shards.of(4)
    assert shards.gather(numbers) is numbers
    assert shards.common(numbers) is numbers
    assert torch.equal(shards.mean(numbers), numbers.detach())
    assert torch.equal(shards.each(numbers), numbers.detach()[None])
    assert shards.weight == 1.0


def test_who_shares_the_batch_is_known_inside_the_block_alone():
    outer, inner = Shards.of(7, 2), Shards.of(7, 2, rank=1)

    def broken() -> None:
        with sharing(inner):
            assert current() is inner
            raise KeyError

    with sharing(outer):
        with pytest.raises(KeyError):
            broken()
        assert current() is outer
    assert current() is ALONE
