"""What is wrong with a folder of images is found, and each finding names its files."""

import csv
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gkd_core.data.health import examine, look_at, removals, summary, write_fix_list
from gkd_core.data.health_page import render
from gkd_core.data.prepare import write_prepared
from gkd_core.data.prepared import PreparedData
from gkd_core.data.sources import open_source
from gkd_core.data.splits import choose_splits
from gkd_core.errors import GkdError


def scene(seed: int, size: tuple[int, int] = (120, 90)) -> Image.Image:
    colours = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize(size, Image.Resampling.BICUBIC)


def place(root: Path, name: str, image: Image.Image, **options) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    image.save(root / name, **options)


@pytest.fixture(scope="module")
def healthy(tmp_path_factory) -> Path:
    """Ready splits of two classes, nothing wrong with them."""
    root = tmp_path_factory.mktemp("healthy")
    for start, split, count in ((0, "train", 20), (50, "test", 4)):
        for i in range(2 * count):
            place(root, f"{split}/{('cat', 'dog')[i % 2]}/{i:02}.png", scene(start + i))
    return root


@pytest.fixture
def sick(healthy, tmp_path) -> Path:
    """The same with one of each thing that may be wrong."""
    root = shutil.copytree(healthy, tmp_path / "sick")
    shutil.copy(root / "train/cat/00.png", root / "train/cat/copy.png")
    place(root, "train/dog/small copy.jpg", scene(1, (60, 45)), quality=60)
    shutil.copy(root / "train/cat/02.png", root / "test/cat/leaked.png")
    place(root, "test/dog/leaked too.jpg", scene(3, (240, 180)), quality=40)
    place(root, "train/dog/a cat.webp", scene(4))
    place(root, "train/cat/black.png", Image.new("L", (50, 50)))
    place(root, "train/cat/night.jpg", scene(100).point(lambda value: value // 8))
    place(root, "train/dog/tiny.png", scene(101, (20, 12)))
    (root / "train/dog/torn.png").write_bytes((root / "train/dog/05.png").read_bytes()[:200])
    for i in range(3):
        place(root, f"train/rare/{i}.png", scene(110 + i))
    return root


def found(root: Path, **options) -> dict[str, list[list[str]]]:
    source = open_source("folder", root)
    health = examine(source, look_at(source), **options)
    return {
        kind: [[look.name for look in each.looks] for each in of_kind] for kind, of_kind in health.by_kind().items()
    }


EXPECTED = {
    "unreadable": [["train/dog/torn.png"]],
    "leakage": [["train/cat/02.png", "test/cat/leaked.png"], ["train/dog/03.png", "test/dog/leaked too.jpg"]],
    "conflicting_labels": [["train/cat/04.png", "train/dog/a cat.webp"]],
    "exact_duplicates": [["train/cat/00.png", "train/cat/copy.png"]],
    "near_duplicates": [["train/dog/01.png", "train/dog/small copy.jpg"]],
    "blank": [["train/cat/black.png"]],
    "dark": [["train/cat/night.jpg"]],
    "small": [["train/dog/tiny.png"]],
    "few_images": [["train/rare/0.png", "train/rare/1.png", "train/rare/2.png"]],
}


def test_a_healthy_set_has_no_findings(healthy):
    assert found(healthy) == {}


def test_each_thing_that_is_wrong_is_found_once_and_names_its_files(sick):
    assert found(sick) == EXPECTED


def test_what_prepare_refuses_is_an_error_unless_allowed(sick):
    source = open_source("folder", sick)
    looks = look_at(source)
    assert {each.kind for each in examine(source, looks).errors} == {"unreadable", "leakage"}
    assert examine(source, looks, unreadable="drop", leakage="allow").errors == ()


def test_what_the_fix_list_names_is_enough_and_keeps_one_of_each_picture(sick, tmp_path):
    source = open_source("folder", sick)
    write_fix_list(tmp_path / "fix.csv", removals(examine(source, look_at(source))))
    rows = list(csv.DictReader((tmp_path / "fix.csv").open(newline="")))
    assert [row["path"] for row in rows] == [
        "train/cat/02.png",  # the test's copy stays: what is measured is measured on the same images
        "train/cat/04.png",  # in two classes: neither stays
        "train/cat/black.png",
        "train/cat/copy.png",
        "train/dog/03.png",
        "train/dog/a cat.webp",
        "train/dog/small copy.jpg",  # the one with more pixels stays
        "train/dog/torn.png",
    ]
    assert rows[0]["reason"] == "the same file in train and test; test/cat/leaked.png stays"
    for row in rows:
        (sick / row["path"]).unlink()
    assert set(found(sick)) == {"dark", "small", "few_images"}


def test_of_equal_files_the_plain_name_stays(healthy, tmp_path):
    root = shutil.copytree(healthy, tmp_path / "set")
    shutil.copy(root / "train/cat/02.png", root / "train/cat/02 (1).png")
    source = open_source("folder", root)
    assert list(removals(examine(source, look_at(source)))) == ["train/cat/02 (1).png"]


def test_prepare_refuses_a_picture_in_two_splits_and_says_the_way_out(healthy, tmp_path):
    root = shutil.copytree(healthy, tmp_path / "set")
    shutil.copy(root / "train/cat/02.png", root / "test/cat/leaked.png")
    with pytest.raises(GkdError, match=r"train/cat/02.png and test/cat/leaked.png .*--fix-list.*data.leakage") as error:
        write_prepared(open_source("folder", root), tmp_path)
    assert "\n" not in str(error.value)
    (tmp_path / "out").mkdir()
    info = write_prepared(open_source("folder", root), tmp_path / "out", leakage="allow")
    assert info.counts["test"] == 9


def test_splits_that_are_made_keep_copies_together(tmp_path):
    for i in range(40):
        place(tmp_path, f"set/{('cat', 'dog')[i % 2]}/{i:02}.png", scene(i))
        place(tmp_path, f"set/{('cat', 'dog')[i % 2]}/{i:02} again.jpg", scene(i, (80, 60)))
    (tmp_path / "out").mkdir()
    write_prepared(open_source("folder", tmp_path / "set", image_size=32), tmp_path / "out")
    data = PreparedData.open(tmp_path / "out")
    assert sum(data.info.counts.values()) == 80
    for split in (data.train, data.validation, data.test):
        pictures = np.asarray(split.images[:], dtype=np.float32).reshape(len(split), -1)
        distances = np.abs(pictures[:, None] - pictures[None]).mean(-1) + 1000 * np.eye(len(split))
        assert (distances.min(1) < 8).all()  # each has its copy beside it


def test_groups_and_copies_are_joined(tmp_path):
    for i in range(20):
        place(tmp_path, f"{('cat', 'dog')[i % 2]}/{i:02}.png", scene(i))
    source = open_source("folder", tmp_path)
    groups = ("a", "", "", "a", "b", *[""] * 15)
    train = replace(source.splits["train"], groups=groups)
    for seed in range(10):
        chosen = choose_splits(replace(source, splits={"train": train}), 0.2, 0.2, seed, together=[[3, 7], [7, 11]])
        holding = {name for name, (_, positions) in chosen.items() for i in (0, 3, 7, 11) if i in positions}
        assert len(holding) == 1


def test_a_published_set_is_looked_at_when_asked_and_prepared_as_it_is(tmp_path):
    source = open_source("digits")
    health = examine(source, look_at(source))
    assert health.errors == ()
    assert set(health.by_kind()) <= {"exact_duplicates", "near_duplicates", "conflicting_labels"}
    write_prepared(source, tmp_path)
    assert not (tmp_path / "health.json").exists()


def test_the_summary_and_the_page_tell_all_and_nothing_of_the_machine(sick, tmp_path):
    place(sick, "train/cat/<b>&.png", scene(4))
    source = open_source("folder", sick)
    health = examine(source, look_at(source))
    content = summary(health)
    assert content["classes"]["rare"] == {"train": 3}
    assert content["images"] == 61
    assert content["width"] == {"min": 20, "median": 120, "max": 240}
    assert content["formats"] == {"JPEG": 3, "PNG": 56, "WEBP": 1}
    page = render(health)
    assert len(page) < 1 << 20
    assert "&lt;b&gt;&amp;.png" in page
    assert "<b>&" not in page
    assert str(tmp_path) not in page + str(content)
    assert "http" not in page
    for names in EXPECTED.values():
        assert all(name in page for name in names[0])
    assert render(examine(source, look_at(source))) == page


def test_a_photo_on_its_side_has_its_upright_size(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for i in range(2):
        place(tmp_path, f"{i}/a.jpg", scene(i), exif=exif)
    assert {look.size for look in look_at(open_source("folder", tmp_path))} == {(90, 120)}


def test_a_source_whose_pictures_are_no_files_names_them_by_split_and_position():
    source = open_source("digits")
    examples = source.splits["train"]
    few = replace(examples, labels=examples.labels[:3])
    assert [look.name for look in look_at(replace(source, splits={"train": few}))] == ["train/0", "train/1", "train/2"]
