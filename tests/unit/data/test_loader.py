"""Batches: complete, in a seeded order, the same resident or streamed, augmented as the statistics demand."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gkd_core.data.augment import Augmentation
from gkd_core.data.loader import Batch, Loader
from gkd_core.data.prepared import Split
from gkd_core.errors import GkdError

EVERYTHING = Augmentation(crop_padding=2, flip=True, cutout=3, mixup=0.4)
PHOTOS = Augmentation(
    crop_padding=1, flip=True, auto="rand", color_jitter=0.4, hue=0.1, erasing=0.5, mixup=0.2, cutmix=1.0
)


def split(count: int, size: int = 6, channels: int = 3) -> Split:
    images = np.random.default_rng(count).integers(0, 256, (count, size, size, channels), dtype=np.uint8)
    return Split(images, np.arange(count, dtype=np.int64) % 5, (0.5,) * channels)


def loader(data: Split, **more: Any) -> Loader:
    return Loader(data, **{"batch_size": 8, "device": "cpu", "shuffle": True, "num_classes": 5, **more})


def same(first: Batch, second: Batch) -> bool:
    pairs = zip(first, second, strict=True)
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


def test_a_batch_holds_the_images_and_labels_its_indices_name() -> None:
    data = split(21)
    batches = list(loader(data, shuffle=False).epoch(0))
    assert [len(b.labels) for b in batches] == [8, 8, 5]
    assert torch.cat([b.indices for b in batches]).tolist() == list(range(21))
    for batch in [*batches, *loader(data).epoch(3)]:
        positions = batch.indices.numpy()
        assert (batch.images.dtype, batch.labels.dtype, batch.indices.dtype) == (
            torch.float32,
            torch.int64,
            torch.int64,
        )
        assert batch.images.is_contiguous()
        assert np.array_equal(batch.images.numpy(), data.images[positions].transpose(0, 3, 1, 2) / np.float32(255))
        assert np.array_equal(batch.labels.numpy(), data.labels[positions])
        assert batch.targets is None


@pytest.mark.parametrize("augmentation", [EVERYTHING, PHOTOS])
@pytest.mark.parametrize("resident", [True, False])
def test_an_epoch_is_a_function_of_seed_and_number_alone(augmentation: Augmentation, resident: bool) -> None:
    data = split(21)
    used = loader(data, seed=4, augmentation=augmentation, resident=resident)
    for n in range(2):
        list(used.epoch(n))
    torch.manual_seed(99)  # nothing may come from the global generator
    state = torch.get_rng_state()
    fresh = loader(data, seed=4, augmentation=augmentation, resident=resident)
    assert all(same(a, b) for a, b in zip(used.epoch(2), fresh.epoch(2), strict=True))
    for other in (loader(data, seed=5, augmentation=augmentation).epoch(2), fresh.epoch(3)):
        assert not any(same(a, b) for a, b in zip(fresh.epoch(2), other, strict=True))
    assert torch.equal(torch.get_rng_state(), state)  # dropout goes on where it was


@pytest.mark.parametrize("start", [0, 1, 2, 3])
@pytest.mark.parametrize(
    "how",
    [
        {"augmentation": EVERYTHING, "resident": True},
        {"augmentation": PHOTOS, "resident": False},
        {"augmentation": replace(PHOTOS, mixup=0.0, cutmix=0.0), "views": 3},
        {"augmentation": EVERYTHING, "processes": 2, "rank": 1},
        {
            "augmentation": EVERYTHING,
            "unlabelled": replace(split(30), labels=np.full(30, -1)),
            "unlabelled_fraction": 0.5,
        },
        {"balanced": True},
    ],
)
def test_an_epoch_gone_on_with_is_the_rest_of_it(how: dict[str, Any], start: int) -> None:
    used = loader(split(21), seed=4, **how)
    whole = list(used.epoch(2))
    assert len(whole) == 3
    assert all(same(a, b) for a, b in zip(used.epoch(2, start), whole[start:], strict=True))


def test_what_was_drawn_before_there_were_photos_is_drawn_as_it_was() -> None:
    """Order, shifts, mirrors and squares of the first version: a CIFAR training ends with the bits it ended with."""
    seen = hashlib.sha256()
    for batch in loader(split(21), seed=4, augmentation=Augmentation(crop_padding=2, flip=True, cutout=3)).epoch(2):
        seen.update((batch.images * 255).round().to(torch.uint8).numpy().tobytes() + batch.indices.numpy().tobytes())
    assert seen.hexdigest() == "3f4269f8f2c2bed2031ad7dbc022178ff546004a9c92860854842cca6aaa421d"


@pytest.mark.parametrize("augmentation", [None, Augmentation(crop_padding=1), EVERYTHING, PHOTOS])
@pytest.mark.parametrize("count", [21, 25, 3])
def test_resident_and_streamed_are_the_same(augmentation: Augmentation | None, count: int, tmp_path: Path) -> None:
    data = split(count)
    np.save(tmp_path / "images.npy", data.images)
    mapped = Split(np.load(tmp_path / "images.npy", mmap_mode="r"), data.labels, data.mean)
    resident = loader(data, augmentation=augmentation, resident=True)
    streamed = loader(mapped, augmentation=augmentation, resident=False)
    for n in range(2):
        assert all(same(a, b) for a, b in zip(resident.epoch(n), streamed.epoch(n), strict=True))


@pytest.mark.parametrize(
    ("count", "shuffle", "sizes"),
    [
        (24, True, [8, 8, 8]),
        (23, True, [8, 8, 7]),
        (25, True, [8, 8, 9]),
        (25, False, [8, 8, 8, 1]),
        (5, True, [5]),
        (1, False, [1]),
    ],
)
def test_the_last_batch(count: int, shuffle: bool, sizes: list[int]) -> None:
    batches = loader(split(count), shuffle=shuffle)
    assert batches.steps_per_epoch == len(sizes)
    assert [len(b.images) for b in batches.epoch(0)] == sizes
    assert [len(b.images) for b in loader(split(count), shuffle=shuffle, resident=False).epoch(0)] == sizes


def test_too_few_images_are_refused() -> None:
    for count in (0, 1):
        with pytest.raises(GkdError, match=f"{count} images are too few for batches of 8"):
            loader(split(count))


def test_an_epoch_left_early_lets_go_of_its_reader() -> None:
    streamed = loader(split(100), resident=False)
    for _ in range(3):
        batches = streamed.epoch(0)
        next(batches)
        batches.close()
    assert len(list(streamed.epoch(0))) == 13


@pytest.mark.parametrize("changes", [{"cutout": 2}, {"erasing": 0.5}])
def test_what_fills_with_the_mean_needs_it(changes: dict[str, Any]) -> None:
    data, (name,) = split(10), changes
    with pytest.raises(ValueError, match=f"{name} fills with the data's mean"):
        loader(Split(data.images, data.labels), augmentation=Augmentation(**changes))


def point(count: int) -> Split:
    """One white pixel left of the centre of a black 8×8 image: where it ends up tells shift and flip apart."""
    images = np.zeros((count, 8, 8, 1), np.uint8)
    images[:, 4, 2] = 255
    return Split(images, np.zeros(count, np.int64), (0.5,))


def test_shifts_are_uniform_and_half_the_images_are_mirrored() -> None:
    count, padding = 20_000, 1
    batches = loader(point(count), batch_size=5000, augmentation=Augmentation(crop_padding=padding, flip=True)).epoch(0)
    rows, columns = torch.cat([b.images[:, 0] for b in batches]).nonzero(as_tuple=True)[1:]
    mirrored = columns >= 4  # column 2 ± 1 becomes 5 ± 1
    across = torch.where(mirrored, 7 - columns, columns) - 2
    assert abs(mirrored.double().mean() - 0.5) < 4 * 0.5 / count**0.5
    cells = torch.bincount((rows - 3) * 6 + (across + 1) * 2 + mirrored, minlength=18).double()
    assert len(cells) == 18
    expected = count / 18
    chi_square = ((cells - expected) ** 2 / expected).sum()
    assert chi_square < 40.8  # 99.9 % of χ² with 17 degrees of freedom


def test_each_image_is_changed_on_its_own_and_anew_each_epoch() -> None:
    shifting = loader(point(64), batch_size=64, augmentation=Augmentation(crop_padding=2), shuffle=False)
    first, second = (next(iter(shifting.epoch(n))).images for n in (0, 1))
    places = {tuple(place) for place in first.nonzero()[:, 2:].tolist()}
    assert len(places) > 12
    assert places <= {(y, x) for y in range(2, 7) for x in range(5)}
    assert not torch.equal(first, second)


def test_cutout_centres_are_uniform() -> None:
    data = Split(np.zeros((20_000, 4, 5, 1), np.uint8), np.zeros(20_000, np.int64), (0.5,))
    batches = loader(data, batch_size=5000, augmentation=Augmentation(cutout=1)).epoch(0)
    holes = torch.cat([b.images[:, 0] for b in batches])
    assert (holes.flatten(1).sum(1) == 0.5).all()
    cells = (holes > 0).sum(0).flatten().double()
    assert ((cells - 1000) ** 2 / 1000).sum() < 43.8  # 99.9 % of χ² with 19 degrees of freedom


def test_mixup_shares_one_beta_drawn_share_a_batch() -> None:
    count = 4000
    data = Split(np.zeros((count, 2, 2, 1), np.uint8), np.arange(count, dtype=np.int64) % 2, (0.5,))
    data.images[1::2] = 255
    mixing = loader(data, batch_size=4, augmentation=Augmentation(mixup=0.5), num_classes=2)
    shares = []
    for batch in mixing.epoch(0):
        assert batch.targets is not None
        assert torch.allclose(batch.targets.sum(1), torch.ones(len(batch.labels)))
        assert torch.allclose(batch.images[:, 0, 0, 0], batch.targets[:, 1])  # white is class 1
        own = batch.targets[torch.arange(4), batch.labels]
        assert len({round(v, 5) for v in own[own < 0.9999].tolist()}) <= 1
        shares += [float(v) for v in own[own < 0.9999][:1]]
    # Beta(½, ½): mean ½, variance ⅛.
    assert np.mean(shares) == pytest.approx(0.5, abs=4 * (0.125 / len(shares)) ** 0.5)
    assert np.var(shares) == pytest.approx(0.125, abs=0.015)


@pytest.mark.parametrize("mixup", [0.0, 0.5])
def test_cutmix_s_targets_are_the_areas_and_it_takes_turns_with_mixup(mixup: float) -> None:
    """Class 0 is black, class 1 white: what is white of an image is what its target says of class 1."""
    count, batch_size = 4000, 8
    data = Split(np.zeros((count, 6, 8, 1), np.uint8), np.arange(count, dtype=np.int64) % 2, (0.5,))
    data.images[1::2] = 255
    mixing = loader(data, batch_size=batch_size, augmentation=Augmentation(mixup=mixup, cutmix=1.0), num_classes=2)
    cut = blended = 0
    for batch in mixing.epoch(0):
        assert batch.targets is not None
        assert torch.allclose(batch.images.mean((1, 2, 3)), batch.targets[:, 1], atol=1e-6)
        assert torch.allclose(batch.targets.sum(1), torch.ones(batch_size))
        pure = (batch.images == 0) | (batch.images == 1)
        several = batch.images.flatten(1).std(1) > 0  # black and white in one image
        cut += bool(several.any())
        blended += not bool(pure.all())
    steps = count // batch_size
    assert blended == pytest.approx(steps / 2 if mixup else 0, abs=4 * 0.5 * steps**0.5)
    assert cut > 0.7 * (steps - blended)  # a rectangle may be empty, or its partners of the same class
    assert cut + blended <= steps


def test_erased_rectangles_are_the_mean_and_the_rest_stays() -> None:
    count = 200
    data = Split(np.full((count, 12, 12, 3), 255, np.uint8), np.zeros(count, np.int64), (0.1, 0.2, 0.3))
    images = torch.cat([b.images for b in loader(data, augmentation=Augmentation(erasing=0.5)).epoch(0)])
    lost = (images != 1).any(1)
    assert lost.flatten(1).any(1).sum() == pytest.approx(count / 2, abs=4 * (count / 4) ** 0.5)
    assert torch.equal(images.permute(0, 2, 3, 1)[lost], torch.tensor([0.1, 0.2, 0.3]).expand(int(lost.sum()), 3))


@pytest.mark.parametrize("augmentation", [EVERYTHING, PHOTOS, Augmentation(auto="trivial")])
@pytest.mark.parametrize("resident", [True, False])
def test_nothing_waits_for_the_device(augmentation: Augmentation, resident: bool, nothing_read_back: Any) -> None:
    batches = loader(split(40, size=34), augmentation=augmentation, resident=resident)
    with nothing_read_back():
        assert sum(len(b.labels) for b in batches.epoch(0)) == 40


class _Reading(torch.autograd.Function):
    """Reads a value on the way back."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * gradient.max().item()


