"""Where a served model comes from: a file, a folder, a registered version; and what is said when it does not."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from components import register
from components.model_source import FileSource, FolderSource, RegisteredSource, default_name, load_model, open_source
from gkd_core.config import parse_params
from gkd_core.errors import GkdError
from gkd_core.files import file_digest


@pytest.fixture(scope="module")
def deploy(tmp_path_factory, make_deploy) -> Path:
    return make_deploy(tmp_path_factory.mktemp("source") / "deploy")


@pytest.fixture(scope="module")
def registered(tmp_path_factory, finish, registration):
    """Two students as the register step leaves them: the store's address, and their deploy folders."""
    root = tmp_path_factory.mktemp("two")
    shutil.copy(registration.out.parent / "mlflow.db", root)
    params = parse_params({"tracking": {"uri": f"sqlite:///{root / 'mlflow.db'}"}})
    second = finish(root / "run", seed=1)
    register.run(**second._asdict(), out=root / "registration", params=params)
    return params.tracking.uri, [registration.folders.deploy, second.deploy]


def test_a_file(deploy):
    source = open_source(str(deploy / "model.onnx"))
    assert isinstance(source, FileSource)
    before = source.poll()
    assert source.poll() == before
    assert source.fetch().file == deploy / "model.onnx"
    assert source.fetch().sha256 is None


def test_a_folder(deploy, tmp_path):
    source = open_source(str(deploy))
    assert isinstance(source, FolderSource)
    found = source.fetch()
    assert found.sha256 == file_digest(deploy / "model.onnx")
    assert found.manifest == json.loads((deploy / "manifest.json").read_text())
    assert found.version is None

    moving = shutil.copytree(deploy, tmp_path / "deploy")
    source = FolderSource(moving)
    before = source.poll()
    (moving / "model.onnx").write_bytes(b"")
    assert source.poll() != before
    with pytest.raises(GkdError, match="sha256 differs"):
        source.fetch()
    shutil.rmtree(moving)
    with pytest.raises(GkdError, match=r"cannot be read .*: put it back, or run `gkd export` again"):
        source.poll()


