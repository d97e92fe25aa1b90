"""What is done is found again, wherever the writer was stopped."""

import json
import os
import subprocess
import sys

import pytest

from gkd_core.errors import GkdError
from gkd_core.prediction.journal import Journal

ROWS = [{"path": f"{n}.png", "class": "ü\n"} for n in range(7)]


def journal(folder, key: str = "k", total: int = 7) -> Journal:
    return Journal(folder / "out.csv", key, total=total, batch=3)


def test_cut_off_at_any_byte_it_goes_on_after_the_last_whole_batch(tmp_path):
    file = tmp_path / ".out.csv.progress"
    with journal(tmp_path) as writer:
        writer.add(ROWS)
        assert list(writer.rows()) == ROWS
    content = file.read_bytes()
    ends = [0]
    for line in content.splitlines(keepends=True):
        ends.append(ends[-1] + len(line))
    for cut in range(len(content) + 1):
        file.write_bytes(content[:cut])
        whole = max(sum(end <= cut for end in ends) - 2, 0)  # without the nothing, and the line of the work
        with journal(tmp_path) as reader:
            assert reader.done == (7 if whole == 7 else whole // 3 * 3), cut
            reader.add(ROWS[reader.done :])
            assert list(reader.rows()) == ROWS
        assert file.read_bytes() == content


def test_zeros_where_the_power_was_cut_are_no_rows(tmp_path):
    with journal(tmp_path) as writer:
        writer.add(ROWS[:6])
    file = tmp_path / ".out.csv.progress"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:5]) + bytes(len(lines[5])) + lines[6])
    with journal(tmp_path) as reader:
        assert reader.done == 3
        assert list(reader.rows()) == ROWS[:3]


def test_other_work_begins_anew_and_nothing_done_leaves_nothing(tmp_path):
    with journal(tmp_path) as writer:
        writer.add(ROWS[:3])
        assert not writer.discarded
    with journal(tmp_path, "another") as other:
        assert (other.done, other.discarded) == (0, True)
    assert list(tmp_path.iterdir()) == []


def test_a_second_process_is_told_and_changes_nothing(tmp_path):
    program = (
        "import sys; from pathlib import Path; from gkd_core.prediction.journal import Journal\n"
        "Journal(Path(sys.argv[1]), 'k', total=7, batch=3)"
    )
    with journal(tmp_path) as writer:
        writer.add(ROWS[:3])
        with pytest.raises(GkdError, match=r"another process is writing .*out\.csv"):
            journal(tmp_path, "another")
        command = [sys.executable, "-c", program, str(tmp_path / "out.csv")]
        assert "another process is writing" in subprocess.run(command, capture_output=True, text=True).stderr
        assert list(writer.rows()) == ROWS[:3]
    assert json.loads((tmp_path / ".out.csv.progress").read_text().splitlines()[0]) == {"work": "k"}
    assert os.listdir(tmp_path) == [".out.csv.progress"]  # noqa: PTH208
