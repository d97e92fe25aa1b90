"""Photos: pictures of many sizes kept whole for training, and as the usual squares where they are looked at."""

import hashlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from gkd_core.config.schema import DataConfig
from gkd_core.data import prepare
from gkd_core.data.images import read_image
from gkd_core.data.load import load_data
from gkd_core.data.loader import Loader
from gkd_core.data.part import ClassPart
from gkd_core.data.photos import Photos
from gkd_core.data.prepare import write_prepared
from gkd_core.data.prepared import DatasetInfo, PreparedData
from gkd_core.data.sources import open_source
from gkd_core.errors import GkdError
from tests.unit.scenes import write_scenes


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("photos"))


def files(root: Path, split: str) -> list[Path]:
    return sorted((root / split).rglob("*.png"))


def prepared(root: Path, out: Path, size: int = 96, channels: int | None = None, **how: Any) -> DatasetInfo:
    out.mkdir(parents=True)
    return write_prepared(open_source("folder", root, size, channels), out, **how)


@pytest.fixture(scope="module")
def folder(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared") / "data"
    prepared(root, folder)
    return folder


def photos(folder: Path) -> Photos:
    images: Any = PreparedData.open(folder).train.images
    assert isinstance(images, Photos)
    return images


def test_training_pictures_are_whole_with_their_shorter_side_brought_down(root: Path, folder: Path) -> None:
    """Pillow's own resize is the oracle; 110 is 1.15 · 96."""
    kept = photos(folder)
    heights = {(300, 200): (110, 165), (180, 240): (147, 110), (90, 500): (360, 90), (50, 40): (40, 50)}
    heights |= {(110, 110): (110, 110), (240, 97): (97, 240)}
    for row, file in enumerate(files(root, "train")):
        picture = Image.open(file)
        height, width = heights[picture.size]
        if picture.size == (90, 500):  # 5.6 times as long as wide: the middle four
            picture = picture.crop((0, 70, 90, 430))
        if picture.size != (width, height):
            picture = picture.resize((width, height), Image.Resampling.BILINEAR)
        assert np.array_equal(kept.read(row), np.asarray(picture)), file
        assert kept.sizes[row].tolist() == [height, width]
        assert np.array_equal(kept.read(row, 7, 20), kept.read(row)[7:27])
    info = PreparedData.open(folder).info
    assert info.photos is not None
    assert (info.photos.store_size, info.photos.store, info.crop) == (110, "raw", None)


def test_what_is_looked_at_are_the_squares_a_served_model_sees(root: Path, folder: Path) -> None:
    data = PreparedData.open(folder)
    for split, name in ((data.validation, "val"), (data.test, "test")):
        assert split.images.shape == (18, 96, 96, 3)
        for square, file in zip(split.images, files(root, name), strict=True):
            assert np.array_equal(square, read_image(file, 96, 3))
            assert np.array_equal(square, np.asarray(ImageOps.fit(Image.open(file), (96, 96), method=Image.BILINEAR)))


def test_whole_pictures_give_squares_for_every_index_an_array_takes(root: Path, folder: Path) -> None:
    kept = photos(folder)
    squares = np.array(kept)
    assert (kept.shape, len(kept), kept.nbytes) == (squares.shape, len(squares), squares.nbytes)
    assert squares.dtype == kept.dtype == np.uint8
    for row, file in enumerate(files(root, "train")):
        direct = read_image(file, 96, 3).astype(int)
        assert np.abs(squares[row] - direct).mean() < 1  # resampled twice
    mask = np.arange(18) % 5 == 0
    for index in (3, -1, slice(2, 9, 3), np.array([5, 0, 5]), [4], mask, np.array([[1, 2], [3, 4]]), slice(0, 0)):
        assert np.array_equal(kept[index], squares[index])
    assert np.asarray(kept, dtype=np.float32).dtype == np.float32
    with pytest.raises(IndexError):
        kept[18]


def test_statistics_are_of_all_pixels_that_are_kept(folder: Path) -> None:
    kept = photos(folder)
    pixels = np.concatenate([kept.read(row).reshape(-1, 3) for row in range(len(kept))]) / 255
    info = PreparedData.open(folder).info
    assert info.mean == pytest.approx(pixels.mean(0), abs=1e-12)
    assert info.std == pytest.approx(pixels.std(0), abs=1e-12)


def test_a_grey_picture_keeps_its_one_channel(root: Path, tmp_path: Path) -> None:
    for store in ("raw", "compressed"):
        prepared(root, tmp_path / store, channels=1, store=store)
    raw, compressed = photos(tmp_path / "raw"), photos(tmp_path / "compressed")
    assert raw[:2].shape == compressed[:2].shape == (2, 96, 96, 1)
    assert np.array_equal(raw.read(4)[:, :, 0], np.asarray(Image.open(files(root, "train")[4]).convert("L")))
    assert np.abs(raw.read(0).astype(int) - compressed.read(0)).max() <= 3


def test_compressed_pictures_take_less_and_look_the_same(root: Path, folder: Path, tmp_path: Path) -> None:
    info = prepared(root, tmp_path / "data", store="compressed")
    assert info.photos is not None
    assert info.photos.store == "compressed"
    raw, compressed = photos(folder), photos(tmp_path / "data")
    assert np.array_equal(raw.sizes, compressed.sizes)
    for row in range(len(raw)):
        assert np.abs(raw.read(row).astype(int) - compressed.read(row)).mean() < 2
        assert np.array_equal(compressed.read(row, 5, 9), compressed.read(row)[5:14])
    sizes = [(place / "train" / "images.bin").stat().st_size for place in (folder, tmp_path / "data")]
    assert sizes[1] < sizes[0] / 5
    for split in ("validation", "test"):  # measured on the same pixels whatever is trained on
        same = [(place / split / "images.npy").read_bytes() for place in (folder, tmp_path / "data")]
        assert same[0] == same[1]


def test_many_pictures_are_compressed_unasked(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """18 of 110 · 110 · 4/3 · 3 bytes."""
    for limit, store in ((871_200, "raw"), (871_199, "compressed")):
        monkeypatch.setattr(prepare, "RAW_UP_TO", limit)
        info = prepared(root, tmp_path / store)
        assert info.photos is not None
        assert info.photos.store == store


def test_small_images_stay_the_squares_they_were(root: Path, tmp_path: Path) -> None:
    """Up to 64 pixels, or where squares are asked for: the files, and the content of dataset.json, of before."""
    small = prepared(root, tmp_path / "small", 64)
    asked = prepared(root, tmp_path / "asked", 96, store="squares")
    for info, out in ((small, tmp_path / "small"), (asked, tmp_path / "asked")):
        assert (info.photos, info.crop) == (None, None)
        content = json.loads((out / "dataset.json").read_text())
        assert not {"photos", "crop"} & set(content)
        assert sorted(path.name for path in (out / "train").iterdir()) == ["images.npy", "labels.npy"]
        images = PreparedData.open(out).train.images
        expected = np.stack([read_image(file, info.image_size, 3) for file in files(root, "train")])
        assert np.array_equal(images, expected)
    hashes = {
        split: {
            "images": hashlib.sha256(np.load(tmp_path / "small" / split / "images.npy").tobytes()).hexdigest(),
            "labels": hashlib.sha256(np.load(tmp_path / "small" / split / "labels.npy").tobytes()).hexdigest(),
        }
        for split in ("train", "validation", "test")
    }
    told = {"classes": ["ant", "bee", "cow"], "shape": [64, 64, 3], "splits": hashes}
    text = json.dumps(told, sort_keys=True, separators=(",", ":"))
    assert small.sha256 == hashlib.sha256(text.encode()).hexdigest()
    whole = prepared(root, tmp_path / "whole", 64, store_size=70)
    assert whole.photos is not None
    assert photos(tmp_path / "whole").sizes.min(1).max() == 70


@pytest.mark.parametrize("crop", ["squash", "border"])
@pytest.mark.parametrize("size", [48, 96])
def test_a_crop_is_how_every_square_is_made(crop: Any, size: int, root: Path, tmp_path: Path) -> None:
    info = prepared(root, tmp_path / "data", size, crop=crop)
    data = PreparedData.open(tmp_path / "data")
    assert info.crop == crop
    assert {"squash": "resized to a square", "border": "bordered"}[crop] in info.preparation
    for split, name in ((data.test, "test"), (data.train, "train")):
        for square, file in zip(split.images[:6], files(root, name)[:6], strict=True):
            picture = Image.open(file)
            if crop == "squash":
                expected = np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR))
            else:
                expected = np.asarray(ImageOps.pad(picture, (size, size), Image.Resampling.BILINEAR, (128,) * 3))
            if name == "test" or size == 48:
                assert np.array_equal(square, expected)
                assert np.array_equal(square, read_image(file, size, 3, crop=crop))
            elif picture.size != (90, 500):  # of which the ends are gone
                assert np.abs(square.astype(int) - expected).mean() < 2


