"""The example of a plugin, built into the train image by its own Dockerfile: gkd finds it there, and trains with it."""

import json
import re
import shutil
import subprocess
import sys

import pytest

from gkd_core.files import file_digest, json_digest
from tests.docker.containers import ROOT, docker

pytestmark = pytest.mark.docker

EXAMPLE = ROOT / "examples" / "own_method"
LESS = ("data.train_images=100", "teacher.name=resnet8", "teacher.train.epochs=1", "train.epochs=1")


@pytest.fixture
def image(train_image, tmp_path) -> str:
    """Built as the Dockerfile's first lines say, the wheel by what is installed here."""
    source, name = tmp_path / "source", "gkd-own-method:test"
    shutil.copytree(EXAMPLE, source, ignore=shutil.ignore_patterns("dist", "build", "__pycache__"))
    (wheel,) = re.findall(r"^#   pip (wheel .*)$", (source / "Dockerfile").read_text(), re.MULTILINE)
    offline = ["--quiet", "--no-build-isolation", "--no-index"]
    subprocess.run([sys.executable, "-m", "pip", *wheel.split(), *offline], check=True, cwd=source)
    docker("build", "--build-arg", f"GKD_IMAGE={train_image}", "--tag", name, str(source))
    return name


def test_the_examples_dockerfile_makes_an_image_that_trains_with_the_plugin(run, image, tmp_path):
    folder = tmp_path / "work"
    folder.mkdir()
    listed = json.loads(run("gkd", "methods", "--json", folder=folder, image=image).stdout.splitlines()[-1])
    brought = {row["name"] for row in listed if row.get("plugin") == "own_method"}
    assert brought == {"cosine-embedding", "separable-32", "noise", "gaussian-blur"}

    shutil.copy(EXAMPLE / "params.yaml", folder)
    less = [word for given in LESS for word in ("--set", given)]
    for step in (["prepare"], ["teacher"], ["distill", "--teacher", "teacher"]):
        run("gkd", *step, *less, folder=folder, image=image)
    facts = json.loads((folder / "student" / "training.json").read_text())
    digest = json_digest({"own_method.py": file_digest(EXAMPLE / "own_method.py")})
    assert (facts["method"], facts["plugins"]) == ("cosine-embedding", f"own_method@sha256:{digest}")
