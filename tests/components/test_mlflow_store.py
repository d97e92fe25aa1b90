"""The tracking store: its address, servers that are down, silent, unwilling or something else, networks taken back."""

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from mlflow import MlflowClient

from components import mlflow_store, register
from gkd_core.config import TrackingConfig, parse_params
from gkd_core.errors import GkdError
from gkd_core.export.manifest import read_manifest
from gkd_core.files import file_digest, folder_digest
from gkd_core.models.network import load_network
from tests import forked
from tests.components.conftest import Answering, Finished
from tests.mlflow_server import MlflowServer, free_port


def settings(uri: str, attempts: int = 1) -> TrackingConfig:
    return parse_params({"tracking": {"uri": uri, "attempts": attempts}}).tracking


def connected(uri: str, attempts: int = 1, *, create: bool = True):
    return mlflow_store.connect(settings(uri, attempts), again="gkd register", create=create)


# The address.


def test_the_address_comes_from_the_parameters_then_the_environment(monkeypatch):
    assert mlflow_store.resolve_uri(None) == "sqlite:///mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://elsewhere")
    assert mlflow_store.resolve_uri(None) == "https://elsewhere"
    assert mlflow_store.resolve_uri("http://here:5000") == "http://here:5000"


@pytest.mark.parametrize("place", [".dvc/tmp/exps/tmpx1", ".dvc/tmp/exps/standalone/tmpx2"])
@pytest.mark.parametrize("inner", ["", "projects/birds"])
def test_a_relative_database_in_the_clone_of_an_experiment_is_the_checkout_s(place, inner, tmp_path, monkeypatch):
    checkout = tmp_path / "checkout" / inner
    clone = checkout / place / inner / "below"
    clone.mkdir(parents=True)
    for folder in (checkout, clone.parent):
        (folder / ".dvc").mkdir(exist_ok=True)
    monkeypatch.chdir(clone)
    assert mlflow_store.resolve_uri(None) == f"sqlite:///{checkout}/below/mlflow.db"
    assert (
        mlflow_store.resolve_uri("sqlite:///runs/x.db?timeout=9") == f"sqlite:///{checkout}/below/runs/x.db?timeout=9"
    )
    for elsewhere in ("sqlite:////data/mlflow.db", "sqlite:///:memory:", "http://server"):
        assert mlflow_store.resolve_uri(elsewhere) == elsewhere
    monkeypatch.chdir(checkout)
    assert mlflow_store.resolve_uri(None) == "sqlite:///mlflow.db"


