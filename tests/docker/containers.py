"""The container engine as the tests use it."""

import json
import os
import shlex
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKER = os.environ.get("DOCKER", "docker")
USER = "54321:54321"  # a uid that no passwd file knows
EPOCHS = ("teacher.train.epochs=2", "train.epochs=2")
SHORT = ("teacher.name=resnet8", "train.device=cpu", "teacher.train.device=cpu", "evaluate.latency_runs=10")


def docker(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run the client; what the engine says when it fails becomes the test's failure."""
    done = subprocess.run([DOCKER, *arguments], capture_output=True, text=True, check=False)
    if check and done.returncode:
        pytest.fail(f"{shlex.join([DOCKER, *arguments])}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return done


def image_facts(name: str) -> dict:
    """What the engine knows of an image."""
    return json.loads(docker("image", "inspect", name).stdout)[0]


def materials(image: str, path: str) -> dict:
    """An image's bill of materials."""
    return json.loads(docker("run", "--rm", "--user", USER, "--entrypoint", "cat", image, path).stdout)