def test_the_digest_is_of_everything_that_is_kept(root: Path, folder: Path, tmp_path: Path) -> None:
    info = PreparedData.open(folder).info
    assert prepared(root, tmp_path / "again") == info
    for path in folder.rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "again" / path.relative_to(folder)).read_bytes()
    others = ({"store": "compressed"}, {"store_size": 111}, {"store": "squares"}, {"crop": "squash"})
    digests = {prepared(root, tmp_path / str(n), **how).sha256 for n, how in enumerate(others)}
    assert len(digests | {info.sha256}) == 5


def flip_a_bit(name: str, place: int = 200) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        content = bytearray((folder / "train" / name).read_bytes())
        content[place] ^= 1
        (folder / "train" / name).write_bytes(content)

    return spoil


def told(**changed: Any) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        content = json.loads((folder / "dataset.json").read_text())
        content["photos"] |= changed
        (folder / "dataset.json").write_text(json.dumps(content))

    return spoil


def replaced(name: str, array: Any) -> Callable[[Path], None]:
    return lambda folder: np.save(folder / "train" / name, array(np.load(folder / "train" / name)))


SPOILT: dict[str, tuple[Callable[[Path], None], str]] = {
    "a pixel": (flip_a_bit("images.bin"), "not the one dataset.json was written for"),
    "the last pixel": (flip_a_bit("images.bin", -1), "not the one dataset.json was written for"),
    "a label": (flip_a_bit("labels.npy", 128), "not the one dataset.json was written for"),
    "an offset": (flip_a_bit("offsets.npy"), "sizes.npy: a picture is larger or smaller than its record"),
    "a size": (flip_a_bit("sizes.npy"), "sizes.npy: a picture is larger or smaller than its record"),
    "height and width": (replaced("sizes.npy", lambda a: a[:, ::-1].copy()), "not the one dataset.json was written"),
    "no first offset": (replaced("offsets.npy", lambda a: a + 1), "offsets.npy: a picture is empty"),
    "an empty picture": (
        replaced("sizes.npy", lambda a: a * (np.arange(18) > 3)[:, None]),
        "sizes.npy: a picture is empty, or too large",
    ),
    "fewer sizes": (replaced("sizes.npy", lambda a: a[:-1]), "sizes.npy: it is int64 [17, 2], not int64 [18, 2]"),
    "floats": (replaced("offsets.npy", lambda a: a.astype(float)), "offsets.npy: it is float64 [19], not int64 [19]"),
    "a pickle": (replaced("sizes.npy", lambda a: np.array([{}] * 18)), "sizes.npy: Array can't be memory-mapped"),
    "an offset below 0": (replaced("offsets.npy", lambda a: np.where(a > 0, -a, a)), "offsets.npy: a picture is empty"),
    "a huge picture": (replaced("sizes.npy", lambda a: a + (1 << 62)), "sizes.npy: a picture is empty, or too large"),
    "no sizes": (lambda f: (f / "train" / "sizes.npy").unlink(), "sizes.npy: No such file"),
    "no pictures": (lambda f: (f / "train" / "images.bin").unlink(), "images.bin: No such file"),
    "a short file": (lambda f: (f / "train" / "images.bin").write_bytes(b"123"), "images.bin: it has 3 bytes"),
    "another store": (told(store="compressed"), "not the one dataset.json was written for"),
    "a store of no kind": (told(store="zip"), "photos.store: Input should be 'raw' or 'compressed'"),
    "another store size": (told(store_size=111), "not the one dataset.json was written for"),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_damage_is_found(kind: str, folder: Path, tmp_path: Path) -> None:
    spoil, sentence = SPOILT[kind]
    shutil.copytree(folder, tmp_path / "data")
    spoil(tmp_path / "data")
    with pytest.raises(GkdError) as error:
        PreparedData.open(tmp_path / "data")
    assert sentence in str(error.value)
    assert "is damaged" in str(error.value)
    assert "gkd prepare" in str(error.value)


def test_a_file_that_changes_while_it_is_open_ends_in_a_sentence(root: Path, tmp_path: Path) -> None:
    for store, sentence in (("raw", "it ends too early"), ("compressed", "picture 0")):
        prepared(root, tmp_path / store, store=store)
        kept = photos(tmp_path / store)
        with (tmp_path / store / "train" / "images.bin").open("r+b") as stream:
            if store == "raw":
                stream.truncate(500)
            stream.write(bytes(400))
        with pytest.raises(GkdError, match=f"images.bin is damaged.*{sentence}"):
            kept.read(0)
    small = io.BytesIO()
    Image.new("RGB", (3, 3)).save(small, "JPEG")
    with (tmp_path / "compressed" / "train" / "images.bin").open("r+b") as stream:
        stream.write(small.getvalue())
    with pytest.raises(GkdError, match=r"picture 0 has \(3, 3, 3\) values, not \(110, 165, 3\)"):
        kept.read(0)


def test_unreadable_pictures_are_refused_or_dropped_as_ever(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path / "photos")
    (tmp_path / "photos" / "train" / "bee" / "2.png").write_bytes(b"no picture")
    (tmp_path / "photos" / "test" / "cow" / "0.png").write_bytes(b"")
    with pytest.raises(GkdError, match="2 of 54 images cannot be read"):
        prepared(tmp_path / "photos", tmp_path / "refused")
    info = prepared(tmp_path / "photos", tmp_path / "out", unreadable="drop")
    assert info.dropped == ("test/cow/0.png", "train/bee/2.png")
    assert (info.counts["train"], info.counts["test"]) == (17, 17)
    assert len(photos(tmp_path / "out")) == 17


def test_what_only_files_give_is_refused_of_squares(tmp_path: Path) -> None:
    for how in ({"store": "raw"}, {"store": "compressed"}, {"store_size": 20}, {"crop": "border"}):
        (key, value), *_ = how.items()
        with pytest.raises(GkdError, match=f"data.{key} is {value}, but digits gives squares"):
            write_prepared(open_source("digits"), tmp_path, **how)
    write_prepared(open_source("digits"), tmp_path, store="squares")


def test_a_store_size_must_make_sense(root: Path, tmp_path: Path) -> None:
    source = open_source("folder", root, 96)
    with pytest.raises(GkdError, match=r"data.store_size is 95, below the 96 pixels of data.image_size"):
        write_prepared(source, tmp_path, store_size=95)
    with pytest.raises(GkdError, match=r"data\.store is squares"):
        write_prepared(source, tmp_path, store="squares", store_size=120)
    with pytest.raises(ValueError, match="store_size is 95, below image_size"):
        DataConfig(source="folder", image_size=96, store_size=95)
    with pytest.raises(ValueError, match="store is squares"):
        DataConfig(source="folder", store="squares", store_size=120)


def test_load_data_takes_what_the_parameters_say(root: Path, tmp_path: Path) -> None:
    data = load_data(root, image_size=96, store="compressed", store_size=100, crop="squash", cache=tmp_path / "cache")
    assert data.info.photos is not None
    assert (data.info.photos.store, data.info.photos.store_size, data.info.crop) == ("compressed", 100, "squash")
    with pytest.raises(GkdError) as error:
        load_data(root, image_size=96, store_size=95)
    assert str(error.value).startswith("store_size is 95, below image_size (96)")


@pytest.mark.parametrize("resident", [True, False])
def test_a_loader_gives_the_squares_whether_resident_or_streamed(resident: bool, folder: Path) -> None:
    data = PreparedData.open(folder)
    squares = np.array(data.train.images)
    settings: Any = {"batch_size": 5, "device": "cpu", "shuffle": True, "num_classes": 3, "resident": resident}
    for batch in Loader(data.train, **settings).epoch(1):
        expected = squares[batch.indices.numpy()].transpose(0, 3, 1, 2) / np.float32(255)
        assert np.array_equal(batch.images.numpy(), expected)


def test_some_classes_of_whole_pictures_are_whole_pictures(folder: Path) -> None:
    data = PreparedData.open(folder)
    part: Any = ClassPart(data, ("cow", "ant")).train.images
    rows = np.flatnonzero(data.train.labels != 1)
    assert np.array_equal(part[:], np.array(data.train.images)[rows])
    assert part.nbytes == part[:].nbytes
    assert np.array_equal(part.sizes, photos(folder).sizes[rows])
    assert np.array_equal(part.read(8, 1, 5), photos(folder).read(int(rows[8]), 1, 5))
