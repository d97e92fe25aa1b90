"""The prepare step: one folder, whole or not at all, and a summary."""

import json
from pathlib import Path

import pytest
from PIL import Image

from components import prepare
from gkd_core.config import parse_params
from gkd_core.data.prepared import PreparedData
from gkd_core.errors import GkdError
from gkd_core.files import folder_digest


def test_the_default_data_need_nothing(tmp_path: Path) -> None:
    summary = prepare.run(out=tmp_path / "data", params=parse_params({}))
    info = PreparedData.open(tmp_path / "data").info
    assert json.loads(json.dumps(summary)) == {
        "source": "digits",
        "classes": list("0123456789"),
        "image_size": 8,
        "channels": 1,
        "counts": {"train": 1293, "validation": 144, "test": 360},
        "sha256": info.sha256,
        "dropped": [],
    }
    assert [p.name for p in tmp_path.iterdir()] == ["data"]
    again = prepare.run(out=tmp_path / "again", params=parse_params({}))
    assert again == summary
    assert folder_digest(tmp_path / "again") == folder_digest(tmp_path / "data")


def test_every_parameter_of_data_counts(tmp_path: Path) -> None:
    data = {"image_size": 16, "channels": 3, "validation_fraction": 0.2, "test_fraction": 0.3, "seed": 5}
    summary = prepare.run(out=tmp_path / "data", params=parse_params({"data": data}))
    assert (summary["image_size"], summary["channels"]) == (16, 3)
    assert summary["counts"] == {"train": 1005, "validation": 252, "test": 540}
    other = prepare.run(out=tmp_path / "other", params=parse_params({"data": {**data, "seed": 6}}))
    assert other["sha256"] != summary["sha256"]


def test_dropped_files_are_in_the_summary_and_a_refusal_leaves_the_old_folder(tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        (tmp_path / "set" / label).mkdir(parents=True)
        for i in range(12):
            Image.new("RGB", (9, 7), (i, i, i)).save(tmp_path / "set" / label / f"{i}.png")
    (tmp_path / "set" / "cat" / "3.png").write_bytes(b"")
    data = {"source": "folder", "root": str(tmp_path / "set"), "image_size": 8}
    summary = prepare.run(out=tmp_path / "data", params=parse_params({"data": {**data, "unreadable": "drop"}}))
    assert summary["dropped"] == ["cat/3.png"]
    before = folder_digest(tmp_path / "data")
    with pytest.raises(GkdError, match=r"1 of 24 images cannot be read: cat/3\.png"):
        prepare.run(out=tmp_path / "data", params=parse_params({"data": data}))
    assert folder_digest(tmp_path / "data") == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "set"]
