"""The prepared format: exact on disk, lazily opened, refused when damaged, written without holding it in memory."""

import errno
import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gkd_core.data import prepare, prepared
from gkd_core.data.arrays import new_array, open_array
from gkd_core.data.images import Unreadable
from gkd_core.data.prepare import write_prepared
from gkd_core.data.prepared import PreparedData, SplitWriter
from gkd_core.data.sources import open_source
from gkd_core.data.sources.base import Examples, Source
from gkd_core.errors import GkdError


def picture(i: int, size: int = 4) -> np.ndarray:
    return np.random.default_rng(i).integers(0, 256, (size, size, 3), dtype=np.uint8)


def toy(count: int = 60, size: int = 4, bad: tuple[int, ...] = ()) -> Source:
    def read(i: int) -> np.ndarray:
        if i in bad:
            raise Unreadable("cut short")
        return picture(i, size)

    names = tuple(f"{i:03}.jpg" for i in range(count))
    examples = Examples(np.arange(count, dtype=np.int64) % 3, read, names, parallel=True)
    return Source("toy", ("α", "b", "c"), size, 3, {"train": examples}, flip=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_prepared(toy(), tmp_path)
    return tmp_path


def test_what_was_written_is_read_back(folder: Path) -> None:
    data = PreparedData.open(folder)
    assert data.info.counts == {"train": 43, "validation": 5, "test": 12}
    assert data.info.classes == ("α", "b", "c")
    assert data.info.augment == {"crop_padding": 0, "flip": True}
    seen = {picture(i).tobytes(): i for i in range(60)}
    for split in (data.train, data.validation, data.test):
        assert isinstance(split.images, np.memmap)
        assert (split.images.dtype, split.labels.dtype) == (np.uint8, np.int64)
        positions = [seen.pop(image.tobytes()) for image in split.images]
        assert split.labels.tolist() == [i % 3 for i in positions]
    assert not seen
    assert data.train.mean == data.info.mean


def test_statistics_are_those_of_the_train_split(folder: Path) -> None:
    data = PreparedData.open(folder)
    pixels = data.train.images.astype(np.float64) / 255
    assert data.info.mean == pytest.approx(pixels.mean((0, 1, 2)), abs=1e-12)
    assert data.info.std == pytest.approx(pixels.std((0, 1, 2)), abs=1e-12)


def test_statistics_by_hand_and_of_a_constant_channel(tmp_path: Path) -> None:
    writer = SplitWriter(tmp_path, np.zeros(2, np.int64), 1, 3)
    writer.append([np.array([[[0, 51, 7]]], np.uint8), np.array([[[255, 51, 7]]], np.uint8)])
    mean, std = writer.statistics()
    assert mean == (0.5, 0.2, 7 / 255)
    assert std == (0.5, 1.0, 1.0)


def test_a_split_with_missing_rows_is_not_closed(tmp_path: Path) -> None:
    writer = SplitWriter(tmp_path, np.zeros(2, np.int64), 1, 1)
    writer.append([np.zeros((1, 1, 1), np.uint8)])
    with pytest.raises(ValueError, match="1 of 2 rows"):
        writer.close()


def test_the_digest_is_of_the_content(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    data = PreparedData.open(folder)
    assert data.digest() == data.info.sha256
    again = write_prepared(toy(), tmp_path_factory.mktemp("again"))
    assert again == data.info
    for other in (
        write_prepared(toy(), tmp_path_factory.mktemp("seed"), seed=1),
        write_prepared(toy(61), tmp_path_factory.mktemp("more")),
        write_prepared(
            Source("toy", ("a", "b", "c"), 4, 3, toy().splits, flip=True), tmp_path_factory.mktemp("classes")
        ),
    ):
        assert other.sha256 != data.info.sha256
    images = np.load(folder / "test" / "images.npy", mmap_mode="r+")
    images[3, 2, 1, 0] ^= 1
    images.flush()
    assert data.digest() != data.info.sha256
    with pytest.raises(GkdError, match=r"is damaged \(an image or a label is not the one"):
        PreparedData.open(folder)
    assert PreparedData.open(folder, check=False).info == data.info


def test_files_are_the_same_bytes_every_time(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    write_prepared(toy(), other)
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert len(files) == 7
    assert all((folder / file).read_bytes() == (other / file).read_bytes() for file in files)


def test_the_test_split_is_not_opened_before_it_is_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(prepared, "open_array", lambda path: (opened.append(path.parent.name), open_array(path))[1])
    data = PreparedData.open(folder, check=False)
    assert opened == []
    assert len(data.train) + len(data.validation) == 48
    assert set(opened) == {"train", "validation"}
    assert len(data.test) == 12
    assert "test" in opened


def spoil_json(key: str, value: object) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        content = json.loads((folder / "dataset.json").read_text())
        content[key] = value
        (folder / "dataset.json").write_text(json.dumps(content))

    return spoil


def cut_images(folder: Path) -> None:
    path = folder / "test" / "images.npy"
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda folder: (folder / "dataset.json").unlink(), "has no dataset.json"),
        (lambda folder: (folder / "dataset.json").write_text("{"), "is not readable JSON"),
        (spoil_json("colour", 1), "colour: Extra inputs"),
        (spoil_json("format", 2), "format: Input should be 1"),
        (spoil_json("counts", {"train": 43}), "counts or statistics are incomplete"),
        (spoil_json("mean", [0.5]), "counts or statistics are incomplete"),
        (spoil_json("counts", {"train": 44, "validation": 5, "test": 12}), "images.npy is damaged (it is uint8 [43"),
        (spoil_json("image_size", 5), "images.npy is damaged (it is uint8 [43, 4"),
        (cut_images, "test/images.npy is damaged (mmap length is greater than file size)"),
        (lambda folder: (folder / "train" / "labels.npy").unlink(), "train/labels.npy is damaged (No such file"),
        (lambda folder: np.save(folder / "train" / "labels.npy", np.full(43, 3)), "labels beyond the classes"),
        (
            lambda folder: np.save(folder / "train" / "labels.npy", np.zeros(43)),
            "it is float64 [43], dataset.json says",
        ),
        (lambda folder: (folder / "train" / "labels.npy").write_bytes(b"x" * 472), "train/labels.npy is damaged"),
    ],
)
def test_a_damaged_folder_is_one_sentence(folder: Path, spoil: Callable[[Path], None], sentence: str) -> None:
    spoil(folder)
    with pytest.raises(GkdError) as error:
        PreparedData.open(folder)
    assert sentence in str(error.value)


