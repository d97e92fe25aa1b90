"""Folders and files appear whole or not at all; digests follow content."""

import errno
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gkd_core.errors import GkdError, unknown
from gkd_core.files import (
    file_digest,
    folder_digest,
    json_digest,
    read_json,
    refuse_to_replace,
    whole_folder,
    write_bytes,
    write_json,
)


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_a_folder_appears_when_it_is_complete(tmp_path):
    with whole_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("1")
        assert not (tmp_path / "out").exists()
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "a").read_text() == "1"


def test_a_failure_leaves_the_old_folder_and_nothing_else(tmp_path):
    with whole_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("old")
        write_json(folder / "training.json", {"role": "student", "trained": True})

    def fail():
        with whole_folder(tmp_path / "out") as folder:
            (folder / "a").write_text("new")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "a").read_text() == "old"


def test_a_new_folder_replaces_the_old_one_wholly(tmp_path):
    for name in ("a", "b"):
        with whole_folder(tmp_path / "out") as folder:
            (folder / name).write_text("x")
            write_json(folder / "training.json", {"role": "student", "trained": True})
        (tmp_path / "out" / ".gitignore").write_text("/a")  # DVC's
    assert names(tmp_path / "out") == [".gitignore", "b", "training.json"]


def test_nothing_but_an_earlier_result_is_replaced(tmp_path, monkeypatch):
    photos, file, link, work = (tmp_path / name for name in ("photos", "file", "link", "work"))
    (photos / "cat").mkdir(parents=True)
    file.write_text("x")
    link.symlink_to(photos)
    teacher = tmp_path / "teacher"
    teacher.mkdir()
    write_json(teacher / "teacher.json", {"networks": ["x"], "classes": []})
    monkeypatch.chdir(photos)
    cases = [
        (photos / "cat", [photos / "cat" / "1.jpg"], "would replace what is read from"),
        (photos / "new", [tmp_path / "photos"], "lies inside"),
        (photos, [], "is the current folder or one above it"),
        (tmp_path, [], "is the current folder or one above it"),
        (Path(), [], "is the current folder or one above it"),
        (file, [], "is a file"),
        (link, [], "is a link"),
        (teacher, [teacher], "would replace what is read from"),
        (teacher / "below" / "deeper", [], "lies inside .*, which holds a teacher"),
        (tmp_path / "runs", [tmp_path / "runs" / "work"], "would replace"),
    ]
    for out, inputs, part in cases:
        with pytest.raises(GkdError, match=part), whole_folder(out, inputs):
            pytest.fail("the block ran")
    refuse_to_replace(work / "out", [], work)  # `gkd compare` keeps finished trainings there
    with pytest.raises(GkdError, match="would replace"):
        refuse_to_replace(work, [], work / "deeper")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(GkdError, match=r"holds cat and is no finished folder that gkd wrote"):
        refuse_to_replace(photos)
    assert names(tmp_path) == ["file", "link", "photos", "teacher"]


def test_a_place_where_no_folder_can_be_is_named_and_not_our_temporary_one():
    with pytest.raises(GkdError, match=r"^--out /proc/x cannot be made") as error, whole_folder(Path("/proc/x")):
        pytest.fail("the block ran")
    assert "building" not in str(error.value)


@pytest.mark.parametrize("name", ["dataset.json", "manifest.json"])
def test_a_file_named_as_ours_does_not_make_a_folder_ours(name, tmp_path):
    web = tmp_path / "web"
    (web / "src").mkdir(parents=True)
    for file in ("index.html", "src/app.js", name):
        (web / file).write_text("{}")
    with pytest.raises(GkdError, match=f"--out {web} holds .* and is no finished folder"), whole_folder(web):
        pytest.fail("the block ran")
    assert (web / "src" / "app.js").exists()


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_leftovers_of_killed_processes_are_swept_and_those_of_live_ones_left(tmp_path):
    dead = tmp_path / f".out.{dead_pid()}.building"
    dead.mkdir()
    alive = tmp_path / ".out.1.building"
    alive.mkdir()
    with whole_folder(tmp_path / "out"):
        pass
    assert names(tmp_path) == [".out.1.building", "out"]


def test_a_folder_whose_replacement_was_killed_midway_comes_back(tmp_path):
    replaced = tmp_path / f".out.{dead_pid()}.replaced"
    replaced.mkdir()
    (replaced / "a").write_text("old")
    with pytest.raises(RuntimeError), whole_folder(tmp_path / "out"):
        raise RuntimeError
    assert (tmp_path / "out" / "a").read_text() == "old"


def test_json_is_sorted_ends_in_a_newline_and_refuses_nan(tmp_path):
    write_json(tmp_path / "x.json", {"b": 1, "a": "ä"})
    assert (tmp_path / "x.json").read_text() == '{\n  "a": "ä",\n  "b": 1\n}\n'
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    assert json.loads((tmp_path / "x.json").read_text())["b"] == 1
    assert names(tmp_path) == ["x.json"]


def test_a_folder_that_finds_no_room_is_named_and_vanishes(tmp_path):
    for place in ((), (str(tmp_path / "read"), None, str(tmp_path / "written"))):  # a write, a copy
        with pytest.raises(OSError, match=r"No space left on device: '[^']*/out'$"), whole_folder(tmp_path / "out"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), *place)
    assert names(tmp_path) == []


