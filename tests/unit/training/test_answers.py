"""Rows are whole or not there, whoever writes and is killed; files are of one teacher and keep to the room said."""

import errno
import fcntl
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from gkd_core.errors import GkdError
from gkd_core.training.answers import HEADER_BYTES, open_answers, size_bytes

FACTS = {"teacher": "one", "data": "digits"}
ROWS, WIDTH = 200, 5
RECORD = 4 * WIDTH + 8


def opened(folder, facts=FACTS, *, rows=ROWS, limit=10**9):
    return open_answers(folder, facts, rows=rows, width=WIDTH, limit_bytes=limit)


def answers_of(rows):
    """What every writer knows about these rows; of row 0 zeros, as of a row that is not there."""
    return np.outer(rows, np.arange(1, WIDTH + 1)).astype(np.float32)


def files(folder):
    return sorted(path.name for path in folder.glob("*.answers"))


def test_what_was_written_is_read_and_nothing_else_is(tmp_path):
    file, written = opened(tmp_path), np.array([7, 0, 199])
    file.write(written, answers_of(written))
    for reader in (file, opened(tmp_path)):
        found, answers = reader.read(np.arange(ROWS))
        assert np.flatnonzero(found).tolist() == [0, 7, 199]
        assert np.array_equal(answers[found], answers_of(np.array([0, 7, 199])))


def test_every_bit_comes_back(tmp_path):
    file = opened(tmp_path)
    strange = np.array([[-0.0, np.inf, 1e-45, np.nan, np.finfo(np.float32).max]], np.float32)
    file.write(np.array([3]), strange)
    found, answers = file.read(np.array([3]))
    assert found.all()
    assert answers.tobytes() == strange.tobytes()


@pytest.mark.parametrize("written", range(1, RECORD))
def test_a_row_of_which_a_part_is_written_is_not_there(tmp_path, written):
    file, row = opened(tmp_path), np.array([11])
    file.write(row, answers_of(row))
    (path,) = tmp_path.glob("*.answers")
    content, start = bytearray(path.read_bytes()), HEADER_BYTES + 11 * RECORD
    whole = bytes(content[start : start + RECORD])
    part = whole[:written].ljust(RECORD, b"\0")
    with path.open("r+b") as stream:
        stream.seek(start)
        stream.write(part)
    found, _ = file.read(row)
    assert found.all() == (part == whole)  # what is missing may be zeros


