"""gkd verify on a small real run: every link holds, and what is changed afterwards is named."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest

from components import register
from components.graph import MAKER
from components.verify import run
from gkd_core.config import TrackingConfig
from gkd_core.errors import GkdError
from gkd_core.files import file_digest, write_json
from gkd_core.verify import Broken
from tests import forked
from tests.components.conftest import Answering

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, project, evaluated, empty_store) -> Path:
    """A run's folder as `dvc repro` leaves it, with the registry's database."""
    root = tmp_path_factory.mktemp("whole")
    for name, folder in (project.inputs() | {"report": evaluated.report}).items():
        shutil.copytree(folder, root / name)
    shutil.copy(empty_store, root / "mlflow.db")
    params = project.params.model_copy(update={"tracking": TrackingConfig(uri=f"sqlite:///{root / 'mlflow.db'}")})
    folders = {name: root / name for name in (*project.inputs(), "report") if name != "data"}
    register.run(**folders, out=root / "registration", params=params)
    return root


@pytest.fixture
def copy(tmp_path, whole, monkeypatch) -> Path:
    """The steps' folders alone, to be changed; no registry."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for name in MAKER:
        shutil.copytree(whole / name, tmp_path / "run" / name)
    return tmp_path / "run"


def broken(root: Path | str, **more) -> str:
    chain = run(str(root), **{"server": None, "tracking": None} | more)
    assert chain.broken is not None
    assert isinstance(chain.broken, Broken)
    assert chain.broken.exit_code == 1
    assert "\n" not in str(chain.broken)
    return str(chain.broken)