def test_arrays_in_another_order_are_refused(folder: Path) -> None:
    """The same shape and size, the same bytes after the header, and other pixels."""
    path = folder / "train" / "images.npy"
    content = path.read_bytes()
    path.write_bytes(content.replace(b"'fortran_order': False", b"'fortran_order': True ", 1))
    with pytest.raises(GkdError, match=r"images\.npy is damaged .*in Fortran order"):
        _ = PreparedData.open(folder).train


def test_an_array_that_is_written_to_has_its_room_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page of a file with its length alone would find the disk full when it is written to, and kill the process."""
    array = new_array(tmp_path / "whole.npy", np.uint8, (100, 64, 64, 3))
    assert (tmp_path / "whole.npy").stat().st_blocks * 512 >= array.nbytes
    assert not array.any()
    assert new_array(tmp_path / "none.npy", np.float32, (0, 5)).shape == (0, 5)

    def fail(number: int) -> None:
        def allocate(descriptor: int, offset: int, length: int) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "posix_fallocate", allocate)

    fail(errno.ENOSPC)
    with pytest.raises(OSError, match=r"No space left on device: .*images\.npy"):
        write_prepared(toy(), tmp_path)
    fail(errno.EOPNOTSUPP)  # a file system that cannot do it
    assert new_array(tmp_path / "other.npy", np.uint8, (2, 3)).tolist() == [[0] * 3] * 2


def test_an_object_array_is_never_unpickled(folder: Path) -> None:
    np.save(folder / "train" / "labels.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(GkdError, match=r"labels\.npy is damaged"):
        PreparedData.open(folder, check=False).split("train")


def test_unreadable_files_are_refused_and_all_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(GkdError) as error:
        write_prepared(toy(bad=(3, 17, 30, 44)), tmp_path)
    assert str(error.value) == (
        "4 of 60 images cannot be read: 003.jpg (cut short); 017.jpg (cut short); 030.jpg (cut short); … — "
        "fix or delete them, or set data.unreadable to drop"
    )
    assert sorted(record.getMessage() for record in caplog.records) == [
        f"cannot read {name}.jpg: cut short" for name in ("003", "017", "030", "044")
    ]


def test_dropped_files_leave_what_their_absence_would(tmp_path: Path) -> None:
    bad = (3, 17, 44)
    info = write_prepared(toy(bad=bad), tmp_path, unreadable="drop")
    assert info.dropped == ("003.jpg", "017.jpg", "044.jpg")
    kept = [i for i in range(60) if i not in bad]
    without = Examples(np.array([i % 3 for i in kept], np.int64), lambda i: picture(kept[i]))
    (tmp_path / "without").mkdir()
    expected = write_prepared(Source("toy", ("α", "b", "c"), 4, 3, {"train": without}, True), tmp_path / "without")
    assert info.sha256 == expected.sha256
    assert PreparedData.open(tmp_path).digest() == info.sha256


def test_a_class_all_of_whose_files_are_dropped_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GkdError, match="class 'b' of toy has no readable training image"):
        write_prepared(toy(bad=tuple(range(1, 60, 3))), tmp_path, unreadable="drop")


def test_images_are_written_without_holding_them_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "CHUNK_BYTES", 1 << 18)
    examples = Examples(np.arange(1000, dtype=np.int64) % 2, lambda i: np.full((64, 64, 3), i % 256, np.uint8))
    source = Source("toy", ("a", "b"), 64, 3, {"train": examples}, flip=False)  # 12.3 MB
    tracemalloc.start()
    try:
        write_prepared(source, tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4e6
    assert PreparedData.open(tmp_path).train.images.nbytes > 8e6


def test_digits_are_scaled_by_255_over_16(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    info = write_prepared(open_source("digits"), tmp_path)
    assert (info.image_size, info.channels, info.classes) == (8, 1, tuple("0123456789"))
    assert info.augment == {"crop_padding": 1, "flip": False}
    assert sum(info.counts.values()) == 1797
    data = PreparedData.open(tmp_path)
    table = [0, 16, 32, 48, 64, 80, 96, 112, 128, 143, 159, 175, 191, 207, 223, 239, 255]  # round(i · 255/16)
    bunch = load_digits()
    originals = {
        bytes(np.array(table, np.uint8)[i.astype(int)]): t for i, t in zip(bunch.images, bunch.target, strict=True)
    }
    for split in (data.train, data.validation, data.test):
        assert [originals[image.tobytes()] for image in split.images] == split.labels.tolist()


def test_digits_can_be_larger_and_in_colour() -> None:
    source = open_source("digits", image_size=32, channels=3)
    image = source.splits["train"].read(0)
    assert image.shape == (32, 32, 3)
    assert np.array_equal(image[..., 0], image[..., 2])


def test_an_unknown_source_names_the_nearest() -> None:
    with pytest.raises(GkdError, match="'cifar1O' is unknown; did you mean 'cifar10'"):
        open_source("cifar1O")
    with pytest.raises(GkdError, match=r"data\.source is folder but data\.root names none"):
        open_source("folder")
