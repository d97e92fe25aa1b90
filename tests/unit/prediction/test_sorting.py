"""By class into a new folder; what is read stays as it is, and what is there stays too."""

import os
import shutil
from pathlib import Path

import pytest

from gkd_core.errors import GkdError
from gkd_core.prediction.sorting import Sorted, folder_names

CLASSES = ("cat", "dog", "unsure")


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Four of one name, but for its case."""
    root = tmp_path / "photos"
    places = [root / name for name in ("a/1.jpg", "b/1.jpg", "c/1.JPG", "d/1.jpg", "e/2.jpg")]
    for place in places:
        place.parent.mkdir(parents=True)
        place.write_text(str(place))
    return places


NAMES = ["cat", "cat", "cat", "dog", None]
SORTED = {
    "cat/1.jpg": 0,
    "cat/1 (2).jpg": 1,
    "cat/1 (3).JPG": 2,
    "dog/1.jpg": 3,
    "unsure (2)/2.jpg": 4,
}


def sort(files: list[Path], out: Path, copy: bool, until: int | None = None) -> Sorted:
    into = Sorted(out, CLASSES, key="k", sources=[files[0].parents[1]], copy=copy)
    into.begin()
    for file, name in list(zip(files, NAMES, strict=True))[:until]:
        into.add(file, name)
    return into


@pytest.mark.parametrize("copy", [False, True])
def test_a_stop_anywhere_ends_with_the_same_folder(files, tmp_path, copy):
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in files}
    for until in (0, 1, 4, 5):
        sort(files, tmp_path / "sorted", copy, until=until)
        assert not (tmp_path / "sorted").exists()
    for again in (False, True):  # stopped between the folder's appearance and the end, too
        into = sort(files, tmp_path / "sorted", copy)
        into.finish()
        if again:
            into.remove_mark()
    found = {str(p.relative_to(tmp_path / "sorted")): p for p in (tmp_path / "sorted").rglob("*") if not p.is_dir()}
    assert {name: path.read_text() for name, path in found.items()} == {n: str(files[i]) for n, i in SORTED.items()}
    assert all(path.is_symlink() is not copy for path in found.values())
    assert {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in files} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "sorted"]
    shutil.rmtree(tmp_path / "sorted")
    assert all(file.exists() for file in files)


def test_what_other_work_left_is_not_mixed_in(files, tmp_path):
    sort(files, tmp_path / "sorted", True)
    other = Sorted(tmp_path / "sorted", CLASSES, key="other", sources=[], copy=True)
    other.begin()
    other.add(files[4], "dog")
    other.finish()
    assert [path.name for path in (tmp_path / "sorted").rglob("*.jpg")] == ["2.jpg"]


def test_a_folder_that_holds_something_or_is_read_is_refused(files, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "kept.txt").write_text("kept")
    root = tmp_path / "photos"
    for place, said in (
        (tmp_path / "full", "holds kept.txt"),
        (root / "sorted", "lies inside"),
        (root, "would replace what is read"),
        (tmp_path, "would replace what is read"),
        (files[0], "is a file"),
    ):
        with pytest.raises(GkdError) as error:
            Sorted(place, CLASSES, key="k", sources=[root])
        assert said in str(error.value)


def test_class_names_become_folders_that_stay_inside_and_apart():
    long = "ü" * 200
    names = folder_names(["..", ".", "../../etc", "a/b", "a\\b", "cat", "Cat", "", " ", "a:b*", long, long + "x", ".x"])
    assert len({name.casefold() for name in names}) == len(names)
    for name in names:
        assert not set(name) & set("/\\:*\0")
        assert not name.startswith(".")
        assert 0 < len(os.fsencode(name)) <= 255
    assert names[5:7] == ["cat", "Cat (2)"]
