"""Windows drawn as torchvision draws them, cut as Pillow would, the same whoever shares the work."""

import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from gkd_core.data.augment import Augmentation
from gkd_core.data.load import load_data
from gkd_core.data.loader import Loader
from gkd_core.data.part import ClassPart
from gkd_core.data.photos import ArrayPictures, PhotoRecords
from gkd_core.data.prepared import PreparedData, Split
from gkd_core.data.windows import RATIO, Cutter, draw_windows
from gkd_core.errors import GkdError
from tests.unit.scenes import write_scenes

WINDOWS = Augmentation(random_resized_crop=(0.2, 1.0))
EVERYTHING = Augmentation(random_resized_crop=(0.2, 1.0), flip=True, cutout=9, mixup=0.4)


HELD = """
import resource, sys
from pathlib import Path
import numpy as np
from gkd_core.data.augment import Augmentation
from gkd_core.data.loader import Loader
from gkd_core.data.photos import Photos
from gkd_core.data.prepared import Split
folder, count = Path(sys.argv[1]), int(sys.argv[2])
split = Split(Photos(folder, count=count, channels=3, image_size=64), np.zeros(count, np.int64), (0.5,) * 3)
windows = Augmentation(random_resized_crop=(0.2, 1.0), flip=True)
loader = Loader(split, batch_size=32, device="cpu", augmentation=windows, shuffle=True, num_classes=2)
for batch in loader.epoch(0):
    pass
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform == "darwin" else 1))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("windows")
    load_data(write_scenes(folder / "photos"), image_size=72, cache=folder / "data")
    return folder / "data"


@pytest.fixture
def data(folder: Path) -> PreparedData:
    return PreparedData.open(folder, check=False)


def loader(split: Split, **more: Any) -> Loader:
    return Loader(split, **{"batch_size": 5, "device": "cpu", "shuffle": True, "num_classes": 3, **more})


@pytest.mark.parametrize("size", [(200, 300), (97, 240), (90, 360), (13, 7)])
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.35, 1.0), (0.9, 1.0)])
def test_windows_are_distributed_as_torchvision_s(size: tuple[int, int], scale: tuple[float, float]) -> None:
    """Mean and spread of all four numbers, over 3,000 draws each, within five standard errors of their difference."""
    count = 3000
    ours = draw_windows(np.full((count, 2), size), scale, np.random.default_rng(3))
    torch.manual_seed(0)
    image = torch.empty(3, *size)
    theirs = np.array([RandomResizedCrop.get_params(image, list(scale), list(RATIO)) for _ in range(count)])
    for power in (1, 2):
        one, other = (draws.astype(float) ** power for draws in (ours, theirs))
        error = np.sqrt((one.var(0) + other.var(0)) / count)
        assert (np.abs(one.mean(0) - other.mean(0)) <= 5 * error + 1e-9).all()
    assert (ours.min(0) >= [0, 0, 1, 1]).all()
    assert (ours[:, :2] + ours[:, 2:] <= size).all()


def test_a_picture_that_no_window_fits_shows_its_middle() -> None:
    """Of 10 × 100 pixels, a window of 90 % of the area within 3/4…4/3 does not exist: torchvision's own way out."""
    sizes = np.array([[10, 100], [100, 10], [1, 1], [2, 50]])
    found = draw_windows(sizes, (0.9, 1.0), np.random.default_rng(0))
    for (height, width), window in zip(sizes.tolist(), found.tolist(), strict=True):
        image = torch.empty(3, height, width)
        assert window == list(RandomResizedCrop.get_params(image, [0.9, 1.0], list(RATIO)))
    assert found[:2].tolist() == [[0, 43, 10, 13], [43, 0, 13, 10]]


def test_the_whole_of_a_square_is_a_window() -> None:
    """Scale and ratio of one leave one window."""
    found = draw_windows(np.full((4, 2), 12), (1.0, 1.0), np.random.default_rng(0), ratio=(1.0, 1.0))
    assert found.tolist() == [[0, 0, 12, 12]] * 4
    assert math.prod(RATIO) == 1


