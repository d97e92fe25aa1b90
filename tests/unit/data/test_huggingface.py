"""A Hugging Face data set on disk: columns by kind, splits by name, rows without a label left out."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Picture

from gkd_core.data.images import Unreadable
from gkd_core.data.load import load_data
from gkd_core.data.sources import open_source
from gkd_core.errors import GkdError


def rows(count: int, labels: list[Any] | None = None, **more: list[Any]) -> Any:
    from datasets import ClassLabel, Dataset, Features, Image, Value

    features = Features(
        {"img": Image(), "breed": ClassLabel(names=["dog", "none", "cat"])} | {n: Value("string") for n in more}
    )
    pictures = [Picture.new("L", (8, 8), n) for n in range(count)]
    labels = labels if labels is not None else [2 * (n % 2) for n in range(count)]
    return Dataset.from_dict({"img": pictures, "breed": labels} | more, features=features)


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import disable_progress_bars

    disable_progress_bars()


def test_a_data_set_without_splits(tmp_path: Path) -> None:
    rows(40, who=[str(n // 2) for n in range(40)]).save_to_disk(tmp_path / "set")
    source = open_source("huggingface", tmp_path / "set", 8, 1, group="who")
    assert (source.name, source.classes) == ("huggingface", ("dog", "cat"))
    train = source.splits["train"]
    assert train.labels.tolist() == [0, 1] * 20
    assert [int(train.read(n)[0, 0, 0]) for n in range(40)] == list(range(40))
    assert train.groups == tuple(str(n // 2) for n in range(40))
    assert train.names[7] == "train[7]"
    data = load_data(tmp_path / "set", image_size=8, channels=1, group="who")
    of_split = [set((data.split(name).images[:, 0, 0, 0] // 2).tolist()) for name in ("train", "validation", "test")]
    assert sum(map(len, of_split)) == len(set.union(*of_split)) == 20


def test_a_dict_of_splits_and_rows_without_a_label(tmp_path: Path) -> None:
    from datasets import DatasetDict

    splits = {"train": rows(6, [0, 2, None, 0, -1, 2]), "validation": rows(2), "test": rows(3, [-1, -1, -1])}
    DatasetDict(splits).save_to_disk(tmp_path / "set")
    source = open_source("huggingface", tmp_path / "set", 8, 3)
    assert {name: split.labels.tolist() for name, split in source.splits.items()} == {
        "train": [0, 1, 0, 1],
        "validation": [0, 1],
    }
    assert [int(source.splits["train"].read(n)[0, 0, 2]) for n in range(4)] == [0, 1, 3, 5]
    assert [each.name for each in source.left_out] == ["train[2]", "train[4]"]


def test_text_labels_and_several_image_columns(tmp_path: Path) -> None:
    both = rows(4, label=["b", "a", "b", "a"]).add_column("mask", [None] * 4).remove_columns("breed")
    from datasets import Image

    both.cast_column("mask", Image()).save_to_disk(tmp_path / "set")
    with pytest.raises(
        GkdError, match=r"img \(Image\), label \(Value\), mask \(Image\): say which is the image by data\.columns"
    ):
        open_source("huggingface", tmp_path / "set")
    source = open_source("huggingface", tmp_path / "set", columns={"image": "img"})
    assert source.classes == ("a", "b")
    with pytest.raises(GkdError, match=r"data\.columns\.label"):
        open_source("huggingface", tmp_path / "set", columns={"image": "img", "label": "none"})
    with pytest.raises(GkdError, match=r"data\.group is who, but .* has the columns img, label, mask"):
        open_source("huggingface", tmp_path / "set", columns={"image": "img"}, group="who")
    with pytest.raises(Unreadable, match="holds no picture"):
        open_source("huggingface", tmp_path / "set", columns={"image": "mask"}).splits["train"].read(0)


def test_names_of_classes_are_those_of_a_folder(tmp_path: Path) -> None:
    rows(4, label=["café", "cafe\u0301", "Tea", "tea"]).remove_columns("breed").save_to_disk(tmp_path / "set")
    source = open_source("huggingface", tmp_path / "set")
    assert source.classes == ("Tea", "café", "tea")
    (warning,) = source.warnings
    assert "classes 'Tea', 'tea' of" in warning
    rows(4, label=["a", "b\nc", "a", "a"]).remove_columns("breed").save_to_disk(tmp_path / "odd")
    with pytest.raises(GkdError, match=r"the name of the class 'b\\nc' of .* has a line break"):
        open_source("huggingface", tmp_path / "odd")


def test_what_is_wrong_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import DatasetDict

    with pytest.raises(GkdError, match="is no folder that `save_to_disk`"):
        open_source("huggingface", tmp_path)
    DatasetDict({"train": rows(4), "extra": rows(4)}).save_to_disk(tmp_path / "odd")
    with pytest.raises(GkdError, match="the split 'extra', which is none of train"):
        open_source("huggingface", tmp_path / "odd")
    DatasetDict({"test": rows(4)}).save_to_disk(tmp_path / "alone")
    with pytest.raises(GkdError, match="no split to train on"):
        open_source("huggingface", tmp_path / "alone")
    rows(4).save_to_disk(tmp_path / "damaged")
    next((tmp_path / "damaged").glob("*.arrow")).write_bytes(b"nothing")
    with pytest.raises(GkdError, match="cannot be read"):
        open_source("huggingface", tmp_path / "damaged")
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(GkdError, match=r"needs the package datasets: pip install 'gkd\[datasets\]'"):
        open_source("huggingface", tmp_path / "odd")


def test_a_picture_outside_the_data_set_is_not_followed(tmp_path: Path) -> None:
    from datasets import Dataset, Features, Value

    Picture.new("L", (8, 8)).save(tmp_path / "private.png")
    table = {"image": [{"bytes": None, "path": str(tmp_path / "private.png")}] * 4, "label": ["a", "b"] * 2}
    struct = {"bytes": Value("binary"), "path": Value("string")}
    Dataset.from_dict(table, features=Features({"image": struct, "label": Value("string")})).save_to_disk(
        tmp_path / "set"
    )
    # What datasets itself would not write: it takes the picture in.
    info = json.loads((tmp_path / "set/dataset_info.json").read_text())
    info["features"]["image"] = {"_type": "Image"}
    (tmp_path / "set/dataset_info.json").write_text(json.dumps(info))
    source = open_source("huggingface", tmp_path / "set", 8, 1)
    assert source.splits["train"].labels.tolist() == [0, 1, 0, 1]
    with pytest.raises(Unreadable, match="holds no picture"):
        source.splits["train"].read(0)
