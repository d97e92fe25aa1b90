"""Runs on a server: waited for, told of, followed, listed, stopped."""

from dataclasses import replace
from pathlib import Path

import pytest

from gkd_core.errors import GkdError
from pipelines.kubeflow import runs, schedules
from pipelines.kubeflow.compile import compile_pipeline
from pipelines.kubeflow.package import Work
from pipelines.kubeflow.task import STOPPED
from tests.pipelines.conftest import says
from tests.pipelines.kfp_server import KfpServer

ROOT = Path(__file__).parents[2]


@pytest.fixture
def waited(connect, work):
    """A function that submits a run, and waits for its end on a server that may have been broken meanwhile."""

    def waited(server: KfpServer, *, broken: int = 0, timeout_seconds: float = 600) -> dict:
        found = connect(host=server.host)
        run = runs.submit(found, work)["run_id"]
        server.broken = broken
        return runs.wait(found, run, timeout_seconds=timeout_seconds, poll_seconds=0.001)

    return waited


def test_several_users_need_a_namespace(connect):
    with KfpServer(multi_user=True) as server, says("several users: say whose runs you mean with --namespace"):
        connect(host=server.host)


def test_waiting_outlasts_a_server_that_stumbles(waited):
    with KfpServer() as server:
        facts = waited(server, broken=3)
    assert facts["state"] == "SUCCEEDED"
    assert facts["finished_at"] == "2026-11-21T13:00:00+00:00"
    assert server.broken == 0


def test_a_server_that_stays_away_is_given_up(waited):
    with KfpServer() as server, says("fails with status 503"):
        waited(server, broken=1000)


def test_a_run_that_somebody_stops_is_cancelled(connect, work):
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


def test_patience_ends_and_the_run_goes_on(waited):
    with KfpServer() as server, says("is still pending after 0 seconds"):
        waited(server, timeout_seconds=0)


def test_what_a_task_says_is_repeated(waited):
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
def test_what_ended_a_failed_task_is_told(connect, whole, printed, words):
    with KfpServer(fail="distill", prints={"distill": printed}) as server:
        found = connect(host=server.host)
        run = runs.submit(found, Work(whole, {}, "name"))["run_id"]
        facts = runs.wait(found, run, timeout_seconds=600, poll_seconds=0.001)
    assert words in runs.failure(facts)


def test_a_log_that_cannot_be_read_is_no_error(waited, monkeypatch):
    monkeypatch.setattr(KfpServer, "_log", lambda *_: (403, {"error_message": "forbidden"}))
    with KfpServer(fail="distill") as server:
        facts = waited(server)
    assert "failed in distill: its tasks' logs" in runs.failure(facts)


def test_logs_of_one_step_while_it_works(connect, whole):
    with KfpServer() as server:
        found = connect(host=server.host)
        run = runs.submit(found, Work(whole, {}, "name"))["run_id"]
        parts = list(runs.log_parts(found, run, step="teacher", wait=True, poll_seconds=0.001))
        assert [(part.task, part.attempt) for part in parts] == [("teacher", 1)]
        assert parts[0].lines[-1] == "teacher works"
        assert server.runs[run]["state"] == "RUNNING", "the run goes on, the step is over"
        with says("step 'teech' is unknown", "'teacher'"):
            list(runs.log_parts(found, run, step="teech", wait=False, poll_seconds=1))


def test_logs_are_followed_though_the_server_goes_away(connect, whole):
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


def test_logs_of_a_task_with_labels_while_it_works(connect, tmp_path):
    """Its template, and so its pod, is called by their number."""
    (tmp_path / "own.yaml").write_text('{"labels": {"team": "vision"}, "training": {"queue": "gpus"}}')
    compile_pipeline(tmp_path / "p.yaml", params=ROOT / "params.yaml", profile=str(tmp_path / "own.yaml"))
    with KfpServer() as server:
        found = connect(host=server.host)
        run = runs.submit(found, Work(tmp_path / "p.yaml", {}, "name"))["run_id"]
        (part,) = runs.log_parts(found, run, step="teacher", wait=True, poll_seconds=0.001)
        assert part.lines[-1] == "teacher works"
        assert any("-metadata-0-2-retry-system-container-impl-" in name for name in server.logs_read)


def test_a_sweeps_trainings_have_the_names_of_what_they_train(connect, work):
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


def test_a_searchs_workers_are_told_apart_and_one_can_be_followed(connect, work):
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


def test_a_loops_tasks_are_told_apart(waited):
    with KfpServer(tasks=("train", "train", "compare")) as server:
        facts = waited(server)
    assert [task["name"] for task in facts["tasks"]] == ["train", "train #2", "compare"]


def test_lists_go_on_past_the_first_page(connect, work, monkeypatch):
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


def test_unknown_names(connect, work):
    with KfpServer() as server:
        found = connect(host=server.host)
        runs.submit(found, work)
        with pytest.raises(GkdError, match="has no run 'nam'"):
            runs.find(found, "nam")
        with pytest.raises(GkdError, match="experiment 'gdk' is unknown; did you mean 'gkd'"):
            runs.runs(found, experiment="gdk")
        with pytest.raises(GkdError, match="schedule 'nope' is unknown; Known: none"):
            schedules.unschedule(found, "nope")


def test_somebody_elses_namespace(connect):
    with KfpServer(multi_user=True) as server, says("does not allow this in namespace others"):
        runs.runs(connect(host=server.host, namespace="others"))
