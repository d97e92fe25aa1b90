"""What the images are built from, checked without an engine: lock files, addresses, what the scripts say."""

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def pins(lock: str) -> dict[tuple[str, str], list[str]]:
    """(package==version, marker) → hashes."""
    found = {}
    for entry in re.split(r"\n(?=\S)", (ROOT / lock).read_text().strip()):
        head, *rest = entry.split("\\")
        pin, _, marker = head.partition(";")
        found[pin.strip(), marker.strip()] = re.findall(r"--hash=(sha256:[0-9a-f]{64})", " ".join(rest))
    return found


@pytest.mark.parametrize("lock", ["requirements-train.lock", "requirements-build.lock"])
def test_the_images_hold_what_the_tests_ran_with(lock):
    everything = {pin: set(hashes) for (pin, _), hashes in pins("requirements.lock").items()}
    for (pin, _), hashes in pins(lock).items():
        assert hashes, pin
        if not pin.startswith("pip=="):
            assert set(hashes) == everything[pin], pin


def test_train_has_no_development_tools():
    names = {pin.partition("==")[0] for pin, _ in pins("requirements-train.lock")}
    assert {"torch", "mlflow", "dvc", "kfp", "kubeflow", "onnx"} <= names
    assert not {"pytest", "ruff", "mypy", "playwright", "torchdistill", "uv"} & names


@pytest.mark.parametrize("name", ["Dockerfile", ".dockerignore", ".ci/image", ".ci/engine", ".ci/run"])
def test_no_address_and_nothing_pulled_by_a_comment(name):
    text = (ROOT / name).read_text()
    assert not re.search(r"https?://(?!127\.0\.0\.1|\[)", text)
    assert "# syntax=" not in text.replace("No `# syntax=` line", "")


def test_which_gpus_a_container_sees_is_not_the_images_to_say():
    """The device plugin and `--gpus` set it; an image that says `all` gets past both where they set nothing."""
    assert "NVIDIA_VISIBLE_DEVICES" not in (ROOT / "Dockerfile").read_text()


@pytest.mark.parametrize("there", ["3.9", ""])
def test_wheels_of_another_python_are_not_handed_to_the_build(tmp_path, there):
    """An engine that says which Python the base image has, or fails, and keeps how it was asked to build."""
    engine = tmp_path / "docker"
    answer = f"echo {there}" if there else "exit 125"
    engine.write_text(f'#!/bin/sh\ncase $1 in run) {answer} ;; build) echo "$@" >>{tmp_path}/built ;; esac\n')
    engine.chmod(0o755)
    done = subprocess.run(
        [str(ROOT / ".ci" / "image"), "serve"],
        env=os.environ | {"DOCKER": str(engine), "WHEELS": "1", "BASE_IMAGE": "debian:old"},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"debian:old has {there or 'none that answers'}: wheels are fetched inside the build" in done.stdout
    assert "fetching the wheels" not in done.stdout
    built = (tmp_path / "built").read_text()
    assert "--target serve" in built
    assert "--network" not in built


def test_only_what_is_needed_reaches_the_build():
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert next(line for line in lines if not line.startswith("#")) == "*"
    allowed = {line[1:] for line in lines if line.startswith("!")}
    copied = re.findall(r"^COPY (?!--)(.+) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    bound = re.findall(r"type=bind,source=([^,]+),", (ROOT / "Dockerfile").read_text())
    assert {word for line in copied for word in line.split()} | set(bound) == allowed


def test_the_engine_script_says_why_not(tmp_path):
    """A machine with neither engine nor apt-get: bash and a few tools alone are on the path, and no engine answers."""
    tools = tmp_path / "bin"
    tools.mkdir()
    paths = "PATH=$PATH:/usr/sbin:/sbin"
    script = (ROOT / ".ci" / "engine").read_text()
    assert paths in script
    (tmp_path / "script").write_text(script.replace(paths, ""))  # this machine's engine, if it has one, is not found
    for name in ("bash", "id", "mkdir", "rm", "realpath", "sed", "awk", "sort", "xargs", "cat", "seq"):
        (tools / name).symlink_to(Path("/usr/bin") / name)
    done = subprocess.run(
        ["/bin/bash", str(tmp_path / "script"), "start", str(tmp_path / "engine")],
        env={"PATH": str(tools), "DOCKER_HOST": f"unix://{tmp_path}/nobody.sock", "HOME": os.environ.get("HOME", "/")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert re.fullmatch(r"container engine: not available: no engine answers, and .*\n", done.stderr)
