"""`gkd pipeline submit|schedule|status|list` as real processes against a server that checks what it is asked."""

import json
import os
import re
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from pipelines.kubeflow import runs
from tests import forked
from tests.pipelines.conftest import SECRET, cached
from tests.pipelines.kfp_server import KfpServer


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