def test_the_surroundings_are_left_as_they_were_and_the_user_s_own_settings_stand(store_uri, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere")
    for name in mlflow_store.WORKING:  # whoever ran in this process before may have set them
        monkeypatch.delenv(name, raising=False)
    for given, used in ((None, "60"), ("7", "7")):
        if given is not None:
            monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", given)
        before = dict(os.environ)
        with connected(store_uri):
            assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == used
        assert dict(os.environ) == before


# A store that is not there.


def test_reading_makes_no_store(tmp_path):
    missing, empty = tmp_path / "none" / "mlflow.db", tmp_path / "empty.db"
    empty.touch()
    for file in (missing, empty):
        with (
            pytest.raises(GkdError, match=rf"no tracking store at sqlite:///{file}.*gkd register.*tracking\.uri"),
            connected(f"sqlite:///{file}", create=False),
        ):
            pass
        with pytest.raises(GkdError, match="no tracking store"):
            mlflow_store.download_network("models:/gkd-student@champion", settings(f"sqlite:///{file}"))
    assert list(tmp_path.rglob("*")) == [empty]
    assert empty.stat().st_size == 0


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (["registry", "list"], "--set tracking.uri="),
        (["registry", "promote", "1"], "--set tracking.uri="),
        (["registry", "rollback"], "--set tracking.uri="),
        (["verify", "models:/gkd-student@champion"], "--set tracking.uri="),
        (["serve", "models:/gkd-student@champion", "--port", "0"], "--tracking-uri"),
        (["predict", "digit.png", "--model", "models:/gkd-student@champion"], "--tracking-uri"),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else "",
)
def test_no_command_that_reads_makes_a_store_and_its_own_option_is_advised(command, option, tmp_path):
    (tmp_path / "params.yaml").write_text("{}")
    result = forked.gkd(*command, cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    assert "sqlite:///mlflow.db" in result.stderr
    assert [name for name in ("--set tracking.uri=", "--tracking-uri") if name in result.stderr] == [option]
    assert "Traceback" not in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_registers_that_start_at_once_make_one_store_and_one_version_a_run(tmp_path, finish):
    (tmp_path / "params.yaml").write_text("{}")
    for seed in range(2):
        finish(tmp_path / f"run{seed}", seed=seed)

    def register_one(number: int):
        folders = [f"--{name}={tmp_path / f'run{number // 4}' / name}" for name in Finished._fields]
        return forked.gkd("register", *folders, f"--out=registration{number}", cwd=tmp_path, timeout=800)

    with ThreadPoolExecutor(5) as pool:
        results = list(pool.map(register_one, range(5)))  # four of one run, one of another
    assert [result.returncode for result in results] == [0] * 5, [result.stderr for result in results]
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert sorted(int(made.version) for made in client.search_model_versions("name = 'gkd-student'")) == [1, 2]
    assert "champion" in client.get_registered_model("gkd-student").aliases
    written = [json.loads((tmp_path / f"registration{n}" / "version.json").read_text()) for n in range(5)]
    assert {tuple(version["runs"]["student"]) for version in written[:4]} == {(written[0]["run_id"],)}
    assert {version["version"] for version in written[:4]} == {written[0]["version"]} != {written[4]["version"]}
    experiments = [found.experiment_id for found in client.search_experiments()]
    assert {run.info.status for run in client.search_runs(experiments)} == {"FINISHED"}
    assert len(client.search_logged_models(experiments)) == 2
    assert sum("making the tracking store" in result.stderr for result in results) == 1
    assert not list(tmp_path.glob(".mlflow-*"))


# Runs.


def record(key: str, **params) -> mlflow_store.RunRecord:
    return mlflow_store.RunRecord(key, "student resnet8", {"gkd.role": "student"}, params, [], {}, {})


def test_a_parameter_above_mlflow_s_limit_is_kept_whole_beside_the_run(store_uri):
    classes = [f"class {number} ✓" for number in range(1000)]
    with connected(store_uri) as store:
        run_id = store.log_run(record("k", classes=classes, text="x" * 6001, short="x" * 6000))
    client = MlflowClient(store_uri)
    params = client.get_run(run_id).data.params
    assert params["short"] == "x" * 6000
    assert json.loads(params["classes"]) == {
        "length": 1000,
        "sha256": hashlib.sha256(json.dumps(classes, ensure_ascii=False).encode()).hexdigest(),
        "artifact": "long_params.json",
    }
    assert json.loads(params["text"])["length"] == 6001
    whole = json.loads(Path(client.download_artifacts(run_id, "long_params.json")).read_text())
    assert whole == {"classes": classes, "text": "x" * 6001}


@pytest.mark.parametrize(
    ("alone", "minutes", "status"), [(True, 0, "FAILED"), (False, 0, "RUNNING"), (False, 20, "FAILED")]
)
def test_a_run_that_another_may_be_writing_is_left_to_it(alone, minutes, status, store_uri):
    client = MlflowClient(store_uri)
    began = int((time.time() - 60 * minutes) * 1000)
    other = client.create_run("0", tags={"gkd.key": "k"}, start_time=began).info.run_id
    with connected(store_uri, create=alone) as store:
        assert store.log_run(record("k")) != other
    assert client.get_run(other).info.status == status


def test_a_version_and_a_model_that_another_makes_meanwhile_stand(tmp_path, finish, store_uri, monkeypatch):
    client, folders = MlflowClient(store_uri), finish(tmp_path / "run")
    client.create_registered_model("gkd-student")
    manifest, tags = read_manifest(folders.deploy), {"gkd.manifest": "0" * 64}
    half = client.create_logged_model("0", tags=tags)  # theirs, while ours is logged
    log_model = mlflow_store.Store._log_model

    def meanwhile(*arguments):
        made = log_model(*arguments)
        client.create_model_version("gkd-student", "/models/theirs", tags=tags)
        return made

    monkeypatch.setattr(mlflow_store.Store, "_log_model", meanwhile)
    with connected(store_uri, create=False) as store:
        run_id = store.log_run(record("k"))
        assert store.register(run_id, folders.deploy / "model.onnx", manifest, tags).number == 1
        assert [version.number for version in store.versions()] == [1]
    assert client.get_logged_model(half.model_id).status == "PENDING"


def test_the_same_key_is_the_same_run_whatever_the_platform_opened(store_uri, monkeypatch):
    client = MlflowClient(store_uri)
    opened = [client.create_run(client.create_experiment(name)).info for name in ("first", "second")]
    surroundings = [
        {},
        {"MLFLOW_EXPERIMENT_ID": opened[0].experiment_id},
        {"MLFLOW_RUN_ID": opened[0].run_id, "MLFLOW_EXPERIMENT_ID": opened[0].experiment_id},
        {"MLFLOW_RUN_ID": opened[1].run_id},
        {"MLFLOW_RUN_ID": "0" * 32},
    ]
    for first in range(len(surroundings)):
        second, made = (first + 2) % len(surroundings), []
        for number in (first, second):
            with monkeypatch.context() as patch:
                for name, value in surroundings[number].items():
                    patch.setenv(name, value)
                with connected(store_uri) as store:
                    made.append(store.log_run(record(f"{first} then {second}")))
        assert made[0] == made[1], (first, second)
        info = client.get_run(made[0])
        parent = surroundings[first].get("MLFLOW_RUN_ID", "0" * 32)
        assert info.data.tags.get("mlflow.parentRunId") == (None if parent == "0" * 32 else parent)


def test_an_experiment_that_is_not_there_or_deleted_is_said(store_uri, monkeypatch):
    client = MlflowClient(store_uri)
    deleted = client.create_experiment("gone")
    run_id = client.create_run(deleted).info.run_id
    client.delete_experiment(deleted)
    for variables, said in (
        ({"MLFLOW_EXPERIMENT_ID": "987654"}, "MLFLOW_EXPERIMENT_ID is '987654', which .* does not have"),
        ({"MLFLOW_EXPERIMENT_ID": deleted}, "'gone' was deleted in .*MLFLOW_EXPERIMENT_ID"),
        ({"MLFLOW_RUN_ID": run_id}, "'gone' was deleted in .*MLFLOW_RUN_ID"),
    ):
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            with connected(store_uri) as store, pytest.raises(GkdError, match=said):
                store.log_run(record("k"))
    named = settings(store_uri).model_copy(update={"experiment": "gone"})
    with (
        mlflow_store.connect(named, again="gkd register") as store,
        pytest.raises(GkdError, match=r"deleted .*tracking\.experiment"),
    ):
        store.log_run(record("k"))


# Stores that do not answer.


def test_a_server_that_is_down_is_asked_again_then_named_in_one_sentence(capfd):
    port = free_port()
    with (
        pytest.raises(GkdError) as error,
        connected(f"http://me:secret@127.0.0.1:{port}", attempts=2),
    ):
        pass
    assert str(error.value) == (
        f"the tracking store http://me:***@127.0.0.1:{port} does not answer ([Errno 111] Connection refused): when it "
        "is back, nothing is lost, run `gkd register` again"
    )
    notes = capfd.readouterr().err.splitlines()
    assert notes == [
        f"http://me:***@127.0.0.1:{port} does not answer ([Errno 111] Connection refused), trying again in 1 s"
    ]


def test_a_database_server_that_is_down(monkeypatch):
    # No driver for a database server is installed here; what it raises when nobody listens is the same for all.
    import sqlalchemy

    def refuse(address):
        raise sqlalchemy.exc.OperationalError("connect", {}, ConnectionRefusedError(111, "Connection refused"))

    monkeypatch.setattr(sqlalchemy, "create_engine", refuse)
    with (
        pytest.raises(GkdError, match=r"postgresql://me:\*\*\*@host/db does not answer \(.*Connection refused.*\)"),
        connected("postgresql://me:secret@host/db"),
    ):
        pass


@pytest.mark.parametrize(
    ("uri", "sentence"),
    [
        ("./mlruns", "sqlite"),
        ("htpp://server", "sqlite"),
        ("postgresql+psycopg://me:secret@host/db", "needs the Python package psycopg, which is not installed"),
        ("sqlite:///junk.db", r"does not do what is asked \(file is not a database\)"),
    ],
)
def test_an_address_that_cannot_be_a_store(uri, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("junk.db").write_text("these are not the tables you are looking for" * 100)
    with pytest.raises(GkdError, match=sentence), connected(uri):
        pass


@pytest.mark.parametrize(
    ("status", "body", "sentence"),
    [
        (401, b"who are you", "refuses us .*401.*set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"),
        (403, b'{"error_code": "PERMISSION_DENIED", "message": "not you"}', "refuses us .*not you"),
        (403, b"Invalid Host header - possible DNS rebinding attack detected", "--allowed-hosts 127.0.0.1:[0-9]+"),
        (404, b"no such page", "is not an MLflow tracking server"),
        (200, b"<html>welcome</html>", "is not an MLflow tracking server"),
        (503, b"come back later", "does not answer .*503"),
    ],
)
def test_answers_of_the_wrong_kind(status, body, sentence):
    with Answering(body, status) as server, pytest.raises(GkdError, match=sentence), connected(server.address):
        pass


def test_a_server_is_asked_before_anything_is_trained(store_uri):
    """By the first task of the pipeline: what register would be refused, it is refused."""
    refusal = b'{"error_code": "PERMISSION_DENIED", "message": "not you"}'
    with Answering(refusal, 403) as server, pytest.raises(GkdError, match=r"refuses us .*not you"):
        mlflow_store.try_out(settings(server.address))
    mlflow_store.try_out(settings("sqlite:///nowhere.db"))  # a database is of this machine
    with connected(store_uri) as store:
        for _ in range(2):
            store.try_out()
    client = MlflowClient(store_uri)
    assert client.get_experiment_by_name("gkd") is not None
    assert client.get_registered_model("gkd-student").latest_versions == []


# A real server.


@pytest.fixture(scope="module")
def server(tmp_path_factory, empty_store) -> Iterator[MlflowServer]:
    folder = tmp_path_factory.mktemp("server")
    (folder / "mlflow.db").write_bytes(empty_store.read_bytes())
    running = MlflowServer(folder)
    running.start()
    yield running
    running.kill()


SMALL = """
import sys
for name in "sqlalchemy alembic flask docker pandas pyarrow scipy sklearn matplotlib torch".split():
    sys.modules[name] = None
from components.model_source import load_model
print(load_model("models:/gkd-student@champion", tracking_uri=sys.argv[1]).sha256)
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_server_killed_midway_loses_nothing_and_doubles_nothing(server, tmp_path, finish, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setattr(mlflow_store, "ABANDONED", 0)
    params = parse_params({"tracking": {"uri": server.uri, "attempts": 2}})
    folders = finish(tmp_path / "run", params=params)
    log_artifacts, calls = MlflowClient.log_artifacts, []

    def kill_midway(self, *arguments, **options):
        calls.append(arguments)
        if len(calls) == 2:  # in the middle of the second run
            server.kill()
        return log_artifacts(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_artifacts", kill_midway)
        with pytest.raises(
            GkdError, match=r"does not answer \(.*\): when it is back, nothing is lost, run `gkd register`"
        ):
            register.run(**folders._asdict(), out=tmp_path / "out", params=params)
    with pytest.raises(GkdError, match="Connection refused"):
        register.run(**folders._asdict(), out=tmp_path / "out", params=params)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"], "nothing half-written"

    server.start()
    summary = register.run(**folders._asdict(), out=tmp_path / "out", params=params)
    assert summary["registry"] == {"name": "gkd-student", "version": 1, "alias": "champion"}
    client = MlflowClient(server.uri)
    experiments = [e.experiment_id for e in client.search_experiments()]
    runs = client.search_runs(experiments)
    complete = [run for run in runs if run.data.tags.get("gkd.complete") == "true"]
    assert sorted(run.data.tags["gkd.role"] for run in complete) == ["baseline", "student", "teacher"]
    assert [run.info.status for run in runs if run not in complete] == ["FAILED"]
    assert len(client.search_model_versions("name = 'gkd-student'")) == 1
    assert len(client.search_logged_models(experiments)) == 1
    for run in complete:
        assert len(client.get_metric_history(run.info.run_id, "train_loss")) == 3

    # The same bytes through the server's own artifact store.
    version = client.get_model_version("gkd-student", "1")
    with mlflow_store.connect(params.tracking, again="gkd register") as store:
        copy = store.download(store.version("champion"), "deploy/model.onnx", tmp_path)
    assert copy.read_bytes() == (folders.deploy / "model.onnx").read_bytes()
    stored = list((server.folder / "artifacts").rglob(f"{version.source.rpartition('/')[2]}/artifacts/model.onnx"))
    assert [file.read_bytes() for file in stored] == [copy.read_bytes()]
    # A server has mlflow-skinny, without what the whole MLflow brings.
    small = [sys.executable, "-c", SMALL, server.uri]
    result = subprocess.run(small, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert result.stdout.split() == [file_digest(folders.deploy / "model.onnx")], result.stderr
    assert folder_digest(mlflow_store.download_network("models:/gkd-student/1", params.tracking)) == folder_digest(
        folders.student
    )


@pytest.mark.slow
def test_a_real_server_that_does_not_know_its_own_name_is_told_of_allowed_hosts(server):
    other = f"127.1:{server.port}"  # the same machine by a name that the server was not started for
    with pytest.raises(GkdError, match=f"--allowed-hosts {other}"), connected(f"http://{other}"):
        pass


def test_a_server_that_hangs_is_asked_again_until_it_answers(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    notes, awake = [], threading.Event()

    def wake(text):
        notes.append(text)
        awake.set()

    monkeypatch.setattr(mlflow_store, "_note", wake)
    with Answering(b"{}", awake=awake) as server, connected(server.address, attempts=10):
        pass
    assert notes
    assert all("trying again in" in note for note in notes)


# A registered student as a teacher.


FRESH = """
import sys
from pathlib import Path
from components.mlflow_store import download_network
from gkd_core.config import TrackingConfig
from gkd_core.files import folder_digest
folder = download_network("models:/gkd-student@champion", TrackingConfig())
print(folder, folder_digest(folder))
import mlflow, numpy
model = mlflow.pyfunc.load_model("models:/gkd-student@champion")
print(model.predict({"image": numpy.ones((2, 8, 8, 1), numpy.uint8)})["logits"].shape)
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_fresh_process_takes_the_network_and_mlflow_serves_the_model(tmp_path, finish, store_uri):
    folders = finish(tmp_path / "run")
    register.run(**folders._asdict(), out=tmp_path / "out", params=parse_params({"tracking": {"uri": store_uri}}))
    result = subprocess.run(
        [sys.executable, "-c", FRESH],
        env=os.environ | {"MLFLOW_TRACKING_URI": store_uri, "PYTHONPATH": str(Path(__file__).parents[2])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    folder, digest, *_ = result.stdout.split()
    assert digest == folder_digest(folders.student)
    assert not Path(folder).exists(), "the copy went with the process"
    assert result.stdout.splitlines()[-1] == "(2, 10)"

    here = mlflow_store.download_network("models:/gkd-student/1", settings(store_uri))
    assert load_network(here).spec == load_network(folders.student).spec

    weights = Path(MlflowClient(store_uri).get_run(_run_of(store_uri)).info.artifact_uri) / "network/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(GkdError, match="is not the one that was registered: damaged"):
        mlflow_store.download_network("models:/gkd-student@champion", settings(store_uri))


def _run_of(uri: str) -> str:
    return MlflowClient(uri).get_model_version("gkd-student", "1").run_id


def test_no_such_network(store_uri):
    client = MlflowClient(store_uri)
    client.create_registered_model("theirs")
    client.create_model_version("theirs", "/models/1")
    run = client.create_run("0")
    client.create_model_version("theirs", "/models/2", run_id=run.info.run_id)
    client.set_registered_model_alias("theirs", "champion", "1")
    for uri, sentence in {
        "models:/their@champion": r"registered model 'their' is unknown; did you mean 'theirs'\?",
        "models:/theirs@champoin": r"'champoin' is unknown; did you mean 'champion'\?",
        "models:/theirs/3": r"version or alias '3' is unknown; Known: champion, 1, 2",
        "models:/theirs@champion": r"models:/theirs@champion \(version 1\) has no network folder",
        "models:/theirs/2": r"\(version 2\) has no network folder",
        "models:/theirs": "is not of the form models:/NAME@ALIAS or models:/NAME/VERSION",
        "models:/theirs/latest": "is not of the form",
    }.items():
        with pytest.raises(GkdError, match=sentence):
            mlflow_store.download_network(uri, settings(store_uri))
