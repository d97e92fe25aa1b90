"""Image folders in all the shapes people keep them."""

import csv
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from gkd_core.data.left_out import count_left_out, warnings_of
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


def test_every_file_is_a_picture_or_left_out_with_its_reason(tmp_path: Path) -> None:
    classes(tmp_path, count=3)
    picture(tmp_path / "cat" / "photo.jfif.png")
    for taken in ("cat/a.JPE", "cat/b.jfif", "cat/picture without ending", "dog/x.dat"):
        Image.new("RGB", (9, 9)).save(tmp_path / taken, "JPEG")
    Image.new("RGB", (9, 9)).save(tmp_path / "dog" / "raw.NEF", "TIFF")
    for name in ("cat/clip.MOV", "cat/clip2.mov", "dog/notes.txt", "dog/BMW.md", "labels.csv"):
        (tmp_path / name).write_text("BMW, not a picture")
    for name in ("#recycle/0.png", "@eaDir/cat/SYNOPHOTO_THUMB_M.jpg", "$RECYCLE.BIN/1.jpg", "lost+found/x.jpg"):
        picture(tmp_path / name)
    for name in ("cat/@eaDir/0.png/SYNOPHOTO_THUMB_M.jpg", "cat/Thumbs.db", "cat/.DS_Store", ".Trash-1000/files/0.png"):
        picture(tmp_path / "x.png")
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "x.png").rename(tmp_path / name)
    for name in ("dog/SYNOPHOTO_THUMB_XL.jpg", "dog/thumbnails/0.png"):
        picture(tmp_path / name)
    os.mkfifo(tmp_path / "dog" / "pipe.jpg")
    source = open_source("folder", tmp_path, 8)
    taken = set(source.splits["train"].names)
    assert {"cat/a.JPE", "cat/b.jfif", "cat/picture without ending", "dog/x.dat", "cat/photo.jfif.png"} < taken
    left = {each.name: each.reason for each in source.left_out}
    everything = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if not p.is_dir()}
    assert taken | set(left) == everything
    assert not taken & set(left)
    assert len(taken) == 11
    assert left["dog/raw.NEF"] == "camera raw: export it as JPEG"
    assert left["dog/pipe.jpg"] == "neither a file nor a folder"
    assert left["labels.csv"] == "in no folder of a class"
    assert left["dog/thumbnails/0.png"] == left["dog/SYNOPHOTO_THUMB_XL.jpg"] == "a thumbnail"
    assert warnings_of(source, "SET") == [
        "4 of 15 files of SET are left out: 2 × .mov, 1 × .md, 1 × .txt (no picture of a format that is read)"
    ]
    info = write_prepared(source, make(tmp_path / "out"), test_fraction=0.3, validation_fraction=0.3)
    assert info.left_out == count_left_out(source.left_out)
    assert info.left_out["no picture of a format that is read"] == {".mov": 2, ".md": 1, ".txt": 1}
    with (tmp_path / "out" / "left_out.csv").open(newline="") as stream:
        assert {row["file"]: row["reason"] for row in csv.DictReader(stream)} == left


@pytest.mark.parametrize(
    "names",
    [("Training", "Testing"), ("TRAIN", "TEST"), ("train_set", "test-set"), ("training", "holdout"), ("Train", "tst")],
)
def test_splits_in_other_spellings(names: tuple[str, str], tmp_path: Path) -> None:
    for name, count in zip(names, (6, 3), strict=True):
        classes(tmp_path / name, count=count)
    for name in ("dev", "VALID", "Validation", "eval"):
        classes(tmp_path / name, count=2)
        source = open_source("folder", tmp_path)
        assert {split: len(each.labels) for split, each in source.splits.items()} == {
            "train": 12,
            "validation": 4,
            "test": 6,
        }
        assert not source.warnings
        shutil.rmtree(tmp_path / name)