def test_what_the_disk_does_not_give_is_not_there(tmp_path, monkeypatch):
    rows = np.arange(1, 9)
    file = opened(tmp_path)
    file.write(rows, answers_of(rows))
    (path,) = tmp_path.glob("*.answers")
    os.truncate(path, HEADER_BYTES + 5 * RECORD + 2)  # a memory map would end this process here
    assert file.read(rows)[0].tolist() == [True] * 4 + [False] * 4
    file.write(rows, answers_of(rows))
    assert file.read(rows)[0].all()

    def broken(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pread", broken)
    assert not file.read(rows)[0].any()


def test_files_of_another_teacher_or_other_data_are_not_read(tmp_path):
    rows = np.arange(1, 9)
    opened(tmp_path).write(rows, answers_of(rows))
    for name in FACTS:
        assert not opened(tmp_path, FACTS | {name: "another"}).read(rows)[0].any()
    assert len(files(tmp_path)) == 3
    assert not opened(tmp_path, rows=ROWS + 1).read(rows)[0].any()
    assert opened(tmp_path).read(rows)[0].all(), "a file of more rows takes no other's place"


@pytest.mark.parametrize("damage", ["short", "foreign"])
def test_a_file_that_is_not_what_its_name_says_is_replaced(tmp_path, damage):
    rows = np.arange(1, 9)
    opened(tmp_path).write(rows, answers_of(rows))
    (path,) = tmp_path.glob("*.answers")
    if damage == "short":
        os.truncate(path, HEADER_BYTES + 9 * RECORD)
    else:
        path.write_bytes(b"{}".ljust(size_bytes(ROWS, WIDTH)))
    file = opened(tmp_path)
    assert path.stat().st_size == size_bytes(ROWS, WIDTH)
    assert not file.read(np.arange(ROWS))[0].any()


class TestRoom:
    size = size_bytes(ROWS, WIDTH)

    def test_a_file_above_the_limit_is_refused_with_both_sizes(self, tmp_path):
        with pytest.raises(GkdError, match=r"1\.0 GB.*teacher_cache_gb is 0\.5"):
            open_answers(tmp_path, FACTS, rows=25_000_000, width=8, limit_bytes=500_000_000)
        assert files(tmp_path) == []

    def test_what_is_longest_unused_makes_way(self, tmp_path):
        names = []
        for age, teacher in enumerate("abc"):
            opened(tmp_path, {"teacher": teacher})
            names += set(files(tmp_path)) - set(names)
            os.utime(tmp_path / names[-1], (age, age))
        opened(tmp_path, {"teacher": "a"})  # used again
        opened(tmp_path, {"teacher": "d"}, limit=3 * self.size)
        assert len(files(tmp_path)) == 3
        assert {names[0], names[2]} < set(files(tmp_path))

    def test_one_that_is_open_stays(self, tmp_path):
        held = opened(tmp_path)
        with pytest.raises(GkdError, match="in use"):
            opened(tmp_path, {"teacher": "another"}, limit=self.size)
        assert held.read(np.arange(3))[0].tolist() == [False] * 3
        del held
        opened(tmp_path, {"teacher": "another"}, limit=self.size)
        assert len(files(tmp_path)) == 1

    def test_a_full_disk_is_found_before_a_file_is_made(self, tmp_path):
        with pytest.raises(GkdError, match=r"disk of .* left"):
            open_answers(tmp_path, FACTS, rows=10**14, width=WIDTH, limit_bytes=10**17)
        assert files(tmp_path) == []


WRITER = """
import os, signal, sys
from pathlib import Path
import numpy as np
from tests.unit.training.test_answers import ROWS, answers_of, opened

folder, killed_at = Path(sys.argv[1]), int(sys.argv[2])
file, real, count = opened(folder), os.pwrite, 0

def pwrite(descriptor, content, offset):
    global count
    count += 1
    if count == killed_at:
        real(descriptor, content[: len(content) // 2], offset)
        os.kill(os.getpid(), signal.SIGKILL)
    return real(descriptor, content, offset)

os.pwrite = pwrite
print("open", flush=True)
sys.stdin.readline()
for row in np.random.default_rng(killed_at).permutation(ROWS):
    file.write(np.array([row]), answers_of(np.array([row])))
"""


def test_two_processes_write_at_once_and_one_is_killed_half_way_through_a_row(tmp_path):
    place = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), str(moment)], **place) for moment in (120, 10**6)
    ]
    try:
        for writer in writers:  # both have the file before either writes
            assert writer.stdout.readline() == "open\n"
        for writer in writers:
            writer.stdin.write("go\n")
            writer.stdin.flush()
        assert writers[0].wait() == -signal.SIGKILL
        found, answers = opened(tmp_path).read(np.arange(ROWS))  # the other may still be at work
        assert found.sum() >= 119
        assert np.array_equal(answers[found], answers_of(np.flatnonzero(found)))
        assert writers[1].wait() == 0
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()
    assert len(files(tmp_path)) == 1
    found, answers = opened(tmp_path).read(np.arange(ROWS))
    assert found.all()
    assert np.array_equal(answers, answers_of(np.arange(ROWS)))


def test_a_writer_that_was_killed_leaves_neither_a_row_nor_a_lock(tmp_path):
    place = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), "3"], **place) as writer:
        writer.communicate("go\n")
    assert writer.returncode == -signal.SIGKILL
    (path,) = tmp_path.glob("*.answers")
    found, answers = opened(tmp_path).read(np.arange(ROWS))
    assert found.sum() == 2
    assert np.array_equal(answers[found], answers_of(np.flatnonzero(found)))
    with path.open("rb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