def test_a_window_is_what_pillow_makes_of_it(data: PreparedData) -> None:
    images: Any = data.train.images
    rng = np.random.default_rng(1)
    rows = rng.integers(0, len(images), 40)
    windows = draw_windows(images.sizes[rows], (0.05, 1.0), rng)
    (squares,) = Cutter(images, (3, 72, 72)).batches([(rows, windows)])
    for square, row, (top, left, height, width) in zip(squares, rows, windows.tolist(), strict=True):
        part = images.read(int(row))[top : top + height, left : left + width]
        expected = np.asarray(Image.fromarray(part).resize((72, 72), Image.Resampling.BILINEAR)).astype(int)
        assert np.abs(square.permute(1, 2, 0).numpy() - expected).max() <= 1


def test_windows_of_squares_and_of_one_channel() -> None:
    squares = np.random.default_rng(0).integers(0, 256, (9, 16, 16, 1), dtype=np.uint8)
    windows = np.array([[4, 2, 8, 12], [0, 0, 16, 16]])
    (found,) = Cutter(ArrayPictures(squares), (1, 16, 16)).batches([(np.array([5, 3]), windows)])
    assert np.array_equal(found[1, 0], squares[3, :, :, 0])
    part = Image.fromarray(squares[5, 4:12, 2:14, 0]).resize((16, 16), Image.Resampling.BILINEAR)
    assert np.abs(found[0, 0].numpy().astype(int) - np.asarray(part)).max() <= 1


def test_batches_come_in_order_and_an_error_in_a_thread_is_the_caller_s(data: PreparedData) -> None:
    images: Any = data.train.images
    whole = [(np.array([row]), np.array([[0, 0, *images.sizes[row]]])) for row in range(18)]
    cutter = Cutter(images, (3, 72, 72))
    together = torch.cat(list(cutter.batches(whole)))
    alone = torch.cat([next(cutter.batches([job])) for job in reversed(whole)])
    assert torch.equal(together, alone.flip(0))
    with pytest.raises(IndexError):
        list(cutter.batches([(np.array([18]), np.array([[0, 0, 1, 1]]))]))
    assert list(cutter.batches([])) == []


def same(first: Any, second: Any) -> bool:
    pairs = zip(first, second, strict=True)
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


@pytest.mark.parametrize("augmentation", [WINDOWS, EVERYTHING])
def test_an_epoch_of_windows_is_a_function_of_seed_and_number_alone(
    augmentation: Augmentation, data: PreparedData
) -> None:
    used = loader(data.train, seed=4, augmentation=augmentation)
    for n in range(2):
        list(used.epoch(n))
    next(iter(used.epoch(2)))  # left in the middle
    torch.manual_seed(99)
    fresh = loader(data.train, seed=4, augmentation=augmentation, resident=True)
    assert all(same(a, b) for a, b in zip(used.epoch(2), fresh.epoch(2), strict=True))
    assert all(same(a, b) for a, b in zip(used.epoch(2, 2), list(fresh.epoch(2))[2:], strict=True))
    assert not list(used.epoch(2, used.steps_per_epoch))
    for other in (loader(data.train, seed=5, augmentation=augmentation).epoch(2), fresh.epoch(3)):
        assert not any(same(a, b) for a, b in zip(fresh.epoch(2), other, strict=True))


@pytest.mark.parametrize("augmentation", [WINDOWS, EVERYTHING])
@pytest.mark.parametrize("processes", [2, 3])
def test_processes_together_see_the_windows_that_one_sees(
    augmentation: Augmentation, processes: int, data: PreparedData
) -> None:
    alone = list(loader(data.train, batch_size=6, augmentation=augmentation).epoch(1))
    several = [
        loader(data.train, batch_size=6, augmentation=augmentation, processes=processes, rank=rank).epoch(1)
        for rank in range(processes)
    ]
    for whole, *parts in zip(alone, *several, strict=True):
        assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
        assert torch.equal(torch.cat([part.indices for part in parts]), whole.indices)