def test_what_is_no_model_is_said_with_what_to_name(deploy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    shutil.copytree(deploy, tmp_path / "run" / "deploy")
    for model, sentence in (
        (
            tmp_path / "data",
            "data has no manifest.json, so it is no folder of `gkd export` or .*: name one of",
        ),
        (tmp_path / "run", f"name {tmp_path / 'run' / 'deploy'}$"),
        ("", "an empty name is neither an ONNX file nor"),
        (tmp_path / "nothing", "nothing is neither an ONNX file nor .*: name one of these$"),
        ("deploy", "deploy is neither an ONNX file nor .*; `dvc repro` makes deploy in a project"),
    ):
        with pytest.raises(GkdError, match=sentence):
            load_model(str(model))


def test_another_precision(deploy, tmp_path):
    folder = shutil.copytree(deploy, tmp_path / "deploy")
    manifest = json.loads((folder / "manifest.json").read_text())
    shutil.copy(folder / "model.onnx", folder / "model_int8.onnx")
    entry = {"file": "model_int8.onnx", "sha256": manifest["model"]["sha256"], "size_bytes": 1, "kept": True}
    (folder / "manifest.json").write_text(json.dumps(manifest | {"int8": entry}))
    found = open_source(str(folder), precision="int8").fetch()
    assert (found.file.name, found.precision) == ("model_int8.onnx", "int8")
    assert open_source(str(folder)).fetch().file.name == "model.onnx"
    assert load_model(str(folder), precision="int8").facts["precision"] == "int8"
    (folder / "manifest.json").write_text(
        json.dumps(manifest | {"int8": {"kept": False, "reason": "it lost too much"}})
    )
    with pytest.raises(GkdError, match="it lost too much"):
        load_model(str(folder), precision="int8")
    with pytest.raises(GkdError, match="is one file"):
        open_source(str(deploy / "model.onnx"), precision="int8")


def test_a_registered_version_by_alias_and_number(registered):
    uri, deploys = registered
    for address, version in (("models:/gkd-student@challenger", 2), ("models:/gkd-student/1", 1)):
        source = open_source(address, tracking_uri=uri)
        assert isinstance(source, RegisteredSource)
        assert source.poll() == version
        found = source.fetch()
        assert found.version == str(version)
        assert found.file.read_bytes() == (deploys[version - 1] / "model.onnx").read_bytes()
        assert found.sha256 == file_digest(found.file)
        loaded = load_model(address, tracking_uri=uri)  # nothing of it is left on the disk
        assert (loaded.version, loaded.sha256) == (str(version), found.sha256)


def test_an_alias_is_followed(registered):
    uri, _ = registered
    client, source = MlflowClient(uri), RegisteredSource("models:/gkd-student@moving", tracking_uri=uri)
    seen = []
    for number in ("1", "2", "1"):
        client.set_registered_model_alias("gkd-student", "moving", number)
        seen.append((source.poll(), source.fetch().version))
    assert seen == [(1, "1"), (2, "2"), (1, "1")]


def test_downloads_are_not_left_behind(registered, tmp_path, monkeypatch):
    import tempfile

    uri, _ = registered
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    source = RegisteredSource("models:/gkd-student/1", tracking_uri=uri)
    for _ in range(3):
        source.poll()
        assert source.fetch().file.is_file()
        assert len(list(tmp_path.glob("gkd-served-*"))) == 1
    del source
    assert list(tmp_path.glob("gkd-served-*")) == []


def test_what_is_not_registered_is_said(registered):
    uri, _ = registered
    for address, known in (
        ("models:/other@champion", "Known: gkd-student"),
        ("models:/gkd-student@nobody", "Known: .*champion, .*1, 2"),
        ("models:/gkd-student/99", "Known: .*champion, .*1, 2"),
    ):
        with pytest.raises(GkdError, match=known):
            RegisteredSource(address, tracking_uri=uri).poll()
    for address in ("models:/gkd-student", "models:/a/b/c", "models:/"):
        with pytest.raises(GkdError, match="is not of the form"):
            open_source(address, tracking_uri=uri)


def test_a_database_needs_more_than_the_small_mlflow(registered, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(GkdError, match="is a database, which mlflow-skinny cannot open"):
        RegisteredSource("models:/gkd-student/1", tracking_uri=registered[0]).poll()


def test_a_package_that_the_artifacts_place_needs_is_named(empty_store, tmp_path, monkeypatch):
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = MlflowClient(uri)
    run = client.create_run(client.create_experiment("far", artifact_location="s3://bucket/x")).info.run_id
    client.create_registered_model("far")
    client.create_model_version("far", "s3://bucket/x", run, await_creation_for=0)
    source = RegisteredSource("models:/far/1", tracking_uri=uri)
    source.poll()
    for module in ("boto3", "botocore", "botocore.exceptions"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(GkdError, match=r"needs the Python package boto3, which is not installed: `pip install boto3`"):
        source.fetch()


def test_a_registry_that_is_away_is_said_without_its_password(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(GkdError, match="does not answer") as told:
        RegisteredSource("models:/gkd-student/1", tracking_uri="http://user:hidden@127.0.0.1:9").poll()
    assert "hidden" not in str(told.value)
    assert "\n" not in str(told.value)


def test_a_deploy_folder_other_than_the_registered_one_is_refused(registered, tmp_path):
    uri, deploys = registered
    client = MlflowClient(uri)
    run = client.create_run(client.search_experiments()[0].experiment_id)
    version = client.create_model_version("gkd-student", str(tmp_path), run.info.run_id, await_creation_for=0)
    source = RegisteredSource(f"models:/gkd-student/{version.version}", tracking_uri=uri)
    source.poll()
    with pytest.raises(GkdError, match="has no deploy folder"):
        source.fetch()
    client.log_artifacts(run.info.run_id, str(deploys[0]), "deploy")
    source.poll()
    with pytest.raises(GkdError, match="is not the one that was registered"):
        source.fetch()


def test_names(tmp_path):
    assert default_name("deploy") == "gkd-student"
    assert default_name(str(tmp_path)) == "gkd-student"
    (tmp_path / "bundle.json").write_text('{"name": "birds", "files": {}}')
    assert default_name(str(tmp_path)) == "birds"
    assert default_name("models:/birds@champion") == "birds"
