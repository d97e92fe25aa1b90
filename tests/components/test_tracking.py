"""The tracking store: its address, servers that are down, silent, unwilling or something else, networks taken back."""

import contextlib
import http.server
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from components import register, tracking
from gkd_core.config import TrackingConfig, parse_params
from gkd_core.errors import GkdError
from gkd_core.files import folder_digest
from gkd_core.models.network import load_network
from tests.mlflow_server import MlflowServer, free_port


@pytest.fixture(autouse=True)
def _no_surroundings(monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(name, raising=False)


def settings(uri: str, attempts: int = 1) -> TrackingConfig:
    return parse_params({"tracking": {"uri": uri, "attempts": attempts}}).tracking


# The address.


def test_the_address_comes_from_the_parameters_then_the_environment(monkeypatch):
    assert tracking.resolve_uri(None) == "sqlite:///mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://elsewhere")
    assert tracking.resolve_uri(None) == "https://elsewhere"
    assert tracking.resolve_uri("http://here:5000") == "http://here:5000"
    for uri in ("postgresql+psycopg2://u:p@h/db", "databricks", "databricks://profile"):
        assert tracking.resolve_uri(uri) == uri


@pytest.mark.parametrize("uri", ["./mlruns", "mlruns", "file:///tmp/mlruns", "file:mlruns", "/tmp/mlruns"])
def test_a_folder_is_no_tracking_store(uri, monkeypatch):
    with pytest.raises(GkdError, match=r"tracking\.uri is the folder .*take a database such as sqlite:///mlflow\.db"):
        tracking.resolve_uri(uri)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(GkdError, match="MLFLOW_TRACKING_URI is the folder"):
        tracking.resolve_uri(None)


def test_an_unknown_kind_of_address():
    with pytest.raises(GkdError, match=r"kind of address 'htpp' is unknown; did you mean 'http'\?"):
        tracking.resolve_uri("htpp://server")


def test_the_surroundings_are_left_as_they_were(store_uri, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere")
    for name in tracking.WORKING:  # whoever ran in this process before may have set them
        monkeypatch.delenv(name, raising=False)
    before = dict(os.environ)
    with tracking.connect(settings(store_uri)):
        assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "60"
    assert dict(os.environ) == before


def test_the_user_s_own_http_settings_stand(store_uri, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "7")
    with tracking.connect(settings(store_uri)):
        assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "7"


def test_a_first_command_makes_the_database_and_says_nothing_that_is_not_ours(made_store):
    file, process = made_store
    assert process.returncode == 0, process.stderr
    assert process.stderr == f"making the tracking store sqlite:///{file} (some seconds)\n"
    assert process.stdout.splitlines()[-1] == "[]"
    assert [path.name for path in file.parent.glob("ml*")] == ["mlflow.db"]


# Stores that do not answer.


def test_a_server_that_is_down_is_asked_again_then_named_in_one_sentence(capfd):
    port = free_port()
    with (
        pytest.raises(GkdError) as error,
        tracking.connect(settings(f"http://me:secret@127.0.0.1:{port}", attempts=2)),
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
        tracking.connect(settings("postgresql://me:secret@host/db")),
    ):
        pass


def test_a_database_without_its_driver():
    with (
        pytest.raises(GkdError, match=r"needs a driver that is not installed \(No module named 'psycopg"),
        tracking.connect(settings("postgresql+psycopg://me:secret@host/db")),
    ):
        pass


def test_a_file_that_is_no_database(tmp_path):
    (tmp_path / "mlflow.db").write_text("these are not the tables you are looking for" * 100)
    with (
        pytest.raises(GkdError, match=r"does not do what is asked \(file is not a database\)"),
        tracking.connect(settings(f"sqlite:///{tmp_path / 'mlflow.db'}")),
    ):
        pass


@contextlib.contextmanager
def answering(status: int, body: bytes) -> Iterator[str]:
    """A web server that gives everybody the same answer."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self):
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = answer

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("status", "body", "sentence"),
    [
        (401, b"who are you", "refuses us .*401.*set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"),
        (403, b'{"error_code": "PERMISSION_DENIED", "message": "not you"}', "refuses us .*not you"),
        (404, b"no such page", "is not an MLflow tracking server"),
        (200, b"<html>welcome</html>", "is not an MLflow tracking server"),
        (503, b"come back later", "does not answer .*503"),
    ],
)
def test_answers_of_the_wrong_kind(status, body, sentence):
    with answering(status, body) as uri, pytest.raises(GkdError, match=sentence), tracking.connect(settings(uri)):
        pass


# A real server.


@pytest.fixture(scope="module")
def server(tmp_path_factory, empty_store) -> Iterator[MlflowServer]:
    folder = tmp_path_factory.mktemp("server")
    (folder / "mlflow.db").write_bytes(empty_store.read_bytes())
    running = MlflowServer(folder)
    running.start()
    yield running
    running.kill()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_server_killed_midway_loses_nothing_and_doubles_nothing(server, tmp_path, finish, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
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
    with tracking.connect(params.tracking) as store:
        kept = store.download(store.version("champion"), "deploy/model.onnx", tmp_path)
    assert kept.read_bytes() == (folders.deploy / "model.onnx").read_bytes()
    stored = list((server.folder / "artifacts").rglob(f"{version.source.rpartition('/')[2]}/artifacts/model.onnx"))
    assert [file.read_bytes() for file in stored] == [kept.read_bytes()]
    assert folder_digest(tracking.download_network("models:/gkd-student/1", params.tracking)) == folder_digest(
        folders.student
    )


def test_a_server_that_hangs_is_asked_again_until_it_answers(server, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    notes = []

    def wake(text):
        notes.append(text)
        server.send(signal.SIGCONT)

    monkeypatch.setattr(tracking, "_note", wake)
    server.send(signal.SIGSTOP)
    try:
        with tracking.connect(settings(server.uri, attempts=10)) as store:
            assert [version.number for version in store.versions()] == [1]
    finally:
        server.send(signal.SIGCONT)
    assert notes
    assert all("trying again in" in note for note in notes)


# A registered student as a teacher.


FRESH = """
import sys
from pathlib import Path
from components.tracking import download_network
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

    here = tracking.download_network("models:/gkd-student/1", settings(store_uri))
    assert load_network(here).spec == load_network(folders.student).spec

    weights = Path(MlflowClient(store_uri).get_run(_run_of(store_uri)).info.artifact_uri) / "network/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(GkdError, match="is not the one that was registered: damaged"):
        tracking.download_network("models:/gkd-student@champion", settings(store_uri))


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
            tracking.download_network(uri, settings(store_uri))
