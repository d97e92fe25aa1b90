"""The images, built once from this checkout unless they are given, and commands run in them as nobody in particular."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gkd_core import __version__
from tests.docker.containers import EPOCHS, ROOT, SHORT, USER, docker

GKD = [sys.executable, "-m", "pipelines.cli"]


def pytest_collection_modifyitems(items):
    """Building an image takes longer than other tests may."""
    for item in items:
        if ROOT / "tests" / "docker" in item.path.parents:
            item.add_marker(pytest.mark.timeout(3600))


@pytest.fixture(scope="session")
def engine() -> None:
    """A container engine that answers; without one these tests fail rather than be passed over."""
    if docker("info", check=False).returncode:
        pytest.fail("no container engine answers: `.ci/engine start DIR && . DIR/env`", pytrace=False)


@pytest.fixture(scope="session")
def images(engine) -> dict[str, str]:
    """Target of the Dockerfile → image: GKD_IMAGE and GKD_SERVE_IMAGE where given, else built from this checkout."""
    given = {"train": os.environ.get("GKD_IMAGE"), "serve": os.environ.get("GKD_SERVE_IMAGE")}
    own = {"train": f"gkd:{__version__}", "serve": f"gkd-serve:{__version__}"}
    if missing := [target for target, image in given.items() if not image]:
        command = [ROOT / ".ci" / "image", *missing]
        settings = os.environ | {"IMAGE": own["train"], "PROGRESS": "plain"}
        done = subprocess.run(
            command, env=settings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        if done.returncode:
            pytest.fail(f".ci/image {' '.join(missing)} failed:\n{done.stdout[-6000:]}", pytrace=False)
    return {target: image or own[target] for target, image in given.items()}


@pytest.fixture(scope="session")
def train_image(images) -> str:
    return images["train"]


@pytest.fixture(scope="session")
def serve_image(images) -> str:
    return images["serve"]


@pytest.fixture(scope="session")
def run(train_image) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command in an image as an arbitrary user on a root that cannot be written, `folder` being /work.

    In the train image, unless another is given.
    """

    def run(
        *command: str,
        folder: Path,
        image: str = train_image,
        mounts: tuple[str, ...] = (),
        check: bool = True,
        **environment: str,
    ):
        folder.chmod(0o777)
        options = ["--rm", "--read-only", "--tmpfs", "/tmp", "--user", USER, "--volume", f"{folder}:/work"]
        options += [word for mount in mounts for word in ("--volume", mount)]
        options += [word for name, value in environment.items() for word in ("--env", f"{name}={value}")]
        return docker("run", *options, image, *command, check=check)

    return run


@pytest.fixture(scope="session")
def pipeline(train_image) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the whole pipeline: each task a container of kfp's DockerRunner, run as a user nobody knows."""

    def pipeline(out: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
        command = [*GKD, "pipeline", "run", "--runner", "docker", "--user", USER, "--out", str(out)]
        command += ["--params", str(ROOT / "params.yaml"), *(word for given in overrides for word in ("--set", given))]
        settings = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
        settings |= {"GKD_IMAGE": train_image, "OMP_NUM_THREADS": "2"}
        return subprocess.run(command, env=settings, capture_output=True, text=True, check=False)

    return pipeline


@pytest.fixture(scope="session")
def store(tmp_path_factory) -> str:
    """Address of an MLflow store that any user may write."""
    folder = tmp_path_factory.mktemp("store")
    folder.chmod(0o777)
    return f"sqlite:///{folder / 'mlflow.db'}"


@pytest.fixture(scope="session")
def pipeline_run(pipeline, store, tmp_path_factory) -> Path:
    """What a run with two epochs left."""
    out = tmp_path_factory.mktemp("pipeline") / "out"
    done = pipeline(out, *SHORT, *EPOCHS, f"tracking.uri={store}")
    log = out / "pipeline.log"
    if done.returncode:
        pytest.fail(f"{done.stderr[-4000:]}\n{log.read_text()[-6000:] if log.exists() else ''}", pytrace=False)
    return out