READS = {
    "item": lambda x: f"{x.sum():.2f}",
    "asarray": np.asarray,
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "equal": lambda x: torch.equal(x, x),
    "nonzero": lambda x: torch.where(x > 0),
    "pick by a mask": lambda x: x[x > 0],
    "put by a mask": lambda x: x.index_put_((x > 0,), torch.ones(3)),
    "unique": lambda x: x.unique(),
    "repeat": lambda x: x.repeat_interleave(torch.tensor([1, 2, 3])),
    "inverse": lambda x: torch.linalg.inv(torch.diag(x)),
    "backward": lambda x: _Reading.apply(x.requires_grad_()).sum().backward(),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_the_watch_sees_every_way_to_read(read: Any, nothing_read_back: Any) -> None:
    watch = nothing_read_back()
    with watch, pytest.raises(AssertionError, match="waits for the device"):
        read(torch.tensor([1.0, 2.0, 3.0]))
    watch.watching = False
    with watch:
        read(torch.tensor([1.0, 2.0, 3.0]))


def test_the_watch_lets_pass_what_needs_no_answer(nothing_read_back: Any) -> None:
    x = torch.tensor([1.0, -2.0, 3.0])
    with nothing_read_back():
        x[x < 0] = 0.0
        assert x[torch.tensor([0, 2])].shape == (2,)
        assert x.clamp_min(1).sort().values.shape == (3,)
        assert x.repeat_interleave(torch.tensor([1, 2, 3]), output_size=6).shape == (6,)


def test_what_does_not_fit_is_streamed(monkeypatch) -> None:
    assert loader(split(10)).resident
    monkeypatch.setattr("gkd_core.data.loader.fits", lambda size, device: False)
    assert not loader(split(10)).resident
