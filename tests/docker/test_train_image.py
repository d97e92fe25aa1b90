"""The train image: what is in it, and that a step runs in it as any user, on a root that cannot be written."""

import json
import re

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from gkd_core import __version__
from gkd_core.data.prepared import PreparedData
from tests.docker.containers import ROOT, USER, docker, image_facts, materials

pytestmark = pytest.mark.docker

PROBE = """
import getpass, json, os
import dvc.api, kfp.dsl.executor_main, matplotlib, mlflow, torch, torchvision
print(json.dumps({
    "uid": os.getuid(), "user": getpass.getuser(), "home": os.environ["HOME"], "torch": torch.__version__,
    "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(), "tempdir": matplotlib.get_cachedir(),
}))
"""


def locked(lock: str) -> dict[str, str]:
    """Package → version in a lock file; several markers, the last."""
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", (ROOT / lock).read_text(), re.MULTILINE))


def test_any_user_runs_everything_on_a_read_only_root(run, tmp_path):
    facts = json.loads(run("python3", "-c", PROBE, folder=tmp_path).stdout.splitlines()[-1])
    assert facts["uid"] == 54321
    assert facts["user"] == "gkd"
    assert facts["torch"].partition("+")[0] == locked("requirements-train.lock")["torch"]
    assert facts["cuda"] is not None  # GPUs are served by the same image
    assert facts["cudnn"] is not None
    assert facts["tempdir"].startswith("/tmp/")


def test_prepare_is_the_same_inside_and_outside(run, tmp_path, digits):
    (tmp_path / "params.yaml").write_text("data: {source: digits}\n")
    summary = json.loads(run("gkd", "prepare", "--out", "data", folder=tmp_path).stdout.splitlines()[-1])
    inside = PreparedData.open(tmp_path / "data")
    assert summary["sha256"] == inside.digest() == PreparedData.open(digits).info.sha256
    assert (tmp_path / "data" / "dataset.json").stat().st_uid == 54321


def test_a_mistake_is_one_sentence_inside_too(run, tmp_path):
    (tmp_path / "params.yaml").write_text("data: {sauce: digits}\n")
    done = run("gkd", "prepare", "--out", "data", folder=tmp_path, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("gkd: ")


THREADS = """
import json, os
from gkd_core.cores import thread_limit, usable_cores
found = [usable_cores(), thread_limit(), os.environ["OMP_WAIT_POLICY"]]
if TORCH:
    import torch
    torch.rand(2000, 2000) @ torch.rand(2000, 2000)
    found.append(torch.get_num_threads())
print(json.dumps(found))
"""


@pytest.mark.parametrize("target", ["train", "serve"])
def test_a_container_with_a_quota_starts_no_more_threads(target, request):
    """Half a core, which any machine has more of: the kernel's list of processors does not tell."""
    image = request.getfixturevalue(f"{target}_image")
    program = THREADS.replace("TORCH", str(target == "train"))
    options = ("--rm", "--user", USER, "--cpus", "0.5", "--entrypoint", "python3")
    found = json.loads(docker("run", *options, image, "-c", program).stdout.splitlines()[-1])
    assert found == [1, 1, "passive", *([1] if target == "train" else [])]


def test_not_root_by_default_and_labelled(train_image):
    facts = image_facts(train_image)["Config"]
    assert facts["User"] not in ("", "0", "root")
    labels = {name.removeprefix("org.opencontainers.image."): value for name, value in facts["Labels"].items()}
    assert labels["title"] == "gkd"
    assert labels["version"] == __version__
    assert labels["licenses"] == "Apache-2.0"
    assert re.fullmatch(r"[0-9a-f]{40}", labels["revision"])


def test_no_address_password_or_certificate_in_history_and_layers(train_image, serve_image):
    for image in (train_image, serve_image):
        history = docker("history", "--no-trunc", "--format", "{{.CreatedBy}}", image).stdout
        said = history + json.dumps(image_facts(image)["Config"])
        assert not re.findall(r"https?://(?!127\.0\.0\.1)[^\s'\"]+", said)
        assert not re.findall(r"(?i)(password|passwd|token|secret[_-]?key|authorization)\s*[=:]", said)
        listing = docker(
            "run", "--rm", "--user", "0", "--entrypoint", "find", image,
            "/run", "/etc/pip.conf", "/root", "/tmp", "-type", "f", "-size", "+0",
            check=False,
        ).stdout.splitlines()  # fmt: skip
        left = [path for path in listing if re.search(r"pip|\.whl$|\.crt$|ca\.|secrets", path)]
        assert left == []


@pytest.mark.parametrize("target", ["train", "serve"])
def test_bill_of_materials_is_what_is_locked(target, request):
    image = request.getfixturevalue(f"{target}_image")
    name = "gkd" if target == "train" else "gkd-serve"
    bill = materials(image, f"/usr/share/sbom/{name}.cdx.json")
    version = SchemaVersion.from_version(bill["specVersion"])
    assert JsonStrictValidator(version).validate_str(json.dumps(bill)) is None
    listed = {part["name"].lower().replace("_", "-"): part["version"] for part in bill["components"]}
    probe = "import importlib.metadata as m, json; print(json.dumps({d.name: d.version for d in m.distributions()}))"
    there = json.loads(docker("run", "--rm", "--user", USER, "--entrypoint", "python3", image, "-c", probe).stdout)
    installed = {found.lower().replace("_", "-").replace(".", "-"): version for found, version in there.items()}
    assert installed.pop("gkd") == __version__ == bill["metadata"]["component"]["version"]
    assert {found.replace(".", "-"): version for found, version in listed.items()} == installed
    assert set(installed) <= set(locked(f"requirements-{target}.lock"))
    assert "pip" not in installed
