"""`gkd pipeline submit|schedule|status|list` as real processes against a server that checks what it is asked."""

import json
import os
import re
import signal
import socket
import ssl
import subprocess
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from gkd_core.errors import GkdError
from pipelines.commands.options import Arguments
from pipelines.commands.pipeline import Task
from pipelines.kubeflow import client, runs, schedules
from pipelines.kubeflow.client import Access
from pipelines.kubeflow.compile import compile_pipeline
from pipelines.kubeflow.package import Work, check, unchecked
from pipelines.kubeflow.schedules import Clock
from pipelines.kubeflow.task import STOPPED
from tests import forked
from tests.pipelines.json_server import JsonServer
from tests.pipelines.kfp_server import KfpServer

ROOT = Path(__file__).parents[2]
SECRET = "s3cr3t-t0k3n"


def gkd(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("KF_PIPELINES", "GKD_", "HTTP", "http"))}
    return forked.gkd("pipeline", *arguments, cwd=cwd, env=kept | {"COLUMNS": "200", "HOME": str(cwd)} | environment)


def answer(result: subprocess.CompletedProcess[str], code: int = 0):
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def refused(result: subprocess.CompletedProcess[str], *parts: str) -> str:
    assert result.returncode == 2, result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("gkd: ")
    for part in parts:
        assert part in lines[0]
    return lines[0]


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    """A small compiled pipeline with one argument that has a default and one that has none."""
    from kfp import compiler, dsl

    @dsl.component(base_image="registry.example/gkd:test", install_kfp_package=False)
    def work(params: dict, epochs: int) -> str:
        return str(params)

    @dsl.pipeline(name="tiny")
    def tiny(epochs: int, params: dict = {"train": {"epochs": 1}}, overrides: list = []):  # noqa: B006
        work(params=params, epochs=epochs)

    file = tmp_path_factory.mktemp("package") / "tiny.yaml"
    compiler.Compiler().compile(tiny, str(file))
    return file


def test_the_pipeline_is_compiled_and_submitted_and_waited_for(tmp_path):
    (tmp_path / "params.yaml").write_text("train: {epochs: 1}\n")
    with KfpServer(token=SECRET) as server:
        result = gkd(
            "submit", "--host", server.host, "--profile", "gpu", "--set", "train.epochs=2", "--mlflow",
            "http://mlflow:5000", "--dvc-repo", "https://git.example.org/photos.git", "--argument", "dvc_rev=photos-1",
            "--dvc-path", "images", "--data-source", "folder",
            "--run-name", "nightly", "--experiment", "digits", "--wait", "--poll", "0.05",
            cwd=tmp_path, GKD_KFP_TOKEN=SECRET,
        )  # fmt: skip
    facts = answer(result)
    run = server.runs[facts["run_id"]]
    assert facts["state"] == "SUCCEEDED"
    assert [task["name"] for task in facts["tasks"]] == ["prepare", "teacher", "distill"]
    assert {task["state"] for task in facts["tasks"]} == {"SUCCEEDED"}
    assert run["display_name"] == "nightly"
    assert [e["display_name"] for e in server.experiments.values()] == ["digits"]
    assert run["runtime_config"]["parameters"] == {
        "mlflow": "http://mlflow:5000", "dvc_repo": "https://git.example.org/photos.git", "dvc_rev": "photos-1",
        "dvc_path": "images", "data_source": "folder",
    }  # fmt: skip
    sent = run["pipeline_spec"]["pipeline_spec"]["root"]["inputDefinitions"]["parameters"]
    assert sent["params"]["defaultValue"] == {"train": {"epochs": 1}}
    assert sent["overrides"]["defaultValue"] == ["train.epochs=2"]
    assert "nvidia.com/gpu" in json.dumps(run["pipeline_spec"]["pipeline_spec"])
    assert "gkd-work" in json.dumps(run["pipeline_spec"]["platform_spec"])
    assert not server.refused
    told = result.stderr.splitlines()
    (unseen,) = [line for line in told if line.startswith("not looked at from here")]
    assert "the claim gkd-work, the secrets gkd-mlflow, gkd-object-storage, and the MLflow server" in unseen
    assert told.index("teacher: running") < told.index("teacher: succeeded") < told.index("run: succeeded")
    assert SECRET not in result.stdout + result.stderr + json.dumps(run)
    assert not (tmp_path / ".config").exists()


