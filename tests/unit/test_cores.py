"""How many cores there are: groups as the kernel writes them, in both versions, and a process in a real one."""

import contextlib
import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gkd_core import cores
from gkd_core.cores import pool_size, quota_cores, thread_limit, usable_cores

ROOT = Path(__file__).parents[2]
V1 = "3:cpuset:/\n2:cpu,cpuacct:{}\n1:memory:/elsewhere\n"
V2 = "0::{}\n"


def version_1(top: Path, group: str, quota: int, period: int = 100_000, controller: str = "cpu") -> None:
    folder = top / "cgroup" / controller / group
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (folder / "cpu.cfs_period_us").write_text(f"{period}\n")


def version_2(top: Path, group: str, line: str) -> None:
    folder = top / "cgroup" / group
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cpu.max").write_text(f"{line}\n")


def places(top: Path, membership: str) -> tuple[Path, Path]:
    (top / "membership").write_text(membership)
    return top / "membership", top / "cgroup"


@pytest.fixture
def of_64(monkeypatch) -> None:
    """A large node, on which nobody said how many threads there are."""
    monkeypatch.setattr(cores, "_bound", lambda: 64)
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "")  # so that it is restored, whether it was there or not
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("quota", "expected"),
    [(200_000, 2), (50_000, 1), (100_000, 1), (150_000, 2), (-1, 64), (10_000_000, 64)],
)
def test_a_quota_of_the_first_version_is_rounded_up(tmp_path, of_64, quota, expected):
    version_1(tmp_path, "docker/abc", quota)
    assert usable_cores(*places(tmp_path, V1.format("/docker/abc"))) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [("200000 100000", 2), ("50000 100000", 1), ("250000 100000", 3), ("25000 50000", 1), ("max 100000", 64)],
)
def test_a_quota_of_the_second_version_is_rounded_up(tmp_path, of_64, line, expected):
    version_2(tmp_path, "kubepods/pod", line)
    assert usable_cores(*places(tmp_path, V2.format("/kubepods/pod"))) == expected


def test_of_nested_groups_the_smallest_quota_holds(tmp_path, of_64):
    version_2(tmp_path, "pods", "300000 100000")
    version_2(tmp_path, "pods/mine", "max 100000")
    assert usable_cores(*places(tmp_path, V2.format("/pods/mine"))) == 3
    version_2(tmp_path, "pods/mine", "150000 100000")
    assert usable_cores(*places(tmp_path, V2.format("/pods/mine"))) == 2
    version_1(tmp_path, "", 100_000)
    version_1(tmp_path, "pods", 700_000)
    version_1(tmp_path, "pods/mine", -1)
    assert usable_cores(*places(tmp_path, V1.format("/pods/mine"))) == 1


def test_a_container_sees_its_own_quota_at_the_top(tmp_path, of_64):
    """Whatever path the kernel tells, which is the host's."""
    version_1(tmp_path, "", 400_000)
    assert usable_cores(*places(tmp_path, V1.format("/kubepods/burstable/pod1/abc"))) == 4
    version_2(tmp_path, "", "200000 100000")
    assert usable_cores(*places(tmp_path, V2.format("/"))) == 2


def test_controllers_may_share_a_mount_without_a_link(tmp_path, of_64):
    version_1(tmp_path, "docker/abc", 200_000, controller="cpu,cpuacct")
    assert usable_cores(*places(tmp_path, V1.format("/docker/abc"))) == 2


@pytest.mark.parametrize("membership", ["0::/\n", "", "nonsense\n", "0::/../../elsewhere\n"])
def test_without_groups_every_core_counts_that_the_process_is_bound_to(tmp_path, of_64, membership):
    assert usable_cores(*places(tmp_path, membership)) == 64
    assert usable_cores(tmp_path / "absent", tmp_path) == 64


def test_a_group_may_have_any_bytes_in_its_name(tmp_path, of_64):
    name = os.fsdecode(b"caf\xe9")
    version_2(tmp_path, name, "200000 100000")
    (tmp_path / "membership").write_bytes(b"0::/caf\xe9\n")
    assert usable_cores(tmp_path / "membership", tmp_path / "cgroup") == 2


def test_where_nobody_may_look_nothing_is_raised(tmp_path, of_64, monkeypatch):
    def forbidden(path, **_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "stat", forbidden)
    assert usable_cores(*places(tmp_path, V1.format("/docker/abc"))) == 64


@pytest.mark.parametrize("line", ["", "100000", "many 100000", "100000 0"])
def test_a_file_of_another_form_limits_nothing(tmp_path, of_64, line):
    version_2(tmp_path, "pods", line)
    assert quota_cores(*places(tmp_path, V2.format("/pods"))) is None