def test_missing_and_broken_json_are_named(tmp_path):
    file = tmp_path / "teacher.json"
    with pytest.raises(GkdError, match=r"has no teacher.json: run `gkd teacher`, which writes it"):
        read_json(file, "the teacher folder")
    with pytest.raises(GkdError, match=r"has no training.json: run `gkd distill --reference kd`, which writes it"):
        read_json(tmp_path / "training.json", "the kd folder")
    with pytest.raises(GkdError, match=r"has no model.json: run the step that makes it"):
        read_json(tmp_path / "model.json", "the network folder")
    for text, part in (("{", "is not readable JSON"), ("[1]", "holds no JSON object"), ("{}", "lacks 'networks'")):
        file.write_text(text)
        with pytest.raises(GkdError, match=part):
            read_json(file, "the teacher folder", keys=["networks"])


def test_a_file_that_cannot_be_written_leaves_nothing_behind_and_names_itself(tmp_path):
    (tmp_path / "folder").mkdir()
    for place in (tmp_path / "folder", tmp_path / "nowhere" / "f"):
        with pytest.raises(OSError) as error:  # noqa: PT011  # of which kind is the system's affair
            write_bytes(place, b"abc")
        assert (error.value.filename, error.value.filename2) == (str(place), None)
    assert [file.name for file in tmp_path.iterdir()] == ["folder"]


def test_digests(tmp_path):
    write_bytes(tmp_path / "f", b"abc")
    assert file_digest(tmp_path / "f") == hashlib.sha256(b"abc").hexdigest()
    assert json_digest({"a": 1, "b": [2]}) == json_digest({"b": [2], "a": 1})
    before = folder_digest(tmp_path)
    write_json(tmp_path / "run.json", {"time": 1})  # varies by run: not digested
    assert folder_digest(tmp_path) == before
    write_bytes(tmp_path / "g", b"")
    assert folder_digest(tmp_path) != before
    with pytest.raises(GkdError, match="does not exist"):
        folder_digest(tmp_path / "none")


def test_an_unknown_name_suggests_the_nearest():
    assert unknown("distill.method", "gomperz", ["ce", "kd", "gompertz"]) == (
        "distill.method 'gomperz' is unknown; did you mean 'gompertz'? Known: ce, kd, gompertz"
    )
    assert "did you mean" not in unknown("x", "zzz", ["ce"])


def test_json_is_what_it_is_asked_to_be(tmp_path):
    file = tmp_path / "x.json"
    shape = {"model": {"size_bytes": int}, "classes": [str], "top1": float, "passed": bool, "files": {str: str}}
    good = {"model": {"size_bytes": 3, "more": None}, "classes": ["a"], "top1": 1, "passed": True, "files": {"a": "b"}}
    write_json(file, good)
    assert read_json(file, "it", shape=shape) == good
    for change, part in [
        ({"model": []}, "has a wrong 'model' "),
        ({"model": {"file": "x"}}, "lacks 'model.size_bytes', so it is not what gkd wrote"),
        ({"model": {"size_bytes": True}}, "a wrong 'model.size_bytes' .*integer"),
        ({"model": {"size_bytes": "3"}}, "a wrong 'model.size_bytes' .*integer"),
        ({"classes": "abc"}, "a wrong 'classes' .*list"),
        ({"classes": ["a", 2]}, "a wrong 'classes.1' .*string"),
        ({"files": {"a": 2}}, "a wrong 'files.a' .*string"),
        ({"top1": True}, "a wrong 'top1' .*number"),
        ({"top1": 10**400}, "a wrong 'top1' .*number"),
        ({"passed": 1}, "a wrong 'passed' .*boolean"),
    ]:
        write_json(file, good | change)
        with pytest.raises(GkdError, match=part):
            read_json(file, "it", shape=shape)
    file.write_text('{"top1": -1e999}')
    with pytest.raises(GkdError, match=r"a wrong 'top1' .*finite"):
        read_json(file, "it", shape={"top1": float})


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, '{"a": NaN}', '{"a": "\\ud800"}', '{"a": 1' + "0" * 5000 + "}"]
)
def test_json_that_would_hurt_later_is_refused_at_once(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(GkdError, match="is not readable JSON"):
        read_json(tmp_path / "x.json", "it")


def test_a_file_too_large_to_be_ours_is_not_read(tmp_path):
    with (tmp_path / "x.json").open("wb") as stream:
        stream.truncate(1 << 30)
    with pytest.raises(GkdError, match="far more than gkd writes"):
        read_json(tmp_path / "x.json", "it")


def test_a_finished_folder_of_another_kind_is_not_replaced(tmp_path):
    out, present = tmp_path / "student", "kd"
    with whole_folder(out, kind=present) as folder:
        write_json(folder / "training.json", {"role": present, "trained": True})
    before = folder_digest(out)
    for kind in {"data", "teacher", "network", "student", "kd", "baseline", "bundle"} - {present}:
        with pytest.raises(GkdError, match=r"--out .* would replace: name another"), whole_folder(out, kind=kind):
            pytest.fail("the block ran")
        assert folder_digest(out) == before
    with whole_folder(out, kind=present) as folder:  # its own kind, and whoever names none, may
        write_json(folder / "training.json", {"role": present, "trained": False})
    refuse_to_replace(out)