def gkd(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    return forked.gkd(*arguments, cwd=cwd, env=ours)


def flip(path: Path, place: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def gaps(chain: Any) -> dict[str, str]:
    return {link.name: link.found for link in chain.links if not link.holds}


def test_a_run_holds_from_the_data_to_the_registry(whole):
    result = gkd("verify", "--strict", cwd=whole)
    assert result.returncode == 0, result.stderr
    outcome = json.loads(result.stdout.splitlines()[-1])
    assert outcome["verified"] is True
    assert outcome["broken"] is None
    links = {link["link"] for link in outcome["links"]} - {"deploy → model_fp16.onnx"}  # kept, or just not
    assert links == {
        "data → teacher", "data → baseline", "teacher → baseline", "data → student", "teacher → student",
        "data → deploy", "teacher → deploy", "student → deploy", "deploy → model.onnx", "deploy → model_int8.onnx",
        "data → report", "teacher → report", "baseline → report", "student → report", "deploy → report",
        "deploy → registration", "report → registration", "deploy → registry", "registry → model",
        "registry → deploy/manifest.json", "registry → report/metrics.json", "registry → gate/correct.npy",
        "registration → registry", "registration: alias",
    }  # fmt: skip
    assert [gap["link"] for gap in outcome["not_walked"]] == ["kd", "deploy → server"]
    assert "teacher → student" in result.stderr


@pytest.mark.parametrize(
    "file",
    [
        "data/train/images.npy", "data/test/labels.npy", "teacher/resnet8/model.safetensors", "teacher/teacher.json",
        "baseline/model.safetensors", "student/model.safetensors", "student/training.json", "deploy/model.onnx",
        "deploy/model_int8.onnx", "deploy/manifest.json", "report/metrics.json",
    ],
)  # fmt: skip
def test_one_changed_byte_is_found_and_its_folder_named(file, copy):
    path = copy / file
    size = path.stat().st_size
    for place in (size // 2, size - 1):
        flip(path, place)
        assert f"{path.relative_to(copy).parts[0]}" in broken(copy).replace(str(copy), ""), place
        flip(path, place)
    assert run(str(copy), server=None, tracking=None).broken is None


def test_what_no_later_step_noted_is_not_verified_and_said_to_be_so(copy):
    shutil.rmtree(copy / "registration")
    chain = run(str(copy), server=None, tracking=None)
    assert chain.broken is None
    assert "not verified" in gaps(chain)["report: bytes"]
    for name in ("report", "deploy"):
        shutil.rmtree(copy / name)
    assert {"baseline: bytes", "student: bytes"} <= gaps(run(str(copy), server=None, tracking=None)).keys()
    result = gkd("verify", "--strict", cwd=copy)
    assert result.returncode == 1
    assert "--strict wants all" in json.loads(result.stdout.splitlines()[-1])["broken"]
    assert "Traceback" not in result.stderr


def test_a_folder_of_another_kind_breaks_the_chain(copy):
    shutil.rmtree(copy / "baseline")
    (copy / "kd").rename(copy / "baseline")
    assert f"{copy / 'baseline'} holds the student taught by plain KD" in broken(copy)


def test_the_command_exits_with_1_at_the_first_break(copy):
    flip(copy / "deploy" / "model.onnx", 100)
    result = gkd("verify", ".", cwd=copy)
    assert result.returncode == 1
    outcome = json.loads(result.stdout.splitlines()[-1])
    assert outcome["verified"] is False
    assert "deploy/model.onnx" in outcome["broken"]
    assert result.stderr.splitlines()[-1] == f"gkd: {outcome['broken']}"


@pytest.mark.parametrize("key", ["student_digest", "classes"])
def test_lineage_inside_the_model_must_be_the_manifests(key, copy):
    path = copy / "deploy" / "model.onnx"
    model = onnx.load(path)
    for entry in model.metadata_props:
        if entry.key == key:
            entry.value = "another"
    path.write_bytes(model.SerializeToString(deterministic=True))
    manifest = json.loads((copy / "deploy" / "manifest.json").read_text())
    manifest["model"]["sha256"] = file_digest(path)
    write_json(copy / "deploy" / "manifest.json", manifest)
    assert f"{path}: the {key} inside it is not the one in manifest.json" in broken(copy)


@pytest.mark.parametrize(
    ("file", "change", "source"),
    [
        ("teacher/teacher.json", {"data_sha256": "0"}, "data"),
        ("baseline/training.json", {"data_sha256": "0"}, "data"),
        ("student/training.json", {"teacher_digest": "0"}, "teacher"),
        ("deploy/manifest.json", {"student_digest": "0"}, "student"),
        ("registration/version.json", {"manifest": "0"}, "deploy"),
        ("registration/gate.json", {"metrics_sha256": "0"}, "report"),
    ],
)
def test_a_step_that_was_made_from_another_is_named(file, change, source, copy):
    path = copy / file
    write_json(path, json.loads(path.read_text()) | change)
    assert f"{path.parent} was made from another {source} than {copy / source} holds" in broken(copy)


def test_a_bundle_is_what_it_describes(copy):
    bundle = as_bundle(copy / "deploy", "digits")
    model = bundle / "triton" / "digits" / "1" / "model.onnx"
    assert run(str(bundle), server=None, tracking=None).broken is None
    flip(model)
    assert str(model) in broken(bundle)
    model.unlink()
    assert str(model) in broken(bundle)


def test_what_is_no_run_is_wrong_usage(tmp_path):
    for target in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(GkdError) as error:
            run(str(target), server=None, tracking=None)
        assert error.value.exit_code == 2
    (tmp_path / "deploy").mkdir()
    for server in (
        "ftp://x", "http://", "http://user:secret@host", "http://[::1", "http://127.0.0.1:x", "http://a b/",
        "http://a/b c", "http://:80", "http://a\r\nb", "", "http://ä", "http://a?token=secret",
    ):  # fmt: skip
        with pytest.raises(GkdError, match=r"is no address: write http://HOST:PORT") as error:
            run(str(tmp_path), server=server, tracking=None)
        assert error.value.exit_code == 2
        assert "secret" not in str(error.value)
        assert "\n" not in str(error.value)


def test_a_token_that_is_none_is_wrong_usage_and_not_shown(tmp_path, monkeypatch):
    (tmp_path / "deploy").mkdir()
    for token in ("topsecret\nX-Other: 1", "top secret", "topsecrét", "\n", ""):
        monkeypatch.setenv("GKD_TOKEN", token)
        with pytest.raises(GkdError, match="GKD_TOKEN holds no token") as error:
            run(str(tmp_path), server="http://127.0.0.1:9", tracking=None)
        assert error.value.exit_code == 2
        assert "secr" not in str(error.value)


# --- the registry


@pytest.fixture
def with_store(copy, whole) -> Path:
    shutil.copy(whole / "mlflow.db", copy / "mlflow.db")
    return copy


def client(root: Path):
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{root / 'mlflow.db'}")


def test_a_registered_version_is_walked_by_its_alias(with_store):
    tracking = TrackingConfig(uri=f"sqlite:///{with_store / 'mlflow.db'}")
    chain = run("models:/gkd-student@challenger", server=None, tracking=tracking)
    assert chain.broken is None
    names = {link.name for link in chain.links}
    assert {"student → deploy", "deploy → report", "deploy → registry", "registry → model"} <= names
    client(with_store).set_model_version_tag("gkd-student", "1", "gkd.student", "0" * 64)
    assert "its tag gkd.student is not" in broken("models:/gkd-student/1", tracking=tracking)
    with pytest.raises(GkdError, match="version or alias 'champon' is unknown") as error:
        run("models:/gkd-student@champon", server=None, tracking=tracking)
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    ("file", "version"),
    [
        ("deploy/model.onnx", True),
        ("deploy/manifest.json", False),
        ("report/metrics.json", True),
        ("gate/correct.npy", False),
    ],
)
def test_one_changed_byte_of_what_the_registry_keeps_is_found(file, version, with_store):
    """Among the artifacts of the version's run, while all that is on disk beside it is whole."""
    tracking = TrackingConfig(uri=f"sqlite:///{with_store / 'mlflow.db'}")
    run_id = client(with_store).get_model_version("gkd-student", "1").run_id
    artifact = Path(client(with_store).get_run(run_id).info.artifact_uri) / file
    target = "models:/gkd-student@challenger" if version else str(with_store)
    content = artifact.read_bytes()
    try:
        flip(artifact, -2)
        message = broken(target, tracking=tracking)
        artifact.unlink()
        broken(target, tracking=tracking)
    finally:
        artifact.write_bytes(content)
    assert file.split("/")[0] in message
    assert "/tmp" not in message.replace(str(with_store), "")
    assert run(target, server=None, tracking=tracking).broken is None


def test_a_version_of_before_its_digests_were_kept(with_store):
    for tag in ("gkd.correct", "gkd.metrics"):
        client(with_store).delete_model_version_tag("gkd-student", "1", tag)
    chain = run(str(with_store), server=None, tracking=None)
    assert chain.broken is None
    assert {"registry → gate/correct.npy", "registry → report/metrics.json"} <= gaps(chain).keys()


def test_a_changed_tag_and_a_vanished_version_are_named(with_store):
    assert run(str(with_store), server=None, tracking=None).broken is None
    client(with_store).set_model_version_tag("gkd-student", "1", "gkd.data", "0" * 64)
    assert "its tag gkd.data is not" in broken(with_store)
    client(with_store).delete_model_version("gkd-student", "1")
    assert "version or alias '1' is unknown" in broken(with_store)


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("gate.json", lambda content: {"passed": not content["passed"]}),
        ("version.json", lambda content: {"run_id": "0" * 32}),
        ("version.json", lambda content: {"name": "other"}),
    ],
)
def test_what_the_registration_says_is_compared_with_the_registry(file, change, copy, whole):
    tracking = TrackingConfig(uri=f"sqlite:///{whole / 'mlflow.db'}")
    path = copy / "registration" / file
    content = json.loads(path.read_text())
    write_json(path, content | change(content))
    broken(copy, tracking=tracking)
    assert "registration → registry" in gaps(run(str(copy), server=None, tracking=None)), "nobody to ask"


