"""Data from a git repository with DVC in it, fetched where there is no git, no checkout and no passwd entry."""

import json
import subprocess

import numpy as np
import pytest
from dvc.repo import Repo
from PIL import Image

from gkd_core.data.prepared import PreparedData

pytestmark = pytest.mark.docker

STEP = """
import json
from kfp import dsl
from pipelines.kubeflow import components as steps
data = dsl.Dataset(name="data", uri="data", metadata={})
settings = json.dumps({"data": {"source": "folder", "image_size": 16}})
steps.prepare.python_func(
    settings=settings, dvc_repo="file:///srv/repo", dvc_path="images", dvc_rev="photos-1", data=data
)
print(json.dumps(data.metadata))
"""


@pytest.fixture
def published(tmp_path):
    """A repository with 20 pictures at a tag, pushed to a folder; owned by another user than the one who reads it."""
    repo = tmp_path / "srv" / "repo"
    repo.mkdir(parents=True)

    def git(*arguments: str) -> str:
        who = ["-c", "user.name=somebody", "-c", "user.email=somebody@example.org", "-c", "init.defaultBranch=main"]
        return subprocess.run(["git", *who, *arguments], cwd=repo, check=True, capture_output=True, text=True).stdout

    git("init", "--quiet")
    Repo.init(str(repo)).close()
    lines = ["[core]", "    remote = store", "['remote \"store\"']", "    url = /srv/store", ""]
    (repo / ".dvc" / "config").write_text("\n".join(lines))
    for label, name in enumerate(("cat", "dog")):
        (repo / "images" / name).mkdir(parents=True)
        for number in range(10):
            pixels = np.full((16, 16, 3), 100 * label + number, np.uint8)
            Image.fromarray(pixels).save(repo / "images" / name / f"{number}.png")
    with Repo(str(repo), config={"remote": {"store": {"url": str(tmp_path / "srv" / "store")}}}) as opened:
        opened.add([str(repo / "images")])
        opened.push()
    git("add", "--all")
    git("commit", "--quiet", "--message", "pictures")
    git("tag", "photos-1")
    return tmp_path / "srv", git("rev-parse", "HEAD").strip()


def test_the_prepare_task_reads_a_tag(run, published, tmp_path):
    place, commit = published
    (tmp_path / "work").mkdir()
    done = run("python3", "-c", STEP, folder=tmp_path / "work", mounts=(f"{place}:/srv:ro",))
    facts = json.loads(done.stdout.splitlines()[-1])
    assert facts["dvc_rev"] == commit
    assert facts["dvc_asked"] == "photos-1"
    assert facts["dvc_repo"] == "file:///srv/repo"
    assert facts["dvc_path"] == "images"
    assert facts["dvc_md5"].endswith(".dir")
    data = PreparedData.open(tmp_path / "work" / "data")
    assert facts["sha256"] == data.info.sha256
    assert data.info.classes == ("cat", "dog")
    assert sum(data.info.counts.values()) == 20


def test_git_is_not_needed(run, tmp_path):
    (tmp_path / "work").mkdir()
    assert run("git", "--version", folder=tmp_path / "work", check=False).returncode == 127
