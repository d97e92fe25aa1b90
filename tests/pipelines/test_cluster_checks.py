"""A rehearsal of `make cluster-test`: every check on a cluster where all is right, and on those where it is not."""

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import yaml

from gkd_core.errors import GkdError
from gkd_core.export import bundle, render
from pipelines import cli
from pipelines.kubeflow.profile import load_profile
from tests.cluster import access, checks, settings
from tests.cluster.__main__ import check_all, main, prepared
from tests.cluster.api import Api
from tests.cluster.checks import FAILED, NOT_RUN, PASSED, Outcome
from tests.cluster.cleaning import clean
from tests.cluster.ground import Ground
from tests.kubernetes_objects import refusal
from tests.pipelines.whole_cluster import Kubeflow, WholeCluster

ROOT = Path(__file__).parents[2]
CHECK = {check.name: check for check in checks.CHECKS}


def here(arguments: list[str], folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """`gkd` in this process, but for what trains: its bundle has the manifests alone."""
    if arguments[:2] == ["pipeline", "run"]:
        return subprocess.CompletedProcess(arguments, 0, "{}\n", "")
    if arguments[0] == "bundle":
        place = Path(arguments[1]) / "kubernetes"
        place.mkdir(parents=True, exist_ok=True)
        name, uri = (arguments[arguments.index(option) + 1] for option in ("--name", "--registry-uri"))
        facts = {"name": name, "registry_uri": uri, "image": environment["GKD_SERVE_IMAGE"], "precision": "fp32"}
        facts |= {
            "secrets": bundle.SECRETS,
            "lineage": {"precision": "fp32"},
            "drain_seconds": 5,
            "has_reference": False,
            "service_account": None,
        }
        for file in bundle.KUBERNETES:
            render.render(f"{file}.yaml.j2", place / f"{file}.yaml", facts)
        return subprocess.CompletedProcess(arguments, 0, "{}\n", "")
    output, errors, code = io.StringIO(), io.StringIO(), 0
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with (
            mock.patch.dict(os.environ, environment | {"HOME": str(folder), "COLUMNS": "200"}, clear=True),
            mock.patch.object(sys, "argv", ["gkd", *arguments]),
            contextlib.redirect_stdout(output),
            contextlib.redirect_stderr(errors),
        ):
            cli.main()
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return subprocess.CompletedProcess(arguments, code, output.getvalue(), errors.getvalue())


@pytest.fixture
def cluster(tmp_path) -> Iterator[WholeCluster]:
    (tmp_path / "cluster").mkdir()
    with Kubeflow() as kfp, WholeCluster(kfp, tmp_path / "cluster") as cluster:
        yield cluster


@pytest.fixture
def ground(cluster, tmp_path) -> Callable[..., Ground]:
    """A function that gives what the checks stand on, settings replaced."""
    (tmp_path / "nodes.yaml").write_text("nodes: {count: 2}\nwork: {claim: gkd-work, mount: /gkd/work}\n")
    variables = {
        "KUBECONFIG": str(cluster.kubeconfig(tmp_path / "kubeconfig")),
        "KF_PIPELINES_ENDPOINT": cluster.kfp.host,
        "GKD_CLUSTER_NODES_PROFILE": str(tmp_path / "nodes.yaml"),
        "GKD_CLUSTER_MLFLOW": "http://mlflow:5000",
    }

    def made(**changes: object) -> Ground:
        given = replace(settings.read(variables), poll_seconds=0.05, timeout_seconds=120, **changes)
        folder = tmp_path / "ground"
        folder.mkdir()
        return prepared(given, folder, run_gkd=here)

    return made


@pytest.mark.slow
def test_a_cluster_on_which_all_is_right(cluster, ground):
    on = ground()
    outcomes, interrupted = check_all(on, checks.chosen([]))
    assert not interrupted
    assert {o.check: o.result for o in outcomes} == dict.fromkeys([*CHECK, "clean up"], PASSED), checks.table(outcomes)
    said = {outcome.check: outcome.words for outcome in outcomes}
    assert said["submit"] == "4 tasks"
    assert said["resume"] == "deleted in epoch 3, went on in epoch 3"
    assert said["TrainJob"] == "2 nodes"
    assert re.fullmatch(r"none of \d+ requests refused", said["roll"])

    # What Kubernetes would have taken.
    kinds = {content["kind"]: content for content in cluster.made}
    assert set(kinds) == {"Pod", "Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget"}
    assert [why for content in kinds.values() if (why := refusal(content))] == []
    assert all(content["metadata"]["labels"]["gkd-cluster-test"] == on.api.test for content in cluster.made)

    # Nothing is left, and nothing outside the namespace was asked for.
    assert set(cluster.objects) == {("persistentvolumeclaims", "gkd-work")}
    assert not list((cluster.folder / "volume").iterdir())
    assert not cluster.kfp.runs
    assert not cluster.kfp.schedules
    assert not cluster.kfp.experiments
    assert not cluster.kfp.killed
    anywhere = re.compile("/version|/apis/authorization.k8s.io/v1/selfsubjectaccessreviews|/apis/trainer[^/]*/v1alpha1")
    assert [path for path in cluster.asked if "/namespaces/team/" not in path and not anywhere.fullmatch(path)] == []


def alone(check: str, on: Ground) -> Outcome:
    """One check, with what others would have found."""
    on.facts |= {"submitted": {"run_id": "none", "seconds": 1.0}}
    return checks.run(CHECK[check], on, [])


def fails(outcome: Outcome, *words: str, result: str = FAILED) -> None:
    assert outcome.result == result, outcome.words
    for word in words:
        assert word in outcome.words


def change(**attributes: object) -> Callable[[WholeCluster], None]:
    """Something that is wrong with the cluster; `kfp_…` with its Kubeflow Pipelines."""

    def make(cluster: WholeCluster) -> None:
        for name, value in attributes.items():
            setattr(cluster.kfp if name.startswith("kfp_") else cluster, name.removeprefix("kfp_"), value)

    return make


@pytest.mark.parametrize(
    ("check", "wrong", "words"),
    [
        ("rights", change(forbidden={("create", "pods"), ("get", "pods/log")}), ["may not create pods, get pods/log"]),
        ("volume", lambda cluster: cluster.objects.clear(), ["claim gkd-work is not in namespace team"]),
        ("volume", change(writable=False), ["cannot write", "A fresh volume may belong to root"]),
        ("volume", lambda cluster: cluster.claim("gkd-work", phase="Pending"), ["is Pending, not Bound"]),
        ("volume", lambda cluster: cluster.claim("gkd-work", mode="ReadWriteOnce"), ["need ReadWriteMany"]),
        ("roles", change(forbidden_to_tasks={("list", "pods/log")}), ["pipeline-runner may not list pods/log"]),
        ("submit", change(kfp_fail="teacher"), ["ended with 1", "failed in teacher"]),
        ("failed-step", change(kfp_says="gkd: something is wrong"), ["does not repeat", "something is wrong"]),
        ("failed-step", change(kfp_works=lambda run: run.update(wrong=False)), ["ended with 0, not 1"]),
        ("resume", change(checkpoints=False), ["begins with epoch 1"]),
        ("resume", change(retries=False), ["never happened: another pod", "is FAILED", "the cluster's choice"]),
        ("TrainJob", change(nodes=1), ["asks for 1 nodes, not 2"]),
        ("TrainJob", change(kfp_fail="teacher"), ["is FAILED: teacher ("]),
        ("TrainJob", change(lingers=True), ["is still there after its run"]),
        ("schedule", change(kfp_version="2.16.0"), ["unschedule ended with 2", "before 2.17"]),
        ("schedule", change(kfp_fail="distill"), ["is FAILED after its schedule was removed"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_is_wrong_is_told(cluster, ground, check, wrong, words):
    on = ground()
    wrong(cluster)
    fails(alone(check, on), *words)


@pytest.mark.parametrize(
    ("check", "wrong", "words"),
    [
        ("schedule", change(kfp_starts=False), ["the schedule starts a run"]),
        ("stop", change(lingers=True), ["still there after gkd pipeline stop", "gkd-teacher-"]),
        ("serve", change(ready=False), ["is ready", "describe deployment"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_patience_ends(cluster, ground, check, wrong, words):
    on = ground()
    on.settings = replace(on.settings, timeout_seconds=1.5)
    wrong(cluster)
    fails(alone(check, on), *words)


@pytest.mark.parametrize("test", ["7e999999", "07120911", "12345678"])
def test_a_label_that_looks_like_a_number_stays_a_text(ground, test):
    on = ground()
    on.api.test = test
    assert load_profile(on.files(nodes=True)["profile"]).labels == {"gkd-cluster-test": test}


def test_a_finished_run_that_shows_no_log_and_is_not_remembered(cluster, ground):
    on = ground()
    cluster.kfp.prints["teacher"] = "gkd: begins: teacher\nnothing\ngkd: ends: teacher\n"
    cluster.kfp.caches = False
    before = [checks.run(CHECK["submit"], on, [])]
    fails(checks.run(CHECK["logs"], on, before), "has no epoch in it: nothing")
    fails(checks.run(CHECK["cache"], on, before), "teacher, kd, distill ran again")


def test_a_served_model_that_refuses_requests(cluster, ground):
    on = ground()
    cluster.model.refuses = 1
    fails(alone("serve", on), "is answered with 503", "the server is leaving")
    clean(on)
    before = [alone("serve", on)]
    cluster.refuses_in_roll = 2
    fails(checks.run(CHECK["roll"], on, before), "2 of ", "requests were refused; the first: 503")


def test_what_has_no_object_here_is_not_run(cluster, ground, tmp_path):
    (tmp_path / "plain.yaml").write_text("{}")
    on = ground(mlflow=None, profile=str(tmp_path / "plain.yaml"))
    for check, words in {
        "volume": "no work volume",
        "failed-step": "no work volume",
        "resume": "no work volume",
        "serve": "no MLflow",
    }.items():
        fails(alone(check, on), words, result=NOT_RUN)
    cluster.impersonates = False
    fails(alone("roles", on), "you may not ask in the name of service account pipeline-runner", result=NOT_RUN)
    cluster.trainer = False
    for check in ("roles", "TrainJob"):
        fails(alone(check, on), "no Trainer", result=NOT_RUN)
    on.settings = replace(on.settings, nodes_profile=None)
    for check in ("roles", "TrainJob"):
        fails(alone(check, on), "no profile with nodes", result=NOT_RUN)


def test_needs():
    assert [check.name for check in checks.chosen(["roll"])] == ["rights", "volume", "submit", "serve", "roll"]
    with pytest.raises(GkdError, match="check 'role' is unknown; did you mean 'roles'"):
        checks.chosen(["role"])
    done = [Outcome("rights", PASSED, 0, ""), Outcome("volume", NOT_RUN, 0, ""), Outcome("submit", FAILED, 0, "")]
    mute = mock.Mock()
    assert checks.run(replace(CHECK["stop"], run=lambda ground: "ended"), mute, done).result == PASSED
    assert checks.run(CHECK["schedule"], mute, done) == Outcome("schedule", NOT_RUN, 0.0, "submit failed")


def test_what_cannot_be_removed_is_told_and_the_rest_goes(cluster, ground):
    on = ground()
    alone("serve", on)
    cluster.forbidden = {("delete", "services")}
    on.settings = replace(on.settings, timeout_seconds=1.0)
    with mock.patch.object(Ground, "until", lambda self, look, what, **_: look()):
        outcome = checks.timed("clean up", lambda: clean(on))
    fails(outcome, "Service: DELETE", "services is forbidden", f"the label gkd-cluster-test={on.api.test}")
    assert {plural for plural, _ in cluster.objects} == {"persistentvolumeclaims", "services"}


def test_ctrl_c_in_a_run_stops_it_and_removes_everything(cluster, ground):
    on = ground()

    def interrupt(on: Ground) -> str:
        on.submit("stop")
        raise KeyboardInterrupt

    wanted = [CHECK["volume"], replace(CHECK["stop"], run=interrupt), CHECK["serve"]]
    outcomes, interrupted = check_all(on, [replace(check, needs=()) for check in wanted])
    assert interrupted
    assert [(o.check, o.result) for o in outcomes] == [
        ("volume", PASSED), ("stop", NOT_RUN), ("serve", NOT_RUN), ("clean up", PASSED),
    ]  # fmt: skip
    assert len(cluster.kfp.terminated) == 1
    assert set(cluster.objects) == {("persistentvolumeclaims", "gkd-work")}
    assert not cluster.kfp.runs
    assert not list((cluster.folder / "volume").iterdir())


def test_what_is_to_be_kept_is_kept(cluster, ground):
    on = ground(keep=True)
    outcomes, _ = check_all(on, [CHECK["rights"], replace(CHECK["volume"], needs=())])
    assert outcomes[-1].words == f"GKD_CLUSTER_KEEP: everything has the label gkd-cluster-test={on.api.test}"
    assert len(list((cluster.folder / "volume").iterdir())) == 1


def surroundings() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith(("KUBE", "KF_PIPELINES", "GKD_"))}


def program(*names: str) -> list[str]:
    return [sys.executable, "-m", "tests.cluster", *names]


def command(*names: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    settings = surroundings() | {"HOME": str(cwd)} | environment
    return subprocess.run(program(*names), cwd=ROOT, env=settings, capture_output=True, text=True)


def test_a_check_that_fails_ends_the_command_with_one_and_a_table(cluster, tmp_path, monkeypatch, capsys):
    for name in [name for name in os.environ if name.startswith(("GKD_CLUSTER", "KF_PIPELINES"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig(tmp_path / "kubeconfig")))
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", cluster.kfp.host)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    given = replace(settings.read(), poll_seconds=0.05)
    monkeypatch.setattr(settings, "read", lambda: given)
    cluster.writable = False
    assert main(["volume", "logs"], run_gkd=here) == 1
    *table, last = capsys.readouterr().out.splitlines()
    found = {row["check"]: (row["result"], row["words"]) for row in json.loads(last)}
    assert [line.split("  ")[0] for line in table[1:]] == list(found)
    assert (found["volume"][0], found["clean up"][0]) == (FAILED, PASSED)
    assert found["submit"] == (NOT_RUN, "volume failed")
    assert found["logs"] == (NOT_RUN, "submit was not run")
    assert set(cluster.objects) == {("persistentvolumeclaims", "gkd-work")}


@pytest.mark.slow
def test_ctrl_c_ends_the_command_with_one_and_leaves_nothing(cluster, tmp_path):
    cluster.hangs = "-volume"
    variables = {"KUBECONFIG": str(cluster.kubeconfig(tmp_path / "kubeconfig")), "HOME": str(tmp_path)}
    variables["KF_PIPELINES_ENDPOINT"] = cluster.kfp.host
    process = subprocess.Popen(
        program("volume", "submit"), cwd=ROOT, env=surroundings() | variables, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a suite in the background ignores it
    )  # fmt: skip
    while not cluster.processes:
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate()
    assert process.returncode == 1, errors
    assert "Traceback" not in errors
    found = {row["check"]: (row["result"], row["words"]) for row in json.loads(output.splitlines()[-1])}
    assert found["volume"] == found["submit"] == (NOT_RUN, "interrupted")
    assert found["clean up"][0] == PASSED
    assert set(cluster.objects) == {("persistentvolumeclaims", "gkd-work")}


@pytest.mark.slow
def test_the_command(cluster, tmp_path):
    """As make calls it, with gkd as processes."""
    nothing = command(cwd=tmp_path)
    assert nothing.returncode == 2
    assert nothing.stderr.count("\n") == 1
    assert nothing.stderr.startswith("gkd: there is no cluster to check: set KUBECONFIG and KF_PIPELINES_ENDPOINT (")

    named = {"KUBECONFIG": str(cluster.kubeconfig(tmp_path / "kubeconfig"))}
    closed = command("rights", cwd=tmp_path, KF_PIPELINES_ENDPOINT="http://127.0.0.1:9", **named)
    assert closed.returncode == 2
    assert closed.stderr.startswith("gkd: there is no cluster to check: ")
    assert "http://127.0.0.1:9 cannot be reached" in closed.stderr

    found = command("volume", cwd=tmp_path, KF_PIPELINES_ENDPOINT=cluster.kfp.host, **named)
    assert found.returncode == 0, found.stderr
    *table, last = found.stdout.splitlines()
    assert [line.split()[:2] for line in table] == [
        ["check", "result"], ["rights", "passed"], ["volume", "passed"], ["clean", "up"],
    ]  # fmt: skip
    assert [row["result"] for row in json.loads(last)] == [PASSED] * 3


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"KUBECONFIG": ""}, "set KUBECONFIG"),
        ({"KUBECONFIG": "/nowhere"}, "KUBECONFIG is /nowhere, which is no file"),
        ({"GKD_CLUSTER_KEEP": "no"}, "GKD_CLUSTER_KEEP is 'no', but must be yes, or not set"),
        ({"GKD_CLUSTER_EPOCHS": "many"}, "GKD_CLUSTER_EPOCHS is 'many', but must be a whole number above 0"),
    ],
)
def test_settings_that_make_no_sense(tmp_path, given, words):
    (tmp_path / "kubeconfig").write_text("{}")
    right = {"KUBECONFIG": str(tmp_path / "kubeconfig"), "KF_PIPELINES_ENDPOINT": "http://x"}
    assert settings.read(right).epochs == 200
    with pytest.raises(GkdError, match=re.escape(words)):
        settings.read(right | given)


@pytest.mark.parametrize("content", ["{", "just text", "[1, 2]", "", "kind: Config"])
def test_a_kubeconfig_that_is_none(tmp_path, content):
    (tmp_path / "kubeconfig").write_text(content)
    with pytest.raises(GkdError, match=r"there is no cluster to check: KUBECONFIG \(.*kubeconfig\) cannot be read: "):
        Api(str(tmp_path / "kubeconfig"), None, "test")


def test_the_role_that_is_asked_for_is_the_one_that_the_page_gives():
    page = (ROOT / "docs" / "kubernetes.md").read_text()
    blocks = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (role,) = [one for b in blocks for one in yaml.safe_load_all(b) if one.get("kind") == "ClusterRole"]
    given = {
        (verb, group, resource)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert given == {*access.THEIRS, access.OF_KUEUE}


def test_the_page_has_every_variable_and_every_check():
    page = (ROOT / "docs" / "kubernetes.md").read_text()
    section = page.partition("\n## Is my cluster ready?\n")[2].partition("\n## ")[0]
    for variable in settings.VARIABLES:
        assert f"`{variable.name}`" in section
    for check in checks.CHECKS:
        assert f"| {check.name} |" in section