def test_an_alias_that_is_not_the_registry_s_is_told(copy, whole):
    tracking = TrackingConfig(uri=f"sqlite:///{whole / 'mlflow.db'}")
    path = copy / "registration" / "version.json"
    assert "registration: alias" not in gaps(run(str(copy), server=None, tracking=tracking))
    write_json(path, json.loads(path.read_text()) | {"alias": "previous_champion"})
    chain = run(str(copy), server=None, tracking=tracking)
    assert chain.broken is None
    assert "says previous_champion" in gaps(chain)["registration: alias"]


# --- the server


@pytest.fixture
def served(whole) -> Iterator[Answering]:
    """A server of the run's model."""
    with Answering(json.dumps(reply(whole)).encode()) as running:
        yield running


def reply(root: Path, **change) -> dict:
    manifest = json.loads((root / "deploy" / "manifest.json").read_text())
    keys = ("classes", "data_sha256", "teacher_digest", "student_digest", "config_digest")
    facts = {key: manifest[key] for key in keys} | {"model_sha256": manifest["model"]["sha256"], "precision": "fp32"}
    return {"name": "gkd-student", "versions": ["1"], "parameters": facts | change}


def test_the_running_server_is_asked_by_name_and_token(copy, served, monkeypatch):
    chain = run(str(copy), server=served.address, tracking=None)
    assert chain.broken is None
    assert chain.links[-1].name == "deploy → server"
    monkeypatch.setenv("GKD_TOKEN", "sesame")
    assert run(str(copy / "deploy"), server=f"{served.address}/v2/models/mine", tracking=None).broken is None
    assert served.asked == [("/v2/models/gkd-student", None), ("/v2/models/mine", "Bearer sesame")]