def test_a_failed_run_ends_in_one_and_names_the_task(tmp_path, package):
    submit = ["submit", "--package", str(package), "--argument", "epochs=3", "--wait", "--poll", "0.05"]
    with KfpServer(fail="teacher") as server:
        result = gkd(*submit, "--host", server.host, "--params", "p.yaml", cwd=tmp_path)
        assert "p.yaml" in refused(result)
        (tmp_path / "p.yaml").write_text("train: {epochs: 5}\n")
        result = gkd(
            *submit,
            "--host",
            server.host,
            "--params",
            str(tmp_path / "p.yaml"),
            "--set",
            "train.epochs=6",
            cwd=tmp_path,
        )
        facts = answer(result, code=1)
        (run,) = server.runs.values()
        assert run["runtime_config"]["parameters"] == {
            "epochs": 3, "params": {"train": {"epochs": 5}}, "overrides": ["train.epochs=6"],
        }  # fmt: skip
        assert facts["state"] == "FAILED"
        words = "teacher has no more room on the volume"
        assert facts["tasks"][1:] == [
            {"name": "teacher", "state": "FAILED", "error": words},
            {"name": "distill", "state": "NOT_RUN", "error": None},
        ]
        last = result.stderr.splitlines()[-1]
        assert last.startswith(
            f"gkd: run {facts['run_id']} failed in teacher ({words}): its tasks' logs are at {server.host}/#/runs/"
        )

        # By name as by identifier, and a look is no failure.
        again = gkd("status", facts["name"], "--host", server.host, cwd=tmp_path)
        assert answer(again)["run_id"] == facts["run_id"]
        assert words in again.stderr
        assert re.search(rf"teacher\W+failed\W+{words}", again.stdout)
        assert re.search(r"distill\W+not run", again.stdout)

        shown = gkd("logs", facts["name"], "--host", server.host, cwd=tmp_path)
        assert shown.returncode == 0
        assert shown.stdout.splitlines()[:2] == ["gkd: prepare has something to remark", "prepare works"]
        assert shown.stdout.splitlines()[-1] == f"gkd: {words}"
        assert shown.stderr.splitlines() == ["prepare:", "teacher:", "teacher, try 2:"]
        assert not server.refused or all("not found" in s for s in server.refused)


def test_status_follows_a_run_to_its_end(tmp_path, package, work, connect):
    with KfpServer() as server:
        run = runs.submit(connect(host=server.host), work)["run_id"]
        look = ["status", run, "--host", server.host]
        assert "add --follow" in refused(gkd(*look, "--poll", "1", cwd=tmp_path))
        followed = gkd(*look, "--follow", "--poll", "0.05", cwd=tmp_path)
        assert answer(followed)["state"] == "SUCCEEDED"
        told = followed.stderr.splitlines()
        assert told.index("teacher: running") < told.index("teacher: succeeded") < told.index("run: succeeded")
        assert answer(gkd(*look, "-f", cwd=tmp_path))["state"] == "SUCCEEDED", "one that has ended is told at once"
    with KfpServer(fail="teacher") as server:
        run = runs.submit(connect(host=server.host), work)["run_id"]
        failed = gkd("status", run, "--follow", "--poll", "0.05", "--host", server.host, cwd=tmp_path)
        assert answer(failed, code=1)["state"] == "FAILED"
        assert failed.stderr.splitlines()[-1].startswith(f"gkd: run {run} failed in teacher (")


@pytest.mark.parametrize("signal_", [signal.SIGINT, signal.SIGTERM])
def test_whoever_stops_looking_on_stops_no_run(signal_, tmp_path, package, work, connect):
    class Endless(KfpServer):
        def _advanced(self, run):
            self.looks[run["run_id"]] = min(self.looks.get(run["run_id"], 0), 2)
            return super()._advanced(run)

    with Endless() as server:
        run = runs.submit(connect(host=server.host), work)["run_id"]
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("KF_PIPELINES", "GKD_"))}
        arguments = ["pipeline", "status", run, "--follow", "--poll", "0.05", "--host", server.host]
        process = forked.start(
            forked.command, *arguments, cwd=tmp_path, said=tmp_path, env=kept | {"HOME": str(tmp_path)}
        )
        while "prepare: running" not in (tmp_path / "stderr").read_text():
            assert process.exitcode is None
            process.join(0.05)
        os.kill(process.pid, signal_)
        process.join()
        assert process.exitcode == 128 + signal_
        assert f"run {run} goes on" in (tmp_path / "stderr").read_text().splitlines()[-1]
        assert not server.terminated
        assert server.runs[run]["state"] == "RUNNING"


def test_a_list_shows_identifiers_that_can_be_copied_to_stop_a_run(tmp_path, package):
    with KfpServer() as server:
        access = ["--host", server.host]
        submit = ["submit", "--package", str(package), "--argument", "epochs=3", "--run-name", "a long name of a run"]
        made = answer(gkd(*submit, *access, cwd=tmp_path))
        listed = gkd("list", *access, cwd=tmp_path, COLUMNS="80")
        assert answer(gkd("stop", made["run_id"], *access, cwd=tmp_path))["state"] == "CANCELING"
        assert server.terminated == {made["run_id"]}
    assert answer(listed)[0]["run_id"] == made["run_id"]
    assert made["run_id"] in "\n".join(listed.stdout.splitlines()[:-1])


def test_a_schedule(tmp_path, package):
    common = ["--package", str(package), "--argument", "epochs=3", "--name", "weekly", "--upload", "gkd"]
    with KfpServer(cookie="authservice_session=abc", multi_user=True) as server:
        access = ["--host", server.host, "--cookie", "authservice_session=abc", "--namespace", "team"]
        times = ["--start", "2026-12-01T00:00:00Z", "--end", "2027-12-01T00:00:00+01:00"]
        clock = ["--cron", "0 0 3 * * 1", *times, "--max-concurrency", "2", "--disable"]
        made = answer(gkd("schedule", *clock, *common, *access, cwd=tmp_path))
        sent = server.schedules[made["schedule_id"]]
        assert sent["trigger"] == {
            "cron_schedule": {"cron": "0 0 3 * * 1", "start_time": times[1], "end_time": times[3]}
        }
        assert (sent["max_concurrency"], sent["mode"], sent["no_catchup"]) == ("2", "DISABLE", True)
        assert sent["pipeline_version_reference"]["pipeline_version_id"] in server.versions
        assert made["enabled"] is False
        assert made["end"] == "2027-11-30T23:00:00+00:00"

        assert cached(server.versions[sent["pipeline_version_reference"]["pipeline_version_id"]]["pipeline_spec"]) == []

        bad = gkd("schedule", "--cron", "0 0 24 * * 1", *common, "--replace", *access, cwd=tmp_path)
        refused(bad, "refuses the request", "cron is not supported. Cron expression: 0 0 24 * * 1")
        assert list(server.schedules) == [made["schedule_id"]], "a refused replacement leaves the old one at work"

        listed = gkd("list", "--schedules", "--experiment", "gkd", *access, cwd=tmp_path)
        assert [row["cron"] for row in answer(listed)] == ["0 0 3 * * 1"]
        assert "weekly" in listed.stdout
        assert answer(gkd("unschedule", "weekly", *access, cwd=tmp_path))["removed"] == made["schedule_id"]
        assert not server.schedules
        assert [said for said in server.refused if "cron" not in said] == []


