"""Pictures without a class beside the splits: all of a folder, none that something is measured on, in the digest."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import gkd_core as gkd
from gkd_core.data.interleave import Joined
from gkd_core.data.part import ClassPart
from gkd_core.data.prepared import PreparedData
from gkd_core.errors import GkdError


def picture(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def plain() -> PreparedData:
    return gkd.load_data("digits", train_images=100)


@pytest.fixture
def pictures(tmp_path, plain) -> Path:
    """Six pictures at several depths, and copies of a test, a validation and a training image."""
    rng = np.random.default_rng(0)
    for name in ("a.png", "deep/b.png", "deep/c.PNG", "deep/er/d.jpg", "cat/e.bmp", "dog/f.png"):
        picture(tmp_path / "more" / name, rng.integers(0, 256, (8, 8), dtype=np.uint8))
    for split in ("test", "validation", "train"):
        picture(tmp_path / "more" / f"{split}.png", np.asarray(plain.split(split).images[3])[:, :, 0])
    (tmp_path / "more" / "deep" / "notes.txt").write_text("no picture")
    return tmp_path / "more"


def test_every_picture_of_the_folder_but_those_that_something_is_measured_on(pictures, plain):
    data = gkd.load_data("digits", train_images=100, unlabelled=pictures)
    assert data.unlabelled is not None
    assert data.info.unlabelled.model_dump() == {
        "count": 7,
        "dropped": (),
        "held_out": ("test.png", "validation.png"),
        "left_out": {"no picture of a format that is read": {".txt": 1}},
    }
    rows = (data.folder / "unlabelled" / "left_out.csv").read_text().splitlines()
    assert rows[1:] == [
        "deep/notes.txt,no picture of a format that is read",
        "test.png,also in the validation or test split",
        "validation.png,also in the validation or test split",
    ]
    assert data.unlabelled.images.shape == (7, 8, 8, 1)
    assert data.unlabelled.labels.tolist() == [-1] * 7
    first = np.asarray(Image.open(pictures / "a.png"))[:, :, None]
    assert np.array_equal(data.unlabelled.images[0], first)
    data.check()
    assert data.info.sha256 != plain.info.sha256
    assert [data.info.counts, data.info.mean] == [plain.info.counts, plain.info.mean]


def test_without_them_nothing_is_written_of_them(plain):
    assert plain.unlabelled is None
    assert "unlabelled" not in (plain.folder / "dataset.json").read_text()
    assert not (plain.folder / "unlabelled").exists()


def test_one_changed_pixel_is_noticed(pictures, tmp_path):
    gkd.load_data("digits", train_images=100, unlabelled=pictures, cache=tmp_path / "data")
    file = tmp_path / "data" / "unlabelled" / "images.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(GkdError, match="is damaged"):
        PreparedData.open(tmp_path / "data")
    file.unlink()
    with pytest.raises(GkdError, match=r"images\.npy is damaged"):
        PreparedData.open(tmp_path / "data", check=False).unlabelled  # noqa: B018


def test_what_cannot_be_read_is_refused_by_name_or_left_out_and_listed(pictures):
    (pictures / "broken.png").write_bytes(b"no picture")
    with pytest.raises(GkdError, match=r"1 of 10 images of data|1 of 10 images of unlabelled") as caught:
        gkd.load_data("digits", train_images=100, unlabelled=pictures)
    assert "broken.png" in str(caught.value)
    data = gkd.load_data("digits", train_images=100, unlabelled=pictures, unreadable="drop")
    assert data.info.unlabelled.dropped == ("broken.png",)
    assert data.info.unlabelled.count == 7


def test_a_folder_with_nothing_to_learn_from_is_refused(pictures, tmp_path):
    (tmp_path / "empty").mkdir()
    for place, part in ((tmp_path / "empty", "has no images"), (tmp_path / "none", "is not there")):
        with pytest.raises(GkdError, match=part):
            gkd.load_data("digits", unlabelled=place)
    for file in pictures.rglob("*.*"):
        if file.name not in ("test.png", "validation.png"):
            file.unlink()
    with pytest.raises(GkdError, match=r"no picture of .*unlabelled is left: 2 are in the validation or test split"):
        gkd.load_data("digits", train_images=100, unlabelled=pictures)


def test_a_folder_among_the_classes_would_be_one_of_them(pictures, tmp_path):
    for name in ("cat", "dog"):
        for i in range(10):
            picture(tmp_path / "photos" / name / f"{i}.png", np.full((8, 8), 20 * i, np.uint8))
    shutil.copytree(pictures, tmp_path / "photos" / "more")
    with pytest.raises(GkdError, match="where a folder of pictures is a class"):
        gkd.load_data(tmp_path / "photos", unlabelled=tmp_path / "photos" / "more")
    shutil.rmtree(tmp_path / "photos" / "more")
    data = gkd.load_data(tmp_path / "photos", image_size=8, unlabelled=pictures)
    assert data.unlabelled.images.shape == (9, 8, 8, 3)


def test_a_cache_made_without_them_is_not_taken_for_one_with_them(pictures, tmp_path):
    gkd.load_data("digits", train_images=100, cache=tmp_path / "data")
    with pytest.raises(GkdError, match="have none without a class"):
        gkd.load_data("digits", train_images=100, cache=tmp_path / "data", unlabelled=pictures)


def test_a_part_of_the_classes_has_none(pictures):
    data = gkd.load_data("digits", train_images=100, unlabelled=pictures)
    part = ClassPart(data, ("3", "5"))
    assert part.unlabelled is None
    assert part.info.unlabelled is None


def test_among_photos_they_are_kept_whole_as_what_is_trained_on(tmp_path):
    rng = np.random.default_rng(1)
    for name in ("cat", "dog"):
        for i in range(10):
            picture(tmp_path / "photos" / name / f"{i}.png", rng.integers(0, 256, (90, 130, 3), dtype=np.uint8))
    shapes = ((200, 100), (80, 160), (100, 100))
    for i, (height, width) in enumerate(shapes):
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        picture(tmp_path / "more" / f"{i}.png", pixels)
    data = gkd.load_data(tmp_path / "photos", image_size=80)
    test = data.info.counts["test"]
    shutil.copytree(tmp_path / "photos" / "cat", tmp_path / "more" / "copies")
    shutil.copytree(tmp_path / "photos" / "dog", tmp_path / "more" / "others")
    data = gkd.load_data(tmp_path / "photos", image_size=80, unlabelled=tmp_path / "more", cache=tmp_path / "data")
    assert data.info.photos is not None
    assert len(data.info.unlabelled.held_out) == test + data.info.counts["validation"]
    assert len(data.unlabelled) == 3 + data.info.counts["train"]
    assert data.unlabelled.images.sizes[:3].tolist() == [[184, 92], [80, 160], [92, 92]]
    joined = Joined(data.train.images, data.unlabelled.images)
    count = len(data.train)
    assert np.array_equal(joined.sizes[count : count + 3], data.unlabelled.images.sizes[:3])
    assert np.array_equal(joined.read(count + 1, 3, 20), data.unlabelled.images.read(1)[3:23])
    assert np.array_equal(joined.read(2), data.train.images.read(2))
    rows = np.array([count + 2, 0, count])
    expected = [data.unlabelled.images[2], data.train.images[0], data.unlabelled.images[0]]
    assert np.array_equal(joined[rows], expected)
    PreparedData.open(tmp_path / "data")
    content = bytearray((tmp_path / "data" / "unlabelled" / "images.bin").read_bytes())
    content[5] ^= 1
    (tmp_path / "data" / "unlabelled" / "images.bin").write_bytes(content)
    with pytest.raises(GkdError, match="is damaged"):
        PreparedData.open(tmp_path / "data")