def test_every_window_is_of_the_picture_its_index_names(data: PreparedData) -> None:
    """Of a picture in one colour every window is of that colour; and the labels go with them."""
    colours = np.random.default_rng(0).integers(0, 256, (30, 1, 1, 3), dtype=np.uint8)
    split = Split(np.tile(colours, (1, 20, 20, 1)), np.arange(30, dtype=np.int64) % 3, (0.5,) * 3)
    seen = []
    for batch in loader(split, augmentation=Augmentation(random_resized_crop=(0.1, 0.5), flip=True)).epoch(0):
        expected = colours[batch.indices.numpy()].transpose(0, 3, 1, 2) / np.float32(255)
        assert np.array_equal(batch.images.numpy(), np.broadcast_to(expected, batch.images.shape))
        assert torch.equal(batch.labels, batch.indices % 3)
        seen += batch.indices.tolist()
    assert sorted(seen) == list(range(30))


def test_half_of_the_windows_are_mirrored(data: PreparedData) -> None:
    plain = loader(data.train, augmentation=WINDOWS)
    flipped = loader(data.train, augmentation=Augmentation(random_resized_crop=(0.2, 1.0), flip=True))
    mirrored = []
    for n in range(8):
        for one, other in zip(plain.epoch(n), flipped.epoch(n), strict=True):
            for first, second in zip(one.images, other.images, strict=True):
                mirrored.append(torch.equal(first.flip(2), second))
                assert mirrored[-1] or torch.equal(first, second)
    assert 50 <= sum(mirrored) <= 94  # of 144, five standard deviations about the half


def test_windows_of_some_classes_and_beside_images_without_a_label(data: PreparedData) -> None:
    part = ClassPart(data, ("cow", "ant"))
    batches = list(loader(part.train, augmentation=WINDOWS).epoch(0))
    assert sorted(torch.cat([b.indices for b in batches]).tolist()) == list(range(12))
    unlabelled = Split(data.train.images, np.full(18, -1, np.int64), data.train.mean)
    settings: Any = {"unlabelled": unlabelled, "unlabelled_fraction": 0.5, "augmentation": WINDOWS}
    joined = list(loader(data.train, **settings).epoch(0))
    assert sum(int((batch.labels < 0).sum()) for batch in joined) >= 15
    assert all(batch.images.shape[1:] == (3, 72, 72) for batch in joined)


def test_a_damaged_picture_ends_the_epoch_in_a_sentence(folder: Path, tmp_path: Path) -> None:

    shutil.copytree(folder, tmp_path / "data")
    split = PreparedData.open(tmp_path / "data").train
    (tmp_path / "data" / "train" / "images.bin").write_bytes(b"")
    with pytest.raises(GkdError, match=r"images\.bin is damaged"):
        list(loader(split, augmentation=WINDOWS).epoch(0))


@pytest.mark.parametrize("scale", [(0.0, 1.0), (0.5, 0.2), (0.5, 1.5), (-0.1, 0.5)])
def test_a_scale_is_a_part_of_the_area(scale: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="random_resized_crop"):
        Augmentation(random_resized_crop=scale)


@pytest.mark.slow
def test_memory_stays_where_it_is_when_the_set_grows_fourfold(tmp_path: Path) -> None:
    """100 and 400 pictures of 0.6 MB: 180 MB more to read, and not a tenth of it held."""
    held = []
    for count in (100, 400):
        folder = tmp_path / str(count)
        folder.mkdir()
        records = PhotoRecords(folder, "raw")
        for _ in range(count):
            records.append([np.zeros((400, 500, 3), np.uint8)])
        records.close()
        command = [sys.executable, "-c", HELD, str(folder), str(count)]
        held.append(int(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    assert held[1] - held[0] < 18_000, f"{held} kB"