@pytest.fixture
def silent():
    """An address where somebody listens and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def closed() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_refusals_reach_the_user_as_one_sentence(tmp_path, package, closed):
    refused(gkd("submit", "--package", str(package), "--host", closed, cwd=tmp_path), "the pipeline wants epochs")
    refused(gkd("list", "--host", closed, cwd=tmp_path), closed, "cannot be reached", "refused")
    with KfpServer(token="other") as server:
        (tmp_path / "token").write_text(f"{SECRET}\n")
        result = gkd("status", "x", "--host", server.host, "--token-file", "token", cwd=tmp_path)
        sentence = refused(result, "does not accept the credentials", "Bearer ***")
        assert SECRET not in sentence + result.stdout


# From here on in this process.


@pytest.mark.parametrize("given", [{"profile": "gpu"}, {"which": "sweep"}, {"parallelism": 8}])
def test_a_compiled_file_is_one_pipeline_for_one_profile(package, given):
    option = {"which": "pipeline"}.get(*given, *given)
    task = Task(package=package, **given)
    with says(f"--{option} is given and --package too"), task.named("name", Arguments(), cached=True):
        pass


@pytest.mark.parametrize(
    ("option", "default", "caching"),
    [(None, True, True), (None, False, False), (True, False, True), (False, True, False)],
)
def test_the_cache_is_as_the_command_has_it_unless_an_option_says(package, option, default, caching):
    arguments = Arguments(arguments=["epochs=3"])
    with Task(package=package, cache=option).named("name", arguments, cached=default) as work:
        assert work.caching is caching


@pytest.fixture
def connect(monkeypatch, tmp_path):
    for name in ("KF_PIPELINES_ENDPOINT", client.TOKEN_VARIABLE, client.COOKIE_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(client, "PAUSE_SECONDS", 0.001)
    return lambda **access: client.connect(Access(**access))


@contextmanager
def says(*parts: str):
    """The block is refused in one sentence with these parts in it, and no secret."""
    with pytest.raises(GkdError) as raised:
        yield
    told = str(raised.value)
    assert "\n" not in told
    assert raised.value.exit_code == 2
    for secret in (SECRET, "hunter2"):
        assert secret not in told
    for part in parts:
        assert part in told


class TestAccess:
    @pytest.mark.parametrize(
        ("access", "parts"),
        [
            ({}, ["pass --host", "KF_PIPELINES_ENDPOINT"]),
            ({"host": "ftp://x"}, ["is not an address"]),
            ({"host": "http://x:notaport"}, ["is not an address"]),
            ({"host": f"http://me:{SECRET}@x"}, ["user name or password"]),
            ({"host": "http://x", "token": "a", "in_cluster": True}, ["--token and --in-cluster", "one of them"]),
            ({"host": "http://x", "token": f"{SECRET}\r\nHost: y"}, ["not one line of plain characters"]),
            ({"host": "http://x", "token": ""}, ["the token is empty"]),
            ({"host": "http://x", "token_file": Path("/nowhere/token")}, ["/nowhere/token cannot be read"]),
            ({"in_cluster": True}, ["--in-cluster", "cannot be read", "inside a pod"]),
            ({"host": "http://x", "ca_certificate": Path("/nowhere.pem")}, ["--ca-certificate /nowhere.pem"]),
        ],
    )
    def test_what_cannot_be_right_is_refused_before_anybody_is_asked(self, connect, access, parts):
        with says(*parts):
            connect(**access)

    def test_a_silent_server(self, connect, silent, monkeypatch):
        monkeypatch.setattr(client, "ANSWER_SECONDS", 0.5)
        with says("did not answer in time"):
            connect(host=silent)

    def test_a_login_page_is_no_answer(self, connect):
        """Status 200, as a login proxy gives it: kfp's client alone takes it for an empty answer."""

        class Login(JsonServer):
            def answer(self, *_):
                return 200, "<html>Log in</html>"

        with Login() as server, says("login page"):
            connect(host=server.host)

    def test_another_service(self, connect):
        with KfpServer() as server, says("knows nothing under that address"):
            connect(host=f"{server.host}/elsewhere")

    def test_a_certificate_nobody_vouches_for(self, connect, tmp_path, certificate):
        with KfpServer(token=SECRET) as server:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            server.http.socket = context.wrap_socket(server.http.socket, server_side=True)
            host = server.host.replace("http://", "https://").replace("127.0.0.1", "localhost")
            with says("certificate that is not trusted"):
                connect(host=host, token=SECRET)
            assert connect(host=host, token=SECRET, ca_certificate=certificate).host == host

    def test_the_mounted_token_is_read_again(self, connect, monkeypatch, tmp_path):
        token = tmp_path / "token"
        token.write_text("first")
        monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(token))
        with KfpServer(token="first") as server:
            found = connect(host=server.host, in_cluster=True)
            assert runs.runs(found) == []
            server.token = "second"
            with says("does not accept"):
                runs.runs(found)
            token.write_text("second")
            assert runs.runs(found) == []

    def test_nothing_shows_a_secret(self, connect):
        access = Access("http://x", token=SECRET, cookie=f"a={SECRET}")
        assert SECRET not in f"{access!r} {access}"
        with KfpServer(token=SECRET) as server:
            assert SECRET not in repr(connect(host=server.host, token=SECRET))

    def test_credentials_over_plain_http_are_pointed_out(self, connect, capsys):
        for host, warned in [
            ("http://kfp.example.org", True),
            ("https://kfp.example.org", False),
            ("http://localhost:8888", False),
            ("http://ml-pipeline.kubeflow.svc.cluster.local:8888", False),
        ]:
            client._credentials(Access(host, token=SECRET), host)
            said = capsys.readouterr().err
            assert ("unencrypted" in said) is warned
            assert SECRET not in said