def test_splits_that_may_be_meant_otherwise_are_one_sentence(tmp_path: Path) -> None:
    classes(tmp_path / "flat", ("Training", "testing"), count=3)
    assert "has Training/, testing/ and no folders of classes in them: make it train/CLASS" in refused(
        tmp_path / "flat"
    )
    for name in ("test", "val"):
        classes(tmp_path / "no train" / name)
    assert "has test/, val/ and no train/" in refused(tmp_path / "no train")
    for name in ("cat", "dog"):
        classes(tmp_path / "within" / name, ("train", "test"), count=2)
    assert "has splits within its classes (cat/…)" in refused(tmp_path / "within")
    classes(tmp_path / "deep" / "photos" / "train")
    assert refused(tmp_path / "deep").endswith(f"if its folders are the classes, name {tmp_path / 'deep' / 'photos'}")
    for number, names in enumerate(
        (("01_train", "02_test"), ("train2017", "val2017", "test2017"), ("trn.a", "trn.b", "holdout"))
    ):
        for name in names:
            classes(tmp_path / str(number) / name)
        assert f"has {sorted(names)[0]}/" in refused(tmp_path / str(number))
        assert "which would be classes and are called like splits" in refused(tmp_path / str(number))
    classes(tmp_path / "eval" / "train")
    classes(tmp_path / "eval" / "eval")
    (warning,) = open_source("folder", tmp_path / "eval").warnings
    assert "eval/ of" in warning
    assert "rename it test/" in warning
    classes(tmp_path / "eval" / "Train")
    assert "has both Train/ and train/: keep one of them" in refused(tmp_path / "eval")


def test_splits_by_names_that_nobody_knows_are_a_warning(tmp_path: Path) -> None:
    for name in ("Entrenamiento", "Prueba"):
        classes(tmp_path / "spanish" / name)
    (warning,) = open_source("folder", tmp_path / "spanish").warnings
    assert "the classes 'Entrenamiento', 'Prueba' of" in warning
    assert (
        "hold the same folders, 'cat', 'dog': if those are the classes, call the outer ones train, val, test" in warning
    )
    for name in ("seg_train", "seg_test", "seg_pred"):
        classes(tmp_path / "intel" / name / name)
    (warning,) = open_source("folder", tmp_path / "intel").warnings
    assert "'seg_pred', 'seg_test', 'seg_train' of" in warning
    assert "are called like splits" in warning
    for name in ("cat", "dog"):
        classes(tmp_path / "views" / name, ("front",))
    classes(tmp_path / "things", ("test tube", "bullet", "train"))
    assert not open_source("folder", tmp_path / "views").warnings


def test_a_folder_of_thumbnails_beside_the_classes_is_none(tmp_path: Path) -> None:
    classes(tmp_path, ("cat", "thumbs", "thumbnails", "_thumbs"), count=2)
    source = open_source("folder", tmp_path)
    assert source.classes == ("cat", "thumbs")
    assert [each.name for each in source.left_out if each.reason == "a thumbnail"] == [
        *("_thumbs/0.png", "_thumbs/1.png", "thumbnails/0.png", "thumbnails/1.png")
    ]


def test_a_name_composed_and_decomposed_is_one_class(tmp_path: Path) -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    classes(tmp_path / "train", (composed, "tea"), count=2)
    picture(tmp_path / "train" / decomposed / "9.png")
    classes(tmp_path / "test", (decomposed, "tea"), count=2)
    source = open_source("folder", tmp_path)
    assert source.classes == (composed, "tea")
    assert source.splits["train"].labels.tolist() == [0, 0, 0, 1, 1]
    assert source.splits["test"].labels.tolist() == [0, 0, 1, 1]
    assert source.splits["train"].read(0).shape == (64, 64, 3)


