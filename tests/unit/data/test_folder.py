"""Image folders in all the shapes people keep them."""

import os
from pathlib import Path

import pytest
from PIL import Image

from gkd_core.data.prepare import write_prepared
from gkd_core.data.prepared import PreparedData
from gkd_core.data.sources import open_source
from gkd_core.errors import GkdError


def picture(path: Path, value: int = 100, mode: str = "RGB", size: tuple[int, int] = (12, 10)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, value).convert(mode).save(path)


def classes(root: Path, names: tuple[str, ...] = ("cat", "dog"), count: int = 10) -> None:
    for label, name in enumerate(names):
        for i in range(count):
            picture(root / name / f"{i}.png", value=20 * label + i)


def refused(root: Path) -> str:
    with pytest.raises(GkdError) as error:
        open_source("folder", root)
    return str(error.value)


def test_a_folder_for_each_class(tmp_path: Path) -> None:
    endings = ("jpg", "JPEG", "png", "bmp", "gif", "webp", "tif", "TIFF")
    for i, ending in enumerate(endings):
        picture(tmp_path / "Žluťoučký kůň" / f"{i}.{ending}")
        picture(tmp_path / "a cat" / f"{i}.{ending}", mode="L", size=(5 + i, 20))
    source = open_source("folder", tmp_path)
    assert source.classes == ("a cat", "Žluťoučký kůň")
    assert (source.image_size, source.channels) == (64, 3)
    assert source.splits["train"].labels.tolist() == [0] * 8 + [1] * 8
    info = write_prepared(source, make(tmp_path.parent / "out"))
    assert info.counts == {"train": 10, "validation": 2, "test": 4}
    assert info.classes == ("a cat", "Žluťoučký kůň")
    assert info.augment == {"crop_padding": 8, "flip": True}


def make(folder: Path) -> Path:
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    ("folders", "counts"),
    [
        # Of 40 images in train/: a fifth (8) goes to the test where there is none, then a tenth (4) to validation.
        ({}, (28, 4, 8)),
        ({"test": 4}, (36, 4, 8)),
        ({"valid": 3}, (32, 6, 8)),
        ({"validation": 3, "test": 4}, (40, 6, 8)),
        ({"val": 3, "test": 4}, (40, 6, 8)),
    ],
)
def test_ready_splits(folders: dict[str, int], counts: tuple[int, ...], tmp_path: Path) -> None:
    for name, count in ({"train": 20} | folders).items():
        classes(tmp_path / "set" / name, count=count)
    info = write_prepared(open_source("folder", tmp_path / "set", image_size=8), make(tmp_path / "out"))
    assert tuple(info.counts.values()) == counts


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    classes(tmp_path, ("boat", "train", "test"))
    source = open_source("folder", tmp_path)
    assert source.classes == ("boat", "test", "train")
    assert set(source.splits) == {"train"}


def test_hidden_and_other_files_are_passed_over_and_nested_ones_found(tmp_path: Path) -> None:
    classes(tmp_path, count=3)
    picture(tmp_path / "cat" / "2024" / "may" / "x.jpg")
    for hidden in (".thumbs/x.jpg", "cat/._0.png", "cat/.cache/x.png", "__MACOSX/cat/0.png", "cat/__MACOSX/x.png"):
        picture(tmp_path / hidden)
    picture(tmp_path / "preview.png")
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    examples = open_source("folder", tmp_path).splits["train"]
    assert examples.names == (
        *("cat/0.png", "cat/1.png", "cat/2.png", "cat/2024/may/x.jpg"),
        *("dog/0.png", "dog/1.png", "dog/2.png"),
    )


def test_a_class_may_be_a_link(tmp_path: Path) -> None:
    classes(tmp_path / "set", count=2)
    classes(tmp_path / "elsewhere", ("bird",), count=2)
    (tmp_path / "set" / "bird").symlink_to(tmp_path / "elsewhere" / "bird")
    assert open_source("folder", tmp_path / "set").classes == ("bird", "cat", "dog")


def test_images_keep_their_labels_through_the_splits(tmp_path: Path) -> None:
    classes(tmp_path / "set", ("a", "b", "c"), count=10)
    write_prepared(open_source("folder", tmp_path / "set", image_size=8, channels=1), make(tmp_path / "out"))
    data = PreparedData.open(tmp_path / "out")
    seen = []
    for split in (data.train, data.validation, data.test):
        values = split.images[:, 4, 4, 0]
        assert (values // 20).tolist() == split.labels.tolist()
        seen += values.tolist()
    assert sorted(seen) == [20 * label + i for label in range(3) for i in range(10)]


def test_the_digest_does_not_depend_on_the_root(tmp_path: Path) -> None:
    infos = []
    for name in ("here", "there"):
        classes(tmp_path / name)
        infos.append(write_prepared(open_source("folder", tmp_path / name), make(tmp_path / f"out-{name}")))
    assert infos[0] == infos[1]


def test_what_a_folder_may_lack_is_one_sentence(tmp_path: Path) -> None:
    assert refused(tmp_path / "none") == f"data.root {tmp_path / 'none'} is not there: name a folder of images"
    (tmp_path / "file").write_text("")
    assert "is not a folder" in refused(tmp_path / "file")
    empty = make(tmp_path / "empty")
    assert f"{empty} has no images in folders of classes: put them there as CLASS/*.jpg" in refused(empty)
    picture(empty / "loose.jpg")
    assert "has no images in folders of classes" in refused(empty)
    (empty / "cat").mkdir()
    assert "has no images in folders of classes" in refused(empty)
    picture(empty / "dog" / "0.jpg")
    assert refused(empty) == f"the class folder {empty / 'cat'} has no images: add some, or remove it"
    picture(tmp_path / "one" / "cat" / "0.jpg")
    assert f"data.root {tmp_path / 'one'} has one class, 'cat'" in refused(tmp_path / "one")


def test_splits_that_contradict_are_refused(tmp_path: Path) -> None:
    classes(tmp_path / "train")
    classes(tmp_path / "test", ("cat", "wolf"))
    assert "class 'wolf' is in the test split of" in refused(tmp_path)
    assert "but not in train/: add it to train/" in refused(tmp_path)
    classes(tmp_path / "val")
    classes(tmp_path / "valid")
    assert "has both val/ and valid/: keep one of them" in refused(tmp_path)
    classes(tmp_path / "extra")
    assert "has train/ and beside it 'extra', which is none of train, val" in refused(tmp_path)


def test_a_class_name_that_is_not_text_is_refused(tmp_path: Path) -> None:
    classes(tmp_path)
    name = os.fsdecode(b"caf\xe9")
    picture(tmp_path / name / "0.png")
    assert refused(tmp_path) == f"the name of the class folder {tmp_path}/caf\ufffd is not UTF-8: rename it"


def test_unreadable_files_are_listed_or_dropped(tmp_path: Path) -> None:
    root = tmp_path / "set"
    classes(root, count=12)
    (root / "cat" / "0.png").write_bytes((root / "cat" / "0.png").read_bytes()[:40])
    (root / "dog" / "11.png").write_text("not an image")
    with pytest.raises(GkdError) as error:
        write_prepared(open_source("folder", root), make(tmp_path / "refused"))
    assert str(error.value).startswith("2 of 24 images cannot be read: cat/0.png (")
    assert "dog/11.png (cannot identify it: no image of a known format)" in str(error.value)
    info = write_prepared(open_source("folder", root), make(tmp_path / "out"), unreadable="drop")
    assert info.dropped == ("cat/0.png", "dog/11.png")
    assert sum(info.counts.values()) == 22