@pytest.fixture
def certificate(tmp_path) -> Path:
    """A certificate for localhost that vouches for itself, with its key, in one PEM file."""
    from datetime import UTC, datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path / "certificate.pem"
    plain = serialization.NoEncryption()
    pem = serialization.Encoding.PEM
    file.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain) + made.public_bytes(pem))
    return file


@pytest.fixture
def work(package):
    return Work(package, {"epochs": 1}, "name")


@pytest.fixture
def waited(connect, work):
    """A function that submits a run, and waits for its end on a server that may have been broken meanwhile."""

    def waited(server: KfpServer, *, broken: int = 0, timeout_seconds: float = 600) -> dict:
        found = connect(host=server.host)
        run = runs.submit(found, work)["run_id"]
        server.broken = broken
        return runs.wait(found, run, timeout_seconds=timeout_seconds, poll_seconds=0.001)

    return waited


class TestRuns:
    def test_a_schedule_is_made_once_and_its_file_uploaded_once(self, connect, work):
        weekly = replace(work, name="weekly", pipeline="gkd")
        with KfpServer() as server:
            found = connect(host=server.host)
            first = schedules.schedule(found, weekly, Clock("0 0 3 * * 1"))
            with says("a schedule 'weekly' is there already"):
                schedules.schedule(found, weekly, Clock("0 0 4 * * 1"))
            second = schedules.schedule(found, weekly, Clock("0 0 4 * * 1"), replace=True)
            assert list(server.schedules) == [second["schedule_id"]] != [first["schedule_id"]]
            assert len(server.pipelines) == 1
            digests = [v["display_name"] for v in server.versions.values() if v["display_name"] != "gkd"]
            assert len(digests) == 1
            assert digests[0].startswith("sha256-")
            assert not server.refused

    def test_a_schedule_that_is_removed_or_replaced_leaves_its_run_at_work(self, connect, work):
        weekly = replace(work, name="weekly")
        with KfpServer() as server:
            found = connect(host=server.host)

            def scheduled() -> str:
                made = schedules.schedule(found, weekly, Clock("0 0 3 * * 1"), replace=True)
                run = runs.submit(found, work)["run_id"]
                server.runs[run]["recurring_run_id"] = made["schedule_id"]
                return run

            first, second = scheduled(), scheduled()
            schedules.unschedule(found, "weekly")
            assert server.killed == set()

            server.version = "2.16.1"
            third = scheduled()
            for remove in (lambda: schedules.unschedule(found, "weekly"), scheduled):
                with says(f"run {third} of the schedule 'weekly' is at work", "--now"):
                    remove()
            assert len(server.schedules) == 1
            assert schedules.unschedule(found, "weekly", now=True)["stopped"] == [third]
            assert server.terminated == {third}
            assert server.runs[third]["state"] == "FAILED"
            assert server.runs[first]["state"] == server.runs[second]["state"] == "PENDING"

    def test_a_run_that_ends_before_it_is_stopped_is_no_hindrance_to_removing_its_schedule(self, connect, work):
        class Quick(KfpServer):
            def get_run(self, run_id, *, query, content):
                self.looks[run_id] = 100
                return super().get_run(run_id, query=query, content=content)

        with Quick() as server:
            found = connect(host=server.host)
            made = schedules.schedule(found, replace(work, name="weekly"), Clock("0 0 3 * * 1"))
            run = runs.submit(found, work)["run_id"]
            server.runs[run]["recurring_run_id"] = made["schedule_id"]
            assert server.runs[run]["state"] == "PENDING"
            assert schedules.unschedule(found, "weekly", now=True)["removed"] == made["schedule_id"]
            assert (server.runs[run]["state"], server.terminated) == ("SUCCEEDED", set())

    def test_several_users_need_a_namespace(self, connect):
        with KfpServer(multi_user=True) as server, says("several users: say whose runs you mean with --namespace"):
            connect(host=server.host)

    def test_waiting_outlasts_a_server_that_stumbles(self, waited):
        with KfpServer() as server:
            facts = waited(server, broken=3)
        assert facts["state"] == "SUCCEEDED"
        assert facts["finished_at"] == "2026-11-21T13:00:00+00:00"
        assert server.broken == 0

    def test_a_server_that_stays_away_is_given_up(self, waited):
        with KfpServer() as server, says("fails with status 503"):
            waited(server, broken=1000)

    def test_a_run_that_somebody_stops_is_cancelled(self, connect, work):
        """The server calls it FAILED."""
        with KfpServer() as server:
            found = connect(host=server.host)
            run = runs.submit(found, work)["run_id"]
            server.prints["prepare"] = "gkd: begins: prepare\ngkd: a remark\n"
            found.client.get_run(run)
            runs.stop(found, run)
            facts = runs.wait(found, run, timeout_seconds=600, poll_seconds=0.001)
            assert facts["state"] == "CANCELED"
            assert [task["state"] for task in facts["tasks"]] == ["CANCELED", "NOT_RUN", "NOT_RUN"]
            assert runs.failure(facts).startswith(f"run {run} was cancelled")
            with says("has ended already"):
                runs.stop(found, run)

    def test_patience_ends_and_the_run_goes_on(self, waited):
        with KfpServer() as server, says("is still pending after 0 seconds"):
            waited(server, timeout_seconds=0)

    def test_what_a_task_says_is_repeated(self, waited):
        with KfpServer(fail="distill", fail_says="gkd: the teacher has\n100 classes") as server:
            facts = waited(server)
        assert "failed in distill (gkd: the teacher has 100 classes)" in runs.failure(facts)

    @pytest.mark.parametrize(
        ("printed", "words"),
        [
            (
                "gkd: begins: distill\ngkd: a remark\nF1128 09:00:00.1 1 main.go:70] x: exit status 137\n",
                "ran out of memory (exit 137, limit 32Gi): raise training.memory_limit",
            ),
            ("gkd: begins: distill\nF1128 09:00:00.1 1 main.go:70] signal: terminated\n", "exit 143"),
            (
                f"gkd: begins: distill\nepoch 1\ngkd: {STOPPED}\ngkd: ends: distill\n",
                "or it ran longer than training.timeout_seconds of the profile",
            ),
            ("gkd: begins: distill\ngkd: a remark\nepoch 1\n", "ended without a word"),
            ("Traceback (most recent call last):\n  File x\nImportError: no torch\n\n", "(ImportError: no torch)"),
            (
                "gkd: begins: distill\ngkd: a remark\ngkd: ends: distill\nTraceback (most recent call last):\n"
                "ValueError: boom\n",
                "(ValueError: boom)",
            ),
            (
                "gkd: begins: distill\ngkd: begins: distill\ngkd: inner\ngkd: ends: distill\n"
                "gkd: TrainJob j failed: inner; its last lines:\n  inner\ngkd: ends: distill\n",
                "(TrainJob j failed: inner)",
            ),
        ],
    )  # fmt: skip
    def test_what_ended_a_failed_task_is_told(self, connect, whole, printed, words):
        with KfpServer(fail="distill", prints={"distill": printed}) as server:
            found = connect(host=server.host)
            run = runs.submit(found, Work(whole, {}, "name"))["run_id"]
            facts = runs.wait(found, run, timeout_seconds=600, poll_seconds=0.001)
        assert words in runs.failure(facts)

    def test_a_log_that_cannot_be_read_is_no_error(self, waited, monkeypatch):
        monkeypatch.setattr(KfpServer, "_log", lambda *_: (403, {"error_message": "forbidden"}))
        with KfpServer(fail="distill") as server:
            facts = waited(server)
        assert "failed in distill: its tasks' logs" in runs.failure(facts)

    def test_logs_of_one_step_while_it_works(self, connect, whole):
        with KfpServer() as server:
            found = connect(host=server.host)
            run = runs.submit(found, Work(whole, {}, "name"))["run_id"]
            parts = list(runs.log_parts(found, run, step="teacher", wait=True, poll_seconds=0.001))
            assert [(part.task, part.attempt) for part in parts] == [("teacher", 1)]
            assert parts[0].lines[-1] == "teacher works"
            assert server.runs[run]["state"] == "RUNNING", "the run goes on, the step is over"
            with says("step 'teech' is unknown", "'teacher'"):
                list(runs.log_parts(found, run, step="teech", wait=False, poll_seconds=1))

    def test_logs_are_followed_though_the_server_goes_away(self, connect, whole):
        class Leaving(KfpServer):
            away = 0

            def answer(self, verb, target, headers, body):
                if self.away and target.endswith("/log"):
                    self.away -= 1
                    raise ConnectionAbortedError
                return super().answer(verb, target, headers, body)

        with Leaving() as server:
            server.http.handle_error = lambda *_: None
            found = connect(host=server.host)
            run = runs.submit(found, Work(whole, {}, "name"))["run_id"]
            server.away = 3
            parts = list(runs.log_parts(found, run, step="teacher", wait=True, poll_seconds=0.001))
            assert parts[0].lines[-1] == "teacher works"
            assert server.away == 0
            server.away = 3
            with says("cannot be reached"):  # who looks once does not wait
                list(runs.log_parts(connect(host=server.host), run, step="teacher", wait=False, poll_seconds=1))

    def test_logs_of_a_task_with_labels_while_it_works(self, connect, tmp_path):
        """Its template, and so its pod, is called by their number."""
        (tmp_path / "own.yaml").write_text('{"labels": {"team": "vision"}, "training": {"queue": "gpus"}}')
        compile_pipeline(tmp_path / "p.yaml", params=ROOT / "params.yaml", profile=str(tmp_path / "own.yaml"))
        with KfpServer() as server:
            found = connect(host=server.host)
            run = runs.submit(found, Work(tmp_path / "p.yaml", {}, "name"))["run_id"]
            (part,) = runs.log_parts(found, run, step="teacher", wait=True, poll_seconds=0.001)
            assert part.lines[-1] == "teacher works"
            assert any("-metadata-0-2-retry-system-container-impl-" in name for name in server.logs_read)

    def test_a_sweeps_trainings_have_the_names_of_what_they_train(self, connect, work):
        names = [f"{method}, resnet20 → resnet8, seed 1" for method in ("kd", "gompertz")]
        prints = {n: f"gkd: begins: run-trial: {name}\nepoch 1\n" for n, name in enumerate(names)}
        said = []
        with KfpServer(tasks=("run-trial", "run-trial", "compare"), prints=prints) as server:
            found = connect(host=server.host)
            run = runs.submit(found, work)["run_id"]
            facts = runs.wait(found, run, timeout_seconds=600, poll_seconds=0.001, progress=said.append)
        assert [task["name"] for task in facts["tasks"]] == [*names, "compare"]
        assert said.index(f"{names[0]}: running") < said.index(f"{names[0]}: succeeded")
        assert not [line for line in said if "run-trial" in line or "iteration" in line]

    def test_a_searchs_workers_are_told_apart_and_one_can_be_followed(self, connect, work):
        prints = {n: f"gkd: begins: search-worker: worker {n + 1}\ntrial {n}\n" for n in range(2)}
        said = []
        with KfpServer(tasks=("search-worker", "search-worker", "search-report"), prints=prints) as server:
            found = connect(host=server.host)
            run = runs.submit(found, work)["run_id"]
            (part,) = runs.log_parts(found, run, step="worker 2", wait=True, poll_seconds=0.001)
            assert (part.task, part.lines) == ("worker 2", ("trial 1",))
            all_of_them = list(runs.log_parts(found, run, step="search-worker", wait=True, poll_seconds=0.001))
            assert [part.task for part in all_of_them] == ["worker 1", "worker 2"]
            run = runs.submit(found, work)["run_id"]
            facts = runs.wait(found, run, timeout_seconds=600, poll_seconds=0.001, progress=said.append)
        assert [task["name"] for task in facts["tasks"]] == ["worker 1", "worker 2", "search-report"]
        assert not [line for line in said if "search-worker" in line]

    def test_a_loops_tasks_are_told_apart(self, waited):
        with KfpServer(tasks=("train", "train", "compare")) as server:
            facts = waited(server)
        assert [task["name"] for task in facts["tasks"]] == ["train", "train #2", "compare"]

    def test_lists_go_on_past_the_first_page(self, connect, work, monkeypatch):
        with KfpServer() as server:
            found = connect(host=server.host)
            for number in range(5):
                runs.submit(found, replace(work, name=f"run {number}", experiment=f"e{number % 2}"))
            names = [run["name"] for run in runs.runs(found, limit=3)]
            assert names == ["run 4", "run 3", "run 2"]
            monkeypatch.setattr(runs, "PAGE", 2)
            assert len(runs.runs(found, limit=50)) == 5
            assert [run["name"] for run in runs.runs(found, experiment="e1")] == ["run 3", "run 1"]
            assert not server.refused

    @pytest.mark.parametrize(
        ("change", "parts"),
        [
            ({"arguments": {"epochs": 1, "parms": {}}}, ["'parms' is unknown", "did you mean 'params'?"]),
            ({"arguments": {}}, ["the pipeline wants epochs", "--argument epochs="]),
            ({"package": Path("nowhere.yaml")}, ["nowhere.yaml cannot be read (No such file"]),
            ({"package": ROOT / "params.yaml"}, ["is not a compiled pipeline"]),
            ({"package": ROOT / "README.md"}, ["is not a .yaml file"]),
        ],
    )
    def test_what_cannot_run_is_refused(self, work, change, parts):
        with says(*parts):
            check(replace(work, **change), print)

    def test_unknown_names(self, connect, work):
        with KfpServer() as server:
            found = connect(host=server.host)
            runs.submit(found, work)
            with pytest.raises(GkdError, match="has no run 'nam'"):
                runs.find(found, "nam")
            with pytest.raises(GkdError, match="experiment 'gdk' is unknown; did you mean 'gkd'"):
                runs.runs(found, experiment="gdk")
            with pytest.raises(GkdError, match="schedule 'nope' is unknown; Known: none"):
                schedules.unschedule(found, "nope")

    def test_somebody_elses_namespace(self, connect):
        with KfpServer(multi_user=True) as server, says("does not allow this in namespace others"):
            runs.runs(connect(host=server.host, namespace="others"))

    @pytest.mark.parametrize(
        ("clock", "parts"),
        [
            ({"cron": "0 3 * * 1"}, ["has five fields", "write '0 0 3 * * 1'"]),
            ({"cron": "* * * * * *"}, ["every few seconds", "write 0"]),
            ({"cron": "0-5 0 3 * * *"}, ["every few seconds"]),
            ({"cron": "@every 1s"}, ["every few seconds"]),
            ({"cron": "monday"}, ["has 1 fields, not six"]),
            ({"cron": "@daily", "start": "tomorrow"}, ["--start 'tomorrow' is not a time"]),
            ({"cron": "@daily", "end": "2026-12-01T00:00:00"}, ["--end", "names no time zone"]),
            (
                {"cron": "@daily", "start": "2026-12-01T00:00:00Z", "end": "2026-12-01T00:30:00+01:00"},
                ["is not after --start"],
            ),
        ],
    )
    def test_clocks_that_make_no_sense(self, clock, parts):
        with says(*parts):
            Clock(**clock)

    @pytest.mark.parametrize(
        ("given", "sent"),
        [
            ("2026-12-01T00:00:00Z", "2026-12-01T00:00:00Z"),
            ("2026-12-01 00:00Z", "2026-12-01T00:00:00Z"),
            ("20261201T0300+01:00", "2026-12-01T03:00:00+01:00"),
        ],
    )
    def test_a_time_is_sent_as_the_api_writes_times(self, given, sent):
        assert (Clock("@daily", start=given).start, Clock("@daily", end=given).end) == (sent, sent)

    def test_clocks_that_make_sense(self):
        for cron in ("0 */5 1-4,22 ? JAN-MAR MON-FRI", "@daily", "@every 90s", "0,30 0 * * * *"):
            assert Clock(cron).cron == cron


