"""A training step on two nodes, and what lies on the volume that they share."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gkd_core.errors import GkdError
from gkd_core.files import folder_digest, read_json, whole_folder
from pipelines.kubeflow import nodes, train_job_life
from pipelines.kubeflow.profile import Profile
from pipelines.kubeflow.task import Task
from tests.conftest import small
from tests.pipelines.kubernetes_server import KubernetesServer
from tests.pipelines.train_jobs import NODES

ROOT = Path(__file__).parents[2]
TASK = """
import sys
from pathlib import Path
from pipelines.kubeflow.task import running
from pipelines.kubeflow.nodes import train
here = Path(sys.argv[1])
profile = (here / "profile.json").read_text()
with running("baseline", sys.argv[2]) as task:
    train(task, profile, out=str(here / "baseline"), data=str(here / "data"))
"""


@pytest.mark.slow
def test_two_nodes_train_one_network(few_digits, tmp_path):
    """The task starts a TrainJob; its nodes are processes here, started as Trainer would, that meet in the volume."""
    shutil.copytree(few_digits, tmp_path / "data")
    profile = NODES | {"work": {"claim": "gkd-work", "mount": str(tmp_path / "work")}}
    (tmp_path / "profile.json").write_text(Profile.model_validate(profile).model_dump_json())
    params = small(train={"epochs": 1, "batch_size": 20, "device": "cpu"})
    settings = params.model_dump_json(include={"student", "train", "references"})
    with KubernetesServer("processes") as server:
        server.environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": _path()}
        environment = {
            "GKD_WORK": str(tmp_path / "work"),
            "PYTHONPATH": str(ROOT),
            "KUBECONFIG": str(server.kubeconfig(tmp_path / "kube")),
        }
        result = subprocess.run(
            [sys.executable, "-c", TASK, str(tmp_path), settings], cwd=tmp_path, capture_output=True, text=True,
            timeout=250, env=os.environ | environment,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        (made,) = server.created
    assert made["spec"]["trainer"]["command"][:4] == ["python", "-m", "torch.distributed.run", "-m"]
    facts = read_json(tmp_path / "baseline" / "training.json", "the result")
    assert (facts["trained"], facts["processes"]) == (True, 2)
    assert (tmp_path / "baseline" / "model.safetensors").is_file()
    assert not list((tmp_path / "work" / "nodes").iterdir()), "the volume is left as it was"
    assert "2 nodes × 1 processes" in result.stderr


class TestTheVolume:
    """What lies on it, with a training that is no training."""

    @pytest.fixture
    def wait(self, few_digits, tmp_path, monkeypatch):
        """A function that is the waiting task: what the job leaves is given; how often it was started is counted."""
        profile = Profile.model_validate(NODES).model_dump_json()
        started: list[Path] = []

        def launched(job, *, complete, **_):
            place = Path(job.command[-2])
            started.append(place)
            assert not complete()
            with whole_folder(place / "out") as folder:
                (folder / "training.json").write_text('{"epochs": 3}')
                (folder / "model.safetensors").write_bytes(b"weights")
            nodes.finish(place)

        monkeypatch.setattr(train_job_life, "launch", launched)

        def wait(out: str = "baseline") -> list[Path]:
            task = Task("baseline", "{}", small(), tmp_path / "work", tmp_path)
            nodes.train(task, profile, out=str(tmp_path / out), data=str(few_digits))
            assert (tmp_path / out / "model.safetensors").read_bytes() == b"weights"
            return started

        return wait

    @pytest.mark.parametrize("lost", ["model.safetensors", "training.json", "a byte"])
    def test_a_half_deleted_result_is_no_result(self, wait, tmp_path, monkeypatch, lost):

        with monkeypatch.context() as patch:
            patch.setattr(nodes, "_take_away", lambda folder: None)  # killed before it cleaned up
            (place,) = wait()
        if lost == "a byte":
            (place / "out" / "model.safetensors").write_bytes(b"weight.")
        else:
            (place / "out" / lost).unlink()
        assert wait("again") == [place, place], "trained once more"
        assert list((tmp_path / "work" / "nodes").iterdir()) == []

    def test_a_whole_one_is_taken_and_inputs_that_are_not_whole_are_copied_again(self, wait, monkeypatch):
        with monkeypatch.context() as patch:
            patch.setattr(nodes, "_take_away", lambda folder: None)
            (place,) = wait()
            whole = folder_digest(place / "data")
            assert wait("again") == [place]
        for folder in (place / "out", place / "data"):
            next(file for file in folder.rglob("*.npy" if folder.name == "data" else "*.json")).unlink()
        with monkeypatch.context() as patch:
            keep = nodes._take_away
            patch.setattr(nodes, "_take_away", lambda folder: None if folder == place else keep(folder))
            assert len(wait("third")) == 2
            assert folder_digest(place / "data") == whole

    def test_what_is_being_deleted_has_another_name_and_is_deleted_by_the_next(self, wait, tmp_path, monkeypatch):
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "rmtree", lambda *_, **__: None)  # killed in the middle
            (place,) = wait()
        assert not place.exists()
        assert [path.name.startswith(".gone-") for path in place.parent.iterdir()] == [True]
        wait("again")
        assert list(place.parent.iterdir()) == []

    def test_a_failed_job_leaves_no_copies_and_one_that_may_still_work_does(self, wait, monkeypatch):

        place = wait()[0]
        for error, left in ((train_job_life.JobEnded("failed"), False), (GkdError("cannot be asked"), True)):

            def launched(*_, error=error, **__):
                raise error

            monkeypatch.setattr(train_job_life, "launch", launched)
            with pytest.raises(GkdError, match=str(error)):
                wait("again")
            assert (place / "data").exists() is left


def _path() -> str:
    """`python` is this one, as in the image."""
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def test_a_reference_that_is_off_needs_no_nodes(few_digits, tmp_path):
    task = Task("baseline", "", small(references={"baseline": False}), tmp_path, tmp_path)
    nodes.train(task, "a profile", out=str(tmp_path / "baseline"), data=str(few_digits))
    assert '"trained": false' in (tmp_path / "baseline" / "training.json").read_text()