def test_the_token_goes_to_the_named_server_alone(copy, served, monkeypatch):
    monkeypatch.setenv("GKD_TOKEN", "sesame")
    with Answering(served.reply) as elsewhere:
        for served.status in (301, 302, 307, 308):
            served.location = f"{elsewhere.address}/v2/models/gkd-student"
            run(str(copy / "deploy"), server=served.address, tracking=None)
    assert {token for _, token in elsewhere.asked} == {None}
    assert {token for _, token in served.asked} == {"Bearer sesame"}


def as_bundle(folder: Path, name: str) -> Path:
    """A deploy folder made into what `gkd bundle` writes, as far as `gkd verify` looks."""
    repository = folder / "triton" / name / "1"
    repository.mkdir(parents=True)
    shutil.copy(folder / "model.onnx", repository)
    files = [path for path in folder.rglob("*") if path.is_file()]
    listed = {path.relative_to(folder).as_posix(): file_digest(path) for path in files}
    write_json(folder / "bundle.json", {"gkd_version": "0", "name": name, "files": listed})
    return folder


def test_the_server_is_asked_by_the_bundles_name_the_versions_or_a_given_one(copy, with_store, served, monkeypatch):
    served.names = {"digits", "OTHER", "given"}
    bundle = as_bundle(copy / "deploy", "digits")
    assert run(str(bundle), server=served.address, tracking=None).broken is None
    assert run(str(bundle), server=served.address, tracking=None, name="given").broken is None
    tracking = TrackingConfig(uri=f"sqlite:///{with_store / 'mlflow.db'}")
    registry = client(with_store)
    registry.rename_registered_model("gkd-student", "OTHER")
    registry.set_registered_model_alias("OTHER", "champion", "1")
    assert run("models:/OTHER@champion", server=served.address, tracking=tracking).broken is None
    assert [path for path, _ in served.asked] == [f"/v2/models/{name}" for name in ("digits", "given", "OTHER")]
    message = broken(bundle, server=served.address, name="mine")
    assert "404" in message
    assert "--name" in message


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model_sha256": "0"}, "its model_sha256 is not the one in"),
        ({"student_digest": "0"}, "its student_digest is not the one in"),
        ({"classes": ["cat"]}, "its classes is not the one in"),
        ({"precision": "int4"}, "its model_sha256 is not the one in"),
    ],
)
def test_a_server_of_another_model_is_named(change, sentence, copy, served):
    served.reply = json.dumps(reply(copy, **change)).encode()
    message = broken(copy / "deploy", server=served.address)
    assert sentence in message
    assert served.address in message


@pytest.mark.parametrize("answer", [b"", b"{}", b"[" * 100_000, b'{"parameters": 3}'])
def test_a_server_that_says_nothing_of_use_is_named(answer, copy, served):
    served.reply = answer
    assert served.address in broken(copy / "deploy", server=served.address)


def test_a_server_that_refuses_or_is_not_there(copy, served):
    served.status = 404
    assert "404" in broken(copy / "deploy", server=served.address)
    served.status = 401
    assert "set GKD_TOKEN" in broken(copy / "deploy", server=served.address)
    assert "gkd serve" in broken(copy / "deploy", server="http://127.0.0.1:9")


# --- what it needs


def test_neither_torch_nor_mlflow_is_imported_for_folders(copy):
    program = (
        "import sys\nsys.argv = ['gkd', 'verify', '.']\nfrom pipelines.cli import app\napp(standalone_mode=False)\n"
        "heavy = {'torch', 'mlflow', 'onnx', 'sklearn', 'dvc', 'kfp', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=copy, capture_output=True, text=True, check=False,
        env=environment | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