@pytest.fixture(scope="session")
def whole(compiled) -> Path:
    """The pipeline itself, compiled for one accelerator a pod."""
    return compiled("gpu")


def test_what_only_pods_reach_is_named(tmp_path):
    work = {"claim": "shared", "mount": "/gkd/work", "sub_path": "team/gkd"}
    own = {"light": {"queue": "small"}, "training": {"queue": "gpus"}, "nodes": {"count": 2}, "work": work}
    (tmp_path / "own.yaml").write_text(json.dumps(own))
    compile_pipeline(tmp_path / "p.yaml", params=ROOT / "params.yaml", profile=str(tmp_path / "own.yaml"))
    said = unchecked(Work(tmp_path / "p.yaml", {}, "name"))
    assert "the claim shared (folder team/gkd), Kueue's queues gpus, small, and the MLflow server" in said


class TestContent:
    @pytest.mark.parametrize(
        ("arguments", "parts"),
        [
            ({"mlflow": "https://hunter2@mlflow"}, ["https://***@… holds a password or a token"]),
            ({"params": {"tracking": {"uri": "https://hunter2@x"}}}, ["holds a password or a token"]),
            ({"dvc_repo": "https://hunter2@git.example/data.git"}, ["holds a password or a token"]),
            ({"mlflow": 7}, ["mlflow is 7, but must be text, with quotes: --argument 'mlflow=\"7\"'"]),
            ({"overrides": "train.epochs=3"}, ['overrides is "train.epochs=3", but must be a list']),
            ({"overrides": [3]}, ["overrides has 3", "section.key=value"]),
            ({"overrides": ["train.epoch=3"]}, ["'train.epoch' is unknown", "did you mean 'train.epochs'?"]),
            ({"mlflow": "sqlite:///mlflow.db"}, ["mlflow is sqlite:///mlflow.db, a file", "MLflow server"]),
            ({"overrides": ["tracking.uri=./mlruns"]}, ["tracking.uri is ./mlruns, a file", "MLflow server"]),
            ({"overrides": ["train.devices=4"]}, ["train.devices is 4", "has 1 device "]),
            ({"mlflow": "mlflow.example:5000"}, ["mlflow is mlflow.example:5000", "write http://mlflow.example:5000"]),
            ({"data_source": "torchvision:MNISTT"}, ["'MNISTT' is unknown", "'MNIST'"]),
            ({"data_source": "folder"}, ["data.root names none", "dvc_repo"]),
            ({"data_source": "list"}, ["data.source is list but data.root names none", "s3://"]),
            (
                {"overrides": ["data.source=folder", "data.root=https://me:pw@x.example/photos.zip"]},
                ["holds a password or a token"],
            ),
            ({"dvc_rev": "v1"}, ["dvc_path or dvc_rev is given, but no dvc_repo"]),
            ({"dvc_repo": "https://git.example/a.git"}, ["set dvc_path"]),
            (
                {"dvc_repo": "https://git.example/a.git", "dvc_path": "images"},
                ["data.source is digits, which reads no"],
            ),
            (
                {"dvc_repo": "file:///home/me/photos", "dvc_path": "images", "data_source": "folder"},
                ["file:///home/me/photos, a place on this machine"],
            ),
            (
                {"overrides": ["data.root=/home/me/images", "data.source=folder"]},
                ["data.root is /home/me/images, a place on this machine"],
            ),
            ({"overrides": ["teacher.name=resnett20"]}, ["teacher.name 'resnett20' is unknown", "'resnet20'"]),
            ({"overrides": ["distill.options={gompertz: {bee: 1}}"]}, ["bee"]),
        ],
    )
    def test_what_no_task_could_use_is_not_sent(self, whole, arguments, parts):
        with says(*parts):
            check(Work(whole, arguments, "name"), print)

    def test_an_ssh_address_holds_no_password(self, whole):
        arguments = {"dvc_repo": "git@host:team/data.git", "dvc_path": "images", "data_source": "folder"}
        assert check(Work(whole, arguments, "name"), print).arguments == arguments

    def test_a_repository_and_images_in_a_volume_of_the_profile_are_there(self, tmp_path):
        volumes = "work: {claim: gkd-work, mount: /gkd/work}\nvolumes: [{claim: photos, mount: /photos}]"
        (tmp_path / "own.yaml").write_text(volumes)
        compile_pipeline(tmp_path / "p.yaml", params=ROOT / "params.yaml", profile=str(tmp_path / "own.yaml"))
        for arguments in (
            {"dvc_repo": "/photos/repo", "dvc_path": "images", "data_source": "folder"},
            {"overrides": ["data.source=folder", "data.root=/photos/images"]},
            {"overrides": ["data.source=folder", "data.root=/gkd/work/images"]},
            {"overrides": ["data.source=folder", "data.root=s3://bucket/photos"]},
            {"overrides": ["data.source=list", "data.root=https://x.example/list.csv", "data.columns.label=breed"]},
        ):
            assert check(Work(tmp_path / "p.yaml", arguments, "name"), print).arguments == arguments

    def test_a_sweep_is_looked_at_as_its_first_task_would(self, compiled):
        check(Work(compiled(which="sweep"), {"pairs": [["resnet20", "resnet8"]]}, "name"), print)
        with says("'kdd'"):
            check(Work(compiled(which="sweep"), {"methods": ["kdd"]}, "name"), print)

    @pytest.mark.parametrize(("profile", "devices"), [("gpu", 1), ("multi-gpu", 4), ("multi-node", 8)])
    def test_parameters_given_to_a_file_train_on_the_devices_it_was_compiled_for(self, compiled, profile, devices):
        work = check(Work(compiled(profile), {"params": {"train": {"epochs": 7}}}, "name"), print)
        sent = work.arguments["params"]
        assert sent["train"].get("devices", 1) == devices
        assert sent.get("teacher", {"train": {}})["train"].get("devices", 1) == devices
        assert sent["train"]["epochs"] == 7
        for wrong in {1, 2, 4} - {devices}:
            with says(f"train.devices is {wrong}, but"):
                check(Work(compiled(profile), {"params": {"train": {"devices": wrong}}}, "name"), print)

    def test_what_would_be_lost_and_what_no_node_may_find_is_pointed_out(self, whole):
        said = []
        check(Work(whole, {}, "first"), said.append)
        assert len(said) == 2
        assert "no MLflow server is named" in said[0]
        assert "names no registry" in said[1]
        said.clear()
        check(Work(whole, {"mlflow": "http://mlflow:5000"}, "second"), said.append)
        assert ["names no registry" in line for line in said] == [True]

    @pytest.mark.parametrize(
        "more",
        [
            "env: {MLFLOW_TRACKING_URI: 'http://mlflow:5000'}",
            "secrets: [{name: gkd-mlflow, env: {address: MLFLOW_TRACKING_URI}}]",
        ],
    )
    def test_a_profile_may_name_the_server(self, tmp_path, capsys, more):
        (tmp_path / "own.yaml").write_text(f"{more}\n")
        options = {"params": ROOT / "params.yaml", "profile": str(tmp_path / "own.yaml"), "warn": True}
        compile_pipeline(tmp_path / "p.yaml", **options)
        assert capsys.readouterr().err == ""
        said = []
        check(Work(tmp_path / "p.yaml", {}, "name"), said.append)
        assert [line for line in said if "names no registry" not in line] == []