def test_the_cores_a_process_is_bound_to_count(tmp_path):
    program = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    program += "from gkd_core.cores import usable_cores; print(usable_cores())"
    assert int(python(program)) == 1


def test_a_quota_above_what_the_process_is_bound_to_adds_nothing(tmp_path, of_64, monkeypatch):
    monkeypatch.setattr(cores, "_bound", lambda: 2)
    version_2(tmp_path, "pods", "800000 100000")
    assert usable_cores(*places(tmp_path, V2.format("/pods"))) == 2


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, 64),
        ({"OMP_NUM_THREADS": "4"}, 4),
        ({"OMP_NUM_THREADS": "4,2"}, 4),
        ({"OMP_NUM_THREADS": "128"}, 64),
        ({"OMP_NUM_THREADS": "many"}, 64),
        ({"OMP_NUM_THREADS": "0"}, 64),
        ({"LOCAL_WORLD_SIZE": "4"}, 16),
        ({"LOCAL_WORLD_SIZE": "4", "OMP_NUM_THREADS": "8"}, 8),
        ({"LOCAL_WORLD_SIZE": "100"}, 1),
    ],
)
def test_threads_are_at_most_what_the_user_says_and_the_cores_allow(of_64, monkeypatch, given, expected):
    monkeypatch.setattr(cores, "quota_cores", lambda *places: None)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert thread_limit() == expected


def test_processes_of_a_machine_share_the_cores_for_pictures_and_openmp_s_variable_is_not_meant(of_64, monkeypatch):
    monkeypatch.setattr(cores, "quota_cores", lambda *places: None)
    assert pool_size() == 16
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # torchrun's own choice
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert pool_size() == 8


def python(program: str, **environment: str) -> str:
    """The last line that a fresh interpreter prints."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=clean | environment)
    return result.stdout.splitlines()[-1]


POLICY = "import os; print(os.environ.get('OMP_WAIT_POLICY'))"


def test_threads_wait_without_spinning_unless_the_user_says_so():
    assert python(f"import gkd_core; {POLICY}") == "passive"
    assert python(f"import gkd_core; {POLICY}", OMP_WAIT_POLICY="active") == "active"
    assert python(f"import pipelines.cli; {POLICY}") == "passive"
    assert python(f"import components; {POLICY}") == "passive", "a step may import torch first"


def test_an_environment_that_is_read_no_more_is_left_alone():
    stub = "import sys, types; sys.modules['torch'] = types.ModuleType('torch'); "
    assert python(f"{stub}import gkd_core; {POLICY}") == "None"


def test_under_a_quota_openmp_and_blas_are_told_of_it(of_64, monkeypatch):
    monkeypatch.setattr(cores, "quota_cores", lambda *places: 2)
    cores.set_thread_defaults()
    assert os.environ["OMP_NUM_THREADS"] == "2"
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    cores.set_thread_defaults()
    assert os.environ["OMP_NUM_THREADS"] == "1"


def test_without_a_quota_nothing_is_said_of_how_many_threads_there_are(of_64, monkeypatch):
    monkeypatch.setattr(cores, "quota_cores", lambda *places: None)
    cores.set_thread_defaults()
    assert "OMP_NUM_THREADS" not in os.environ


@contextlib.contextmanager
def real_group(name: str) -> Iterator[Path | None]:
    """A group of this machine with half a core, or None where it lets nobody make one."""
    with contextlib.ExitStack() as stack:
        for version, top in ((1, Path("/sys/fs/cgroup/cpu")), (2, Path("/sys/fs/cgroup"))):
            group = top / name
            if not (top / "cgroup.procs").exists():
                continue
            try:
                group.mkdir()
                stack.callback(group.rmdir)
                file, half = ("cpu.cfs_quota_us", "50000") if version == 1 else ("cpu.max", "50000 100000")
                with (group / file).open("r+") as quota:  # "r+" makes no file where there is none
                    quota.write(half)
            except OSError:
                stack.close()
                continue
            yield group
            return
        yield None


def test_a_process_counts_the_quota_that_the_kernel_holds_it_to():
    """In a group with half a core, where this machine lets us make one; else in the groups we are in."""
    with real_group(f"gkd-test-{os.getpid()}") as group:
        enter = "" if group is None else f"open('{group}/cgroup.procs', 'w').write(str(os.getpid()))\n"
        program = f"import json, os\n{enter}from gkd_core.cores import usable_cores\nimport torch\n"
        program += "torch.rand(2000, 2000) @ torch.rand(2000, 2000)\n"
        program += "print(json.dumps([usable_cores(), torch.get_num_threads(), len(os.sched_getaffinity(0))]))"
        counted, computing, bound = json.loads(python(program))
    expected = (usable_cores(), bound) if group is None else (1, 1)
    assert counted == expected[0]
    assert computing <= expected[1]
