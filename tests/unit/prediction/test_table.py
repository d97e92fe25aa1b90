"""One table in three forms."""

import builtins
import csv
import json

import pyarrow.parquet
import pytest

from gkd_core.errors import GkdError
from gkd_core.prediction.table import check_output, columns, flat, write_rows

FOUND = {"predictions": [{"class": 'a "cat", tabby', "probability": 0.7}, {"class": "", "probability": 0.25}]}
ROWS = [{"path": "a,b\n.png"} | flat(FOUND), {"path": "c.png", "error": "truncated"}]
EXPECTED = [
    {
        "path": "a,b\n.png",
        "class": 'a "cat", tabby',
        "probability": 0.7,
        "class_2": "",
        "probability_2": 0.25,
        "error": None,
    },
    {"path": "c.png", **dict.fromkeys(("class", "probability", "class_2", "probability_2")), "error": "truncated"},
]


@pytest.mark.parametrize("ending", ["csv", "parquet", "jsonl"])
def test_each_form_holds_the_same_rows(tmp_path, ending):
    out = tmp_path / f"out.{ending}"
    write_rows(out, iter(ROWS), columns(2))
    if ending == "csv":
        with out.open(newline="", encoding="utf-8") as stream:
            read = list(csv.DictReader(stream))
        assert read == [{k: "" if v is None else str(v) for k, v in row.items()} for row in EXPECTED]
    elif ending == "jsonl":
        assert [json.loads(line) for line in out.read_text().splitlines()] == EXPECTED
    else:
        table = pyarrow.parquet.read_table(out)
        assert table.to_pylist() == EXPECTED
        assert [str(kind) for kind in table.schema.types] == [
            "string",
            "string",
            "double",
            "string",
            "double",
            "string",
        ]
    assert [file.name for file in tmp_path.iterdir()] == [out.name]


@pytest.mark.parametrize("ending", ["csv", "parquet", "jsonl"])
def test_a_table_that_cannot_be_finished_leaves_the_one_before(tmp_path, ending):
    out = tmp_path / f"out.{ending}"
    out.write_text("before")

    def rows():
        yield ROWS[0]
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_rows(out, rows(), columns(2))
    assert out.read_text() == "before"
    assert [file.name for file in tmp_path.iterdir()] == [out.name]


def test_an_output_that_cannot_be_is_refused_before_anything_is_done(tmp_path, monkeypatch):
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "deploy").mkdir()
    (tmp_path / "deploy" / "manifest.json").write_text('{"gkd_version": "1", "student_digest": "x"}')
    listed = tmp_path / "list.csv"
    listed.write_text("path\n")
    for name, said in (
        ("out.xlsx", "none of .csv, .parquet, .jsonl"),
        ("folder.csv", "is a folder"),
        ("deploy/out.csv", "which gkd wrote"),
        ("list.csv", "would replace what is read"),
    ):
        with pytest.raises(GkdError) as error:
            check_output(tmp_path / name, [str(listed)])
        assert said in str(error.value)
    importing = builtins.__import__

    def without(name, *rest):
        if name.startswith("pyarrow"):
            raise ImportError("No module named 'pyarrow'")
        return importing(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    check_output(tmp_path / "out.csv")
    with pytest.raises(GkdError, match=r"pip install 'gkd\[tables\]'"):
        check_output(tmp_path / "out.parquet")