def cached(spec: dict) -> list[str]:
    """Tasks that may be taken from the cluster's cache."""
    dags = [part["dag"] for part in [spec["root"], *spec["components"].values()] if "dag" in part]
    return [
        name for dag in dags for name, task in dag["tasks"].items() if task.get("cachingOptions", {}).get("enableCache")
    ]


class TestCaching:
    @pytest.mark.parametrize("upload", [None, "gkd"])
    @pytest.mark.parametrize("scheduled", [False, True])
    def test_without_it_no_task_of_what_the_server_got_has_any(self, connect, whole, upload, scheduled):
        before = whole.read_bytes()
        with KfpServer() as server:
            found = connect(host=server.host)
            for caching in (True, False):
                work = Work(whole, {}, f"caching {caching}", pipeline=upload, caching=caching)
                schedules.schedule(found, work, Clock("0 0 3 * * *")) if scheduled else runs.submit(found, work)
                made = [*(server.schedules if scheduled else server.runs).values()][-1]
                if upload:
                    spec = server.versions[made["pipeline_version_reference"]["pipeline_version_id"]]["pipeline_spec"]
                else:
                    spec = made["pipeline_spec"]["pipeline_spec"]
                    assert "gkd-work" in json.dumps(made["pipeline_spec"]["platform_spec"])
                assert ({"prepare", "teacher", "distill"} <= set(cached(spec))) is caching
                assert caching or cached(spec) == []
        assert whole.read_bytes() == before

    @pytest.mark.parametrize(
        ("arguments", "warned"),
        [
            ({"dvc_repo": "https://git.example.org/a.git"}, "dvc_repo is given without dvc_rev"),
            ({"dvc_repo": "https://git.example.org/a.git", "dvc_rev": "v1"}, None),
            ({"overrides": ["teacher.source=models:/big@champion"]}, "teacher.source is models:/big@champion"),
            ({"overrides": ["teacher.source=models:/big/3"]}, None),
        ],
    )
    def test_what_moves_behind_its_name_is_warned_about(self, whole, arguments, warned):
        if "dvc_repo" in arguments:
            arguments |= {"dvc_path": "images", "overrides": ["data.source=folder"]}
        for caching in (True, False):
            said = []
            check(Work(whole, {"mlflow": "http://mlflow:5000"} | arguments, "name", caching=caching), said.append)
            found = [line for line in said if "cache" in line]
            assert len(found) == (1 if warned and caching else 0)
            assert not found or warned in found[0]
