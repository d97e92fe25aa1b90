"""A view of an image has the same pixels whatever batch and epoch it is in, whoever reads it, however it is made."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from gkd_core.data.augment import Augmentation
from gkd_core.data.loader import Loader
from gkd_core.data.prepared import Split
from gkd_core.data.views import RowNumbers

CHANGES = {
    "crop and flip": {"crop_padding": 2, "flip": True},
    "windows": {"random_resized_crop": (0.3, 1.0), "flip": True},
    "photos": {"random_resized_crop": (0.3, 1.0), "flip": True, "auto": "rand", "color_jitter": 0.4, "erasing": 0.5},
    "everything small": {"crop_padding": 1, "flip": True, "hue": 0.1, "cutout": 6, "erasing": 0.5},
}
COUNT = 30


def loader_of(changes, *, batch_size=8, views=3, seed=0, **how):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (COUNT, 16, 16, 3), dtype=np.uint8)
    split = Split(images, rng.integers(0, 4, COUNT), (0.5, 0.4, 0.3))
    how = {"device": "cpu", "shuffle": True, "num_classes": 4, **how}
    return Loader(split, batch_size=batch_size, seed=seed, augmentation=Augmentation(**changes), views=views, **how)


def pixels(loader, epochs):
    """By (image, view) all pixels that were seen of it."""
    seen = {}
    for epoch in epochs:
        for batch in loader.epoch(epoch):
            for image, index, view in zip(batch.images, batch.indices.tolist(), batch.views.tolist(), strict=True):
                seen.setdefault((index, view), []).append(image)
    return seen


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_a_view_is_the_same_in_every_epoch_and_batch(changes):
    first = pixels(loader_of(changes), range(3))
    assert len(first) == 3 * COUNT
    for other in (
        loader_of(changes),
        loader_of(changes, batch_size=7),
        loader_of(changes, resident=False),
        loader_of(changes, processes=2, rank=1),
    ):
        for place, images in pixels(other, range(3, 9)).items():
            assert len(images) <= 2
            assert all(torch.equal(image, first[place][0]) for image in images)
    assert torch.equal(loader_of(changes).first_images(5), torch.stack([first[i, 0][0] for i in range(5)]))


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_views_images_and_seeds_differ_in_what_is_drawn(changes):
    one = Split(np.repeat(np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), dtype=np.uint8), COUNT, 0),
                np.zeros(COUNT, np.int64), (0.5, 0.4, 0.3))  # fmt: skip
    loaders = [loader_of(changes), loader_of(changes, seed=1)]
    for loader in loaders:
        loader.split = replace(one)
        loader._source, loader._images = one.images, torch.from_numpy(one.images)
        if loader._cutter is not None:
            loader._cutter._source = loader._pictures = type(loader._pictures)(one.images)
    seen = [pixels(loader, range(3)) for loader in loaders]
    kinds = {image[0].numpy().tobytes() for each in seen for image in each.values()}
    assert len(kinds) > 40  # of 180; crop and flip have but fifty


def test_an_order_of_its_own_every_epoch():
    orders = [torch.cat([batch.indices for batch in loader_of({}, views=1).epoch(n)]).tolist() for n in range(2)]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(COUNT))


def test_mixed_images_have_no_fixed_number_of_views():
    with pytest.raises(ValueError, match="mixed with another"):
        loader_of({"mixup": 0.2})


class TestRowNumbers:
    def test_they_are_splitmix64_s(self):
        numbers = RowNumbers(0, np.array([0]), 0)
        numbers._state[:] = 0
        first, second = (int(value * 2**53) for value in numbers.random((1, 2))[0])
        assert first == 0xE220A8397B1DCDAF >> 11  # of the authors' program, seed 0
        assert second == 0x6E789E6AA1B965F4 >> 11

    def test_a_row_does_not_know_the_others_nor_how_much_is_drawn_at_once(self):
        images = np.array([4, 9, 2])
        whole, parts = RowNumbers(7, images, 1), [RowNumbers(7, images[i : i + 1], 1) for i in range(3)]
        for shape in ((3, 4), (3, 2, 2), (3,)):
            drawn = whole.random(shape)
            assert np.array_equal(drawn, np.concatenate([part.random((1, *shape[1:])) for part in parts]))
        assert np.array_equal(whole.random(3), np.concatenate([part.random(1) for part in parts]))

    def test_they_are_uniform_and_independent(self):
        drawn = RowNumbers(2**32 - 1, np.arange(20_000), 3).random((20_000, 3))
        other = RowNumbers(2**32 - 1, np.arange(20_000), 4).random((20_000, 3))
        together = np.concatenate([drawn, other, np.roll(drawn, 1, 0)], 1)
        assert np.abs(together.mean(0) - 0.5).max() < 0.01
        assert np.abs(np.corrcoef(together.T) - np.eye(9)).max() < 0.03
        whole = RowNumbers(1, np.arange(20_000), 0).integers(5, size=(20_000, 1))
        assert np.bincount(whole[:, 0]).tolist() == pytest.approx([4000] * 5, rel=0.06)
        assert RowNumbers(1, np.arange(99), 0).uniform(-2, 3, (99, 9)).min() < -1.5

    def test_purposes_have_streams_of_their_own(self):
        first, second = (RowNumbers(0, np.arange(9), 0, purpose).random((9, 2)) for purpose in (0, 1))
        assert not (first == second).any()
