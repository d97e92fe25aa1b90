"""How much memory there is: files as the kernel writes them, for a container and for a machine, in both versions."""

from pathlib import Path

import pytest
import torch

from gkd_core.data import memory
from gkd_core.data.memory import fits, free_in_control_group

GI = 1 << 30


def write(folder: Path, *, files: int, **content: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in content.items():
        (folder / name.replace("__", ".")).write_text(f"{value}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {files}\ntotal_inactive_file {files}\n")


def free(tmp_path: Path, membership: str) -> int | None:
    (tmp_path / "membership").write_text(membership)
    return free_in_control_group(tmp_path / "membership", tmp_path / "cgroup")


def test_a_container_has_what_its_limit_leaves(tmp_path):
    write(tmp_path / "cgroup", files=GI, memory__max=8 * GI, memory__current=3 * GI)
    assert free(tmp_path, "0::/\n") == 6 * GI  # the gibibyte of files read before can be had back


def test_a_group_is_limited_by_those_above_it(tmp_path):
    top = tmp_path / "cgroup"
    write(top, files=0, memory__max="max", memory__current=30 * GI)
    write(top / "pods", files=0, memory__max=4 * GI, memory__current=3 * GI)
    write(top / "pods" / "mine", files=0, memory__max=2 * GI, memory__current=GI // 4)
    assert free(tmp_path, "0::/pods/mine\n") == GI
    write(top / "pods", files=0, memory__max="max", memory__current=3 * GI)
    assert free(tmp_path, "0::/pods/mine\n") == 2 * GI - GI // 4


def test_the_first_version_of_groups(tmp_path):
    group = tmp_path / "cgroup" / "memory" / "docker" / "abc"
    write(group, files=GI, memory__limit_in_bytes=2 * GI, memory__usage_in_bytes=2 * GI)
    assert free(tmp_path, "7:cpu,cpuacct:/docker/abc\n5:memory:/docker/abc\n") == GI


@pytest.mark.parametrize("membership", ["0::/\n", "", "nonsense\n", "0::/../../elsewhere\n"])
def test_nothing_is_known_where_nothing_is_written(tmp_path, membership):
    assert free(tmp_path, membership) is None


def test_what_takes_more_than_its_limit_has_nothing_left(tmp_path):
    write(tmp_path / "cgroup", files=0, memory__max=GI, memory__current=2 * GI)
    assert free(tmp_path, "0::/\n") == 0


def test_a_split_may_take_a_quarter_of_what_the_pod_has(monkeypatch):
    monkeypatch.setattr(memory, "free_in_control_group", lambda: 4096)
    cpu = torch.device("cpu")
    assert fits(1024, cpu)
    assert not fits(1025, cpu)


def test_this_machine_holds_something_but_not_everything():
    cpu = torch.device("cpu")
    assert fits(1 << 10, cpu)
    assert not fits(1 << 60, cpu)
