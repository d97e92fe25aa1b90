"""A list of images: what spreadsheets and programs write is read, and every row that is wrong is named."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gkd_core.data.load import load_data
from gkd_core.data.sources import open_source
from gkd_core.data.sources.base import Source
from gkd_core.errors import GkdError


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """pictures/0.png … 19.png, grey 0, 10, …, 190."""
    folder = tmp_path_factory.mktemp("listed")
    (folder / "pictures").mkdir()
    for number in range(20):
        Image.new("L", (8, 8), number * 10).save(folder / "pictures" / f"{number}.png")
    return folder


def opened(images: Path, text: str | bytes, **more: object) -> Source:
    file = images / "list.csv"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return open_source("list", file, 8, 1, **more)  # type: ignore[arg-type]


def rows(mark: str = ",") -> str:
    return "".join(f"pictures/{n}.png{mark}{'cat' if n % 2 else 'dog'}\n" for n in range(20))


@pytest.mark.parametrize(
    "text",
    [
        "path,label\n" + rows(),
        "\ufeffPath;Label\r\n" + rows(";").replace("\n", "\r\n"),
        "\n filename \tclass\n\n" + rows("\t"),
        "File Name|category|note\n" + rows("|").replace("\n", '|"a, b"\n'),
        '"label","path"\n' + "".join(f'"{"cat" if n % 2 else "dog"}"," pictures\\{n}.png "\n' for n in range(20)),
    ],
    ids=["plain", "Excel's", "tabs and empty lines", "bars and another column", "quotes and Windows' paths"],
)
def test_a_list_as_it_is_written(images: Path, text: str) -> None:
    source = opened(images, text)
    assert source.name == "list"
    assert source.classes == ("cat", "dog")
    train = source.splits["train"]
    assert train.labels.tolist() == [1, 0] * 10
    assert [int(train.read(n)[0, 0, 0]) for n in range(20)] == [n * 10 for n in range(20)]
    assert train.groups == ()
    assert Image.open(train.open(3)).size == (8, 8)  # type: ignore[misc]


def test_splits_groups_and_columns_by_name(images: Path) -> None:
    text = "file,breed,who,path\n" + "".join(f"pictures/{n}.png,{n % 10 % 3},p{n // 2},elsewhere\n" for n in range(20))
    source = opened(images, text, columns={"image": "file", "label": "Breed"}, group="who")
    assert source.splits["train"].groups == tuple(f"p{n // 2}" for n in range(20))
    text = "path,label,subset\n" + "".join(
        f"{images}/pictures/{n}.png,{10 - n % 2},{('Training', 'val', 'TEST')[n // 2 % 3]}\n" for n in range(20)
    )
    source = opened(images, text)
    assert source.classes == ("9", "10")
    assert {name: len(split.labels) for name, split in source.splits.items()} == {
        "train": 8,
        "validation": 6,
        "test": 6,
    }


def test_one_class_however_its_name_is_written(images: Path) -> None:
    text = "path,label\npictures/0.png,café\npictures/1.png,cafe\u0301\npictures/2.png, tea \n"
    assert opened(images, text).classes == ("café", "tea")
    (warning,) = opened(images, "path,label\npictures/0.png,Cat\npictures/1.png,cat\npictures/2.png,tea\n").warnings
    assert "classes 'Cat', 'cat' of" in warning


def test_every_wrong_row_is_named_with_its_line(images: Path) -> None:
    text = (
        "path,label,split\npictures/0.png,cat,train\npictures/none.png,cat,train\n\npictures/1.png,,train\n"
        'pictures/2.png,"a dog\nof two lines",fold 3\npictures/0.png,dog,train\n'
    )
    with pytest.raises(GkdError) as error:
        opened(images, text)
    sentence = str(error.value)
    assert "4 of 5 rows" in sentence
    assert "line 3 names pictures/none.png, which is not there" in sentence
    assert "line 5 has no label" in sentence
    assert "line 7 has the split 'fold 3'" in sentence
    assert str(images / "list.csv") in sentence
    with pytest.raises(GkdError, match=r"line 3 names pictures/0\.png again, as line 2"):
        opened(images, "path,label\npictures/0.png,a\npictures/0.png,b\n")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"path,label\npictures/0.png,caf\xe9\n", "line 2 of .* is not UTF-8"),
        ("image_id,label\n1,cat\n", r"the columns image_id, label, and none of path, .*data\.columns\.image"),
        ("path\npictures/0.png\n", r"none of label, .*data\.columns\.label"),
        ("", "is empty: give it a first line of names, path and label, and a row for each image"),
        ("path,label\npictures/0.png,a,b\n", "line 2 of .* has 3 values and its header has 2 columns"),
        ('path,label\npictures/0.png,"a\n', "line 2 of .* cannot be read"),
        ("path,label\n", "is empty: give it a row for each image, below its first line"),
        ("path,label,split\npictures/0.png,a,test\n", "no row to train on"),
        (
            "path,label,split\npictures/0.png,a,train\npictures/1.png,b,test\n",
            r"class 'b' is in the test split .*line 3",
        ),
        ('path,label\npictures/0.png,"a\nb"\n', r"line 3 has the label 'a\\nb', which has a line break or a control"),
        ("path,label\npictures/\0.png,a\n", "line 2 names pictures/\N{REPLACEMENT CHARACTER}.png, which is no path"),
        (f"path,label\n{'x' * 5000}.png,a\n", "line 2 names x{120}…, which is not there"),
        ("path,label\npictures,a\n", "line 2 names pictures, which is not there"),
        ("path,label\nfile:///etc/passwd,a\n", "line 2 names file:///etc/passwd: write a path"),
    ],
)
def test_what_is_wrong_with_a_list_is_one_sentence(images: Path, text: str | bytes, words: str) -> None:
    with pytest.raises(GkdError, match=words):
        opened(images, text)


def test_columns_that_are_not_there_are_refused(images: Path) -> None:
    with pytest.raises(GkdError, match=r"data\.columns\.label is breed, but .* has the columns path, label"):
        opened(images, "path,label\npictures/0.png,a\n", columns={"label": "breed"})
    with pytest.raises(GkdError, match=r"data\.group is who, but"):
        opened(images, "path,label\npictures/0.png,a\n", group="who")


def test_a_folder_with_one_list_in_it(images: Path, tmp_path: Path) -> None:
    with pytest.raises(GkdError, match="has no list"):
        open_source("list", tmp_path)
    (tmp_path / "a.csv").write_text("path,label\n" + rows().replace("pictures/", f"{images}/pictures/"))
    assert len(open_source("list", tmp_path).splits["train"].labels) == 20
    (tmp_path / "b.tsv").write_text("")
    with pytest.raises(GkdError, match=r"has a\.csv and b\.tsv: name the one"):
        open_source("list", tmp_path)
    with pytest.raises(GkdError, match=r"data\.root .*none\.csv is not there"):
        open_source("list", tmp_path / "none.csv")


def test_a_parquet_list(images: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    table = {
        "path": [f"pictures/{n}.png" for n in range(20)],
        "label": [n % 2 for n in range(20)],
        "group": [None] * 20,
    }
    parquet.write_table(pyarrow.table(table), images / "list.parquet")
    source = open_source("list", images / "list.parquet", 8, 1)
    assert source.classes == ("0", "1")
    assert source.splits["train"].labels.tolist() == [0, 1] * 10
    parquet.write_table(pyarrow.table(table | {"path": [b"\x89PNG"] * 20}), images / "list.parquet")
    with pytest.raises(GkdError, match="holds pictures or lists"):
        open_source("list", images / "list.parquet")
    no_text = pyarrow.array([b"\x80.png"] * 20, pyarrow.binary()).view(pyarrow.string())
    parquet.write_table(pyarrow.table(table | {"path": no_text}), images / "list.parquet")
    with pytest.raises(GkdError, match=r"list\.parquet cannot be read as Parquet .*0x80"):
        open_source("list", images / "list.parquet")
    (images / "list.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(GkdError, match="cannot be read as Parquet"):
        open_source("list", images / "list.parquet")
    (images / "list.parquet").unlink()


def test_parquet_without_pyarrow_says_what_to_install(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (images / "x.parquet").write_bytes(b"")
    with pytest.raises(GkdError, match="needs the package pyarrow: pip install pyarrow"):
        open_source("list", images / "x.parquet")
    (images / "x.parquet").unlink()


def test_a_list_in_a_notebook_with_groups_kept_together(images: Path) -> None:
    text = "path,label,group\n" + "".join(f"pictures/{n}.png,{n % 2},{n // 4}\n" for n in range(20))
    (images / "mine.csv").write_text(text)
    data = load_data(images / "mine.csv", image_size=8, channels=1, validation_fraction=0.2, test_fraction=0.2)
    of_split = {
        name: {int(grey) // 40 for grey in np.unique(data.split(name).images)}
        for name in ("train", "validation", "test")
    }
    assert sorted(group for groups in of_split.values() for group in groups) == [0, 1, 2, 3, 4]
    with pytest.raises(GkdError, match="group is who, but source"):
        load_data(images / "mine.csv", group="who")
