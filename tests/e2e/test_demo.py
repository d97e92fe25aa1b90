"""What `make demo` left, looked at from outside: with json, onnxruntime, mlflow, dvc and git, hardly with our own code.

Run by `make e2e` in the folder in which `make demo` ran. What would change that folder is done in a copy of it.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]  # one of them trains


def run(*command: str, cwd: Path = ROOT, env: Mapping[str, str] | None = None, timeout: int = 600) -> str:
    result = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=timeout, env={**os.environ, **(env or {})}
    )
    assert result.returncode == 0, f"{' '.join(command)}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def read(path: str, root: Path = ROOT) -> dict:
    return json.loads((root / path).read_text())


@pytest.fixture(scope="module")
def summary() -> dict:
    return json.loads(run("gkd", "summary").splitlines()[-1])


@pytest.fixture(scope="module")
def held_out() -> tuple[np.ndarray, np.ndarray]:
    return np.load(ROOT / "data/test/images.npy"), np.load(ROOT / "data/test/labels.npy")


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """The demo's folder with a git history of its own, the results committed, as a user would."""
    folder = tmp_path_factory.mktemp("copy") / "gkd"
    ignored = shutil.ignore_patterns(
        ".venv", ".mypy_cache", ".ruff_cache", ".pytest_cache", "mlruns", "mlartifacts", "mlflow.db"
    )
    shutil.copytree(ROOT, folder, ignore=ignored, symlinks=True)
    run("git", "config", "user.name", "tester", cwd=folder)
    run("git", "config", "user.email", "tester@example.org", cwd=folder)
    run("git", "add", "--all", cwd=folder)
    run("git", "commit", "--quiet", "--allow-empty", "--message", "what the demo gave", cwd=folder)
    return folder


def test_the_summary_has_what_it_promises(summary):
    for key in ("teacher", "baseline", "kd", "student"):
        assert 0.5 < summary[key]["top1"] <= 1.0
    assert (ROOT / summary["onnx"]["path"]).is_file()
    assert 0.0 <= summary["onnx"]["parity_max_abs"] < 1e-3
    assert isinstance(summary["gate"]["passed"], bool)
    assert int(summary["registry"]["version"]) >= 1
    assert summary["registry"]["alias"] in ("champion", "challenger")
    assert (summary["registry"]["alias"] == "champion") == summary["gate"]["passed"]
    assert (ROOT / summary["report"]["path"]).is_file()


def test_the_demos_last_line_was_that_summary(summary):
    printed = ROOT / "demo.out"  # .ci/run keeps the demo's output there
    if os.environ.get("CI"):
        assert printed.is_file()
    if printed.is_file():
        assert json.loads(printed.read_text().splitlines()[-1]) == summary


