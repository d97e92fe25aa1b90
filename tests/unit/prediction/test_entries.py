"""Places become entries in order: folders, lists, pictures and addresses, each with what is wrong with it."""

import os
from pathlib import Path

import pytest
from PIL import Image

from gkd_core.data.sources.walk import Walk
from gkd_core.errors import GkdError
from gkd_core.prediction.entries import Entries
from gkd_core.prediction.reading import Entry


def picture(file: Path, value: int = 0) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4), value).save(file, "PNG")
    return file


def found(*places: object) -> list[Entry]:
    return list(Entries([str(place) for place in places]).since(0))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Names that sort otherwise beside a slash than without one; what is no picture; a link back, a dead one."""
    root = tmp_path / "photos"
    for name in ("a/1.png", "a-b/1.png", "a.png", "a/b/2.jpg", "a b.png", "Z.png", "no ending", "a/thumbs/3.png"):
        picture(root / name)
    (root / "notes.txt").write_text("words")
    (root / ".hidden").mkdir()
    picture(root / ".hidden" / "4.png")
    (root / "a" / "round").symlink_to(root)
    (root / "gone.png").symlink_to(root / "nowhere.png")
    return root


def test_one_by_one_a_walk_finds_the_same_in_the_same_order(tree):
    whole, lazy = Walk(tree), Walk(tree)
    paths = list(lazy.each_picture(tree))
    assert paths == whole.pictures(tree)
    assert paths == sorted(paths, key=str)
    assert sorted(lazy.left_out, key=str) == sorted(whole.left_out, key=str)


def test_a_folder_is_its_pictures_sorted_and_a_link_to_nowhere(tree):
    entries = Entries([str(tree)])
    names = ["Z.png", "a b.png", "a-b/1.png", "a.png", "a/1.png", "a/b/2.jpg", "gone.png", "no ending"]
    assert [entry.name for entry in entries.since(0)] == [f"{tree}/{name}" for name in names]
    assert [entry.name for entry in entries.since(5)] == [f"{tree}/{name}" for name in names[5:]]
    assert (entries.count, entries.left_out) == (8, 4)  # words, hidden, thumbnail, link


def test_a_name_of_any_bytes_is_found_again(tmp_path):
    file = picture(Path(os.fsdecode(os.fsencode(tmp_path) + b"/photos/caf\xe9\n.png")))
    (entry,) = found(tmp_path / "photos")
    assert Path(entry.place) == file
    assert entry.name.endswith("caf�\n.png")


def test_a_list_has_an_entry_for_each_row_in_its_order(tmp_path):
    picture(tmp_path / "in" / "one.png")
    table = tmp_path / "list.csv"
    rows = ["in\\one.png", "in/one.png", "none.png", "", "s3://bucket/x.jpg", "file:///x.png", "in/one.png"]
    table.write_text("id;File Name\n" + "".join(f"{n};{row}\n" for n, row in enumerate(rows)))
    entries = found(table)
    assert [entry.name for entry in entries] == rows
    assert [entry.kind for entry in entries] == ["file", "file", "file", "fault", "address", "fault", "file"]
    assert [Path(entries[i].place) for i in (0, 1, 6)] == [tmp_path / "in" / "one.png"] * 3
    assert entries[3].place == "line 5 of the list names no file"
    assert entries[4].place == rows[4]
    assert "line 7 of the list names file:///x.png" in entries[5].place


def test_several_places_follow_each_other(tree, tmp_path):
    last = picture(tmp_path / "last.png")
    assert [entry.name for entry in found(tree / "a-b", last, tree / "a-b")] == [
        f"{tree}/a-b/1.png",
        str(last),
        f"{tree}/a-b/1.png",
    ]


def test_the_digest_is_of_names_and_of_what_lies_there(tree):
    def digest() -> str:
        return Entries([str(tree)]).digest

    before = digest()
    assert digest() == before
    os.utime(tree / "a.png", (1, 1))
    changed = digest()
    assert changed != before
    (tree / "a.png").rename(tree / "b.png")
    assert digest() not in (before, changed)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda place: None, "is not there"),
        (lambda place: place.mkdir(), r"has no pictures \(\.avif, .*\.webp\): name another place"),
        (lambda place: place.write_bytes(b"PK\x05\x06" + bytes(18)), "is an archive: unpack it"),
    ],
)
def test_a_place_without_pictures_is_refused_by_its_name(tmp_path, make, said):
    make(tmp_path / "place")
    with pytest.raises(GkdError, match=f"place {said}"):
        Entries([str(tmp_path / "place")])


def test_places_that_hold_nothing_are_each_told_what_they_lack(tmp_path):
    (tmp_path / "list.csv").write_text("path\n\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").write_text("words")
    with pytest.raises(GkdError) as error:
        Entries([str(tmp_path / "list.csv"), str(tmp_path / "folder")])
    one, other = str(error.value).split("; ")
    assert one == f"IMAGES: the list {tmp_path}/list.csv is empty (no row below its header)"
    assert other.startswith(f"{tmp_path}/folder has no pictures (.avif, ")
    assert other.endswith(") among 1 files: name another place")
    (tmp_path / "list.csv").write_text("\n")
    with pytest.raises(GkdError, match=r"list\.csv is empty: give it a first line of names, path, and a row"):
        Entries([str(tmp_path / "list.csv")])


def test_a_list_without_a_column_of_pictures_says_what_to_call_it(tmp_path):
    (tmp_path / "list.csv").write_text("id,where\n1,x.png\n")
    with pytest.raises(GkdError, match=r"columns id, where.*call one path"):
        Entries([str(tmp_path / "list.csv")])