def test_names_that_nobody_tells_apart_are_said(tmp_path: Path) -> None:
    classes(tmp_path / "set", ("Cat", "cat", "big dog", "big_dog", "cow"))
    warnings = open_source("folder", tmp_path / "set").warnings
    assert len(warnings) == 2
    assert f"classes 'Cat', 'cat' of {tmp_path / 'set'} differ in case or spaces only" in warnings[0]
    assert "classes 'big dog', 'big_dog' of" in warnings[1]
    classes(tmp_path / "train", ("Cat", "cow"))
    classes(tmp_path / "test", ("cat", "cow"))
    shutil.rmtree(tmp_path / "set")
    assert "class 'cat' is in the test split of" in refused(tmp_path)
    assert "but not in train/, which has 'Cat': add it" in refused(tmp_path)
    for name in ("two\nlines", "a\ttab", "bell\x07", "two\N{LINE SEPARATOR}lines"):
        classes(tmp_path / "odd", ("cow", name))
        assert f"{name!r}"[1:-1] in refused(tmp_path / "odd")
        assert "has a line break or a control character: rename it" in refused(tmp_path / "odd")
        shutil.rmtree(tmp_path / "odd")


def test_links_to_folders_are_followed_once_and_never_in_a_circle(tmp_path: Path) -> None:
    root = tmp_path / "set"
    classes(root, count=2)
    classes(tmp_path / "elsewhere", ("bird", "more"), count=2)
    (root / "all").symlink_to(root)  # leads back: all others' pictures would be its own
    (root / "again").symlink_to(root / "cat")
    (root / "up").symlink_to(tmp_path)
    (root / "bird").symlink_to(tmp_path / "elsewhere" / "bird")
    (root / "dog" / "more").symlink_to(tmp_path / "elsewhere" / "more")
    (root / "dog" / "and more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "more" / "circle").symlink_to(tmp_path / "elsewhere" / "more")
    (root / "cat" / "gone.jpg").symlink_to(tmp_path / "nowhere")
    (root / "cat" / "gone.txt").symlink_to(tmp_path / "nowhere")
    source = open_source("folder", root)
    assert source.classes == ("bird", "cat", "dog")
    assert source.splits["train"].names == (
        *("bird/0.png", "bird/1.png", "cat/0.png", "cat/1.png", "cat/gone.jpg"),
        *("dog/0.png", "dog/1.png", "dog/more/0.png", "dog/more/1.png"),
    )
    assert {each.name: each.reason for each in source.left_out} == {
        "all/": "a link that leads back to the data's root",
        "up/": "a link that leads back to the data's root",
        "again/": "a link to a folder that is read already",
        "dog/and more/bird/": "a link to a folder that is read already",
        "dog/and more/more/": "a link to a folder that is read already",
        "dog/more/circle/": "a link to a folder that is read already",
        "cat/gone.txt": "neither a file nor a folder",
    }
    assert "6 of 15 files" in warnings_of(source)[0]


def test_a_hidden_store_is_read_through_the_links_to_it(tmp_path: Path) -> None:
    classes(tmp_path / ".store", count=2)
    for name in ("cat", "dog"):
        (tmp_path / name).symlink_to(tmp_path / ".store" / name)
    assert open_source("folder", tmp_path).splits["train"].names == ("cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png")


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
    assert refused(empty).endswith("; if its own 1 are one class, name what holds all classes")
    (empty / "cat").mkdir()
    assert "has no images in folders of classes" in refused(empty)
    picture(empty / "dog" / "0.jpg")
    assert refused(empty).startswith(f"the class folder {empty / 'cat'} has no images (.avif, ")
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
    assert str(error.value).startswith(
        "2 of 24 images cannot be read: cat/0.png (it is cut off or damaged soon after its beginning: copy it again); "
    )
    assert "dog/11.png (it is no picture of a format that is read (AVIF, BMP, " in str(error.value)
    info = write_prepared(open_source("folder", root), make(tmp_path / "out"), unreadable="drop")
    assert info.dropped == ("cat/0.png", "dog/11.png")
    assert sum(info.counts.values()) == 22