def test_the_onnx_file_alone_gives_the_accuracy_that_was_reported(summary, held_out):
    """Raw pixels in, class names from the file's own metadata: nothing of ours in between."""
    images, labels = held_out
    session = onnxruntime.InferenceSession(ROOT / summary["onnx"]["path"], providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    assert (entry.name, entry.type) == ("image", "tensor(uint8)")
    (logits,) = session.run(None, {"image": images})
    top1 = (logits.argmax(1) == labels).mean()
    metrics = read("report/metrics.json")
    assert metrics["onnx"]["top1"] == pytest.approx(top1, abs=1e-6)
    assert metrics["student"]["top1"] == pytest.approx(top1, abs=2 / len(labels))
    one_by_one = np.concatenate([session.run(None, {"image": image[None]})[0] for image in images[:20]])
    assert np.abs(one_by_one - logits[:20]).max() < 1e-4


def test_lineage_is_unbroken(summary):
    manifest = read("deploy/manifest.json")
    model = onnx.load(ROOT / summary["onnx"]["path"])
    inside = {entry.key: entry.value for entry in model.metadata_props}
    for key in ("data_sha256", "teacher_digest", "student_digest", "config_digest"):
        assert inside[key] == manifest[key], f"{key} of the manifest is not in the ONNX file"
    assert len(manifest["code_sha256"]) == 64
    assert (
        manifest["data_sha256"] == read("student/training.json")["data_sha256"] == read("data/dataset.json")["sha256"]
    )
    assert read("student/training.json")["teacher_digest"] == manifest["teacher_digest"]
    assert str(ROOT) not in (ROOT / summary["onnx"]["path"]).read_bytes().decode("latin-1"), "a path of this machine"


def test_verify_walks_every_link_of_the_demo():
    outcome = json.loads(run("gkd", "verify", ".").splitlines()[-1])
    assert outcome["verified"] is True
    links = {link["link"] for link in outcome["links"]}
    assert {"teacher → student", "kd → report", "report → registration", "deploy → registry"} <= links
    assert [gap["link"] for gap in outcome["not_walked"]] == ["deploy → server"]


def test_verify_names_a_byte_that_changed(copy):
    metrics = copy / "report" / "metrics.json"
    content = metrics.read_bytes()
    metrics.write_bytes(content[:-2] + b" }")
    result = subprocess.run(["gkd", "verify", "."], cwd=copy, capture_output=True, text=True, timeout=600)
    metrics.write_bytes(content)
    assert result.returncode == 1
    assert "registration was made from another report than report holds" in result.stderr.splitlines()[-1]


def test_the_registry_holds_the_very_file(summary, tmp_path):
    program = f"""
import hashlib, mlflow, pathlib, sys
client = mlflow.MlflowClient("sqlite:///mlflow.db")
mlflow.set_tracking_uri("sqlite:///mlflow.db")
name = {summary["registry"]["name"]!r}
version = client.get_model_version_by_alias(name, {summary["registry"]["alias"]!r})
folder = mlflow.artifacts.download_artifacts(f"models:/{{name}}/{{version.version}}", dst_path=sys.argv[1])
files = sorted(pathlib.Path(folder).rglob("*.onnx"))
count = len(client.search_model_versions(f"name='{{name}}'"))
print(version.version, hashlib.sha256(files[0].read_bytes()).hexdigest(), count)
"""
    version, digest, count = run("python", "-c", program, str(tmp_path)).splitlines()[-1].split()
    assert int(version) == int(summary["registry"]["version"])
    assert digest == read("deploy/manifest.json")["model"]["sha256"]
    assert int(count) >= 1


def test_the_report_is_one_file_that_asks_nobody(summary):
    page = (ROOT / summary["report"]["path"]).read_text()
    for outside in ('src="http', "src='http", 'href="http', "@import", "url(http"):
        assert outside not in page
    assert "<svg" in page


def test_a_second_repro_does_nothing():
    assert "up to date" in run("dvc", "repro")


def test_dvc_shows_metrics_and_plots(copy):
    shown = json.loads(run("dvc", "metrics", "show", "--json", cwd=copy))
    (workspace,) = shown.values()
    top1 = workspace["data"]["report/metrics.json"]["data"]["student"]["top1"]
    assert top1 == read("report/metrics.json")["student"]["top1"]
    run("dvc", "plots", "diff", "--out", "plots", cwd=copy)
    page = (copy / "plots" / "index.html").read_text()
    assert "validation_top1" in page
    assert "beta" in page


def test_a_commit_that_touches_only_docs_changes_no_digest_and_registers_nothing(copy, tmp_path):
    (copy / "docs" / "architecture.md").write_text("changed\n")
    run("git", "commit", "--quiet", "--all", "--message", "docs", cwd=copy)
    assert "up to date" in run("dvc", "repro", cwd=copy)
    run("gkd", "export", "--out", str(tmp_path / "deploy"), cwd=copy)
    assert (tmp_path / "deploy/manifest.json").read_bytes() == (ROOT / "deploy/manifest.json").read_bytes()
    assert (tmp_path / "deploy/model.onnx").read_bytes() == (ROOT / "deploy/model.onnx").read_bytes()
    before = read("registration/version.json")
    run("gkd", "register", "--out", str(tmp_path / "registration"))
    after = json.loads((tmp_path / "registration/version.json").read_text())
    assert (after["name"], after["version"]) == (before["name"], before["version"])


def test_another_method_is_one_word_and_a_gate_that_says_no_leaves_champion(copy, tmp_path):
    """`dvc exp run -S distill.method=kd`: retrains the student alone, evaluates and registers it; too large, it stays
    challenger, and the run is green."""
    store = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    run("gkd", "register", "--out", str(tmp_path / "registration"), cwd=copy, env=store)
    settings = ("-S", "distill.method=kd", "-S", "gate.max_size_mb=0.001")
    output = run("dvc", "exp", "run", *settings, cwd=copy, env=store, timeout=900)
    assert "Running stage 'distill'" in output
    for kept in ("prepare", "teacher", "baseline", "kd"):
        assert f"Running stage '{kept}'" not in output
    assert read("student/training.json", copy)["method"] == "kd"
    student, reference = read("report/metrics.json", copy)["student"], read("report/metrics.json", copy)["kd"]
    assert student["top1"] == reference["top1"], "method kd is the kd reference: the same settings, the same bits"
    changed = json.loads(run("dvc", "params", "diff", "--json", cwd=copy))
    assert changed["params.yaml"]["distill.method"]["new"] == "kd"

    assert read("registration/gate.json", copy)["passed"] is False
    assert read("registration/version.json", copy)["version"] == 2
    versions = json.loads(run("gkd", "registry", "list", cwd=copy, env=store).splitlines()[-1])
    aliases = {entry["version"]: entry["aliases"] for entry in versions}
    assert "champion" in aliases[1]
    assert "champion" not in aliases[2]


def test_a_step_that_fails_fails_dvc_with_its_own_sentence(copy, tmp_path):
    command = ("dvc", "exp", "run", "-S", "data.source=folder", "-S", "data.root=nowhere")
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode != 0
    command = ("gkd", "prepare", "--set", "data.source=folder", "--set", "data.root=nowhere")
    command += ("--out", str(tmp_path / "data"))
    alone = subprocess.run(command, cwd=copy, capture_output=True, text=True, timeout=300, check=False)
    assert alone.returncode == 2
    (sentence,) = alone.stderr.strip().splitlines()
    assert sentence.startswith("gkd: ")
    assert sentence in (done.stdout + done.stderr).splitlines()


def test_the_kubeflow_pipeline_gives_the_same_artifacts(tmp_path):
    """`gkd pipeline run` in processes, on the demo's params.yaml, with a store of its own."""
    store = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    output = run("gkd", "pipeline", "run", "--out", str(tmp_path / "made"), env=store, timeout=1100)
    made = json.loads(output.splitlines()[-1])["artifacts"]
    from gkd_core.files import folder_digest

    for name in ("data", "teacher", "baseline", "kd", "student", "deploy"):
        assert made[name] == folder_digest(ROOT / name) == folder_digest(tmp_path / "made" / name), name
    metrics = "report/metrics.json"
    assert (tmp_path / "made" / metrics).read_bytes() == (ROOT / metrics).read_bytes()
