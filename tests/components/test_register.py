"""The register step on a real tracking database: what is logged, who becomes champion, what a second run does."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.models import Model

from components import register, registry
from components.mlflow_store import Store
from gkd_core.config import Params, parse_params
from gkd_core.errors import GkdError
from gkd_core.evaluation.deploy_bench import Case, DeployBench
from gkd_core.files import file_digest, folder_digest
from gkd_core.gate import GateRefused


def with_store(uri: str, **gate) -> Params:
    return parse_params({"tracking": {"uri": uri}, "gate": gate})


def contents(out: Path) -> tuple[dict, dict]:
    return tuple(json.loads((out / name).read_text()) for name in ("gate.json", "version.json"))


def runs_in(client: MlflowClient) -> list:
    experiments = [e.experiment_id for e in client.search_experiments()]
    return client.search_runs(experiments)


def test_the_first_version_becomes_champion(registration):
    _, params, summary, out = registration
    gate, version = contents(out)
    assert summary["gate"] == {"passed": True, "sentence": "version 1 passed all 5 checks"}
    assert summary["registry"] == {"name": "gkd-student", "version": 1, "alias": "champion"}
    assert gate["passed"]
    assert (gate["champion_before"], gate["champion_after"], gate["challenger"]) == (None, 1, 1)
    assert [reason["check"] for reason in gate["reasons"]] == ["baseline", "champion", "parity", "size", "latency"]
    assert (version["name"], version["version"], version["alias"]) == ("gkd-student", 1, "champion")
    aliases = MlflowClient(params.tracking.uri).get_registered_model("gkd-student").aliases
    assert {alias: int(number) for alias, number in aliases.items()} == {"champion": 1, "challenger": 1}


def test_each_trained_network_has_its_run(registration):
    folders, params, summary, _ = registration
    client = MlflowClient(params.tracking.uri)
    runs = {run.data.tags["gkd.role"]: run for run in runs_in(client)}
    assert set(runs) == {"teacher", "baseline", "student"}, "plain KD was not trained"
    assert {role: [run.info.run_id] for role, run in runs.items()} == summary["runs"]
    for role, run in runs.items():
        assert run.info.status == "FINISHED"
        assert run.data.tags["gkd.complete"] == "true"
        assert run.data.tags["gkd.git_revision"] == "abc123"
        assert run.data.params["network"] == "resnet8"
        curve = client.get_metric_history(run.info.run_id, "train_loss")
        assert [(point.step, point.value) for point in curve] == [(1, 2.0), (2, 1.0), (3, 2.0 / 3)]
        (top1,) = client.get_metric_history(run.info.run_id, "test_top1")
        assert top1.value == pytest.approx(330 / 360, abs=1e-6)
        assert run.data.metrics["latency_ms_p50"] == 0.5
        digest = folder_digest(folders.teacher / "resnet8" if role == "teacher" else getattr(folders, role))
        assert run.data.tags["gkd.digest"] == digest
        artifacts = {item.path for item in client.list_artifacts(run.info.run_id)}
        assert artifacts == ({"network", "deploy", "report", "gate"} if role == "student" else {"network"})
    student = runs["student"]
    assert student.data.params["hyperparameters.temperature"] == "4.0"
    assert student.data.params["hyperparameters.solver"] == "null"
    assert student.data.params["train.learning_rate"] == "0.05"
    assert student.data.params["distill.method"] == "gompertz"
    assert "teacher.train.epochs" in runs["teacher"].data.params
    assert [item.path for item in client.list_artifacts(student.info.run_id, "report/pictures")] == [
        "report/pictures/mistakes.jpg"
    ]
    assert student.data.metrics["student_minus_baseline_difference"] == 0.01
    assert student.data.metrics["onnx_bytes"] == (folders.deploy / "model.onnx").stat().st_size
    assert student.data.metrics["onnx_parity_max_abs"] == 2e-6
    model = client.download_artifacts(student.info.run_id, "deploy/model.onnx")
    assert Path(model).read_bytes() == (folders.deploy / "model.onnx").read_bytes()


def test_the_version_is_the_exported_file_with_signature_and_lineage(registration):
    folders, params, *_ = registration
    client = MlflowClient(params.tracking.uri)
    version = client.get_model_version_by_alias("gkd-student", "champion")
    manifest = json.loads((folders.deploy / "manifest.json").read_text())
    assert version.tags["gkd.manifest"] == file_digest(folders.deploy / "manifest.json")
    for tag, key in {"data": "data_sha256", "teacher": "teacher_digest", "student": "student_digest",
                     "config": "config_digest", "code": "code_sha256", "method": "method"}.items():  # fmt: skip
        assert version.tags[f"gkd.{tag}"] == manifest[key]
    assert version.tags["gkd.model"] == manifest["model"]["sha256"]
    assert version.tags["gkd.git_revision"] == "abc123"
    assert version.tags["gate.passed"] == "true"
    assert version.tags["gate.sentence"] == "version 1 passed all 5 checks"
    assert version.tags["gate.champion"] == "there is no champion yet to compare with"

    local = client.get_logged_model(version.source.rpartition("/")[2]).artifact_location
    files = sorted(path.name for path in Path(local).iterdir() if path.suffix in (".onnx", ".data"))
    assert files == ["model.onnx"]
    assert (Path(local) / "model.onnx").read_bytes() == (folders.deploy / "model.onnx").read_bytes()
    signature = Model.load(local).signature
    (given,), (returned,) = signature.inputs.inputs, signature.outputs.inputs
    assert (given.name, given.type, given.shape) == ("image", np.dtype("uint8"), (-1, 8, 8, 1))
    assert (returned.name, returned.type, returned.shape) == ("logits", np.dtype("float32"), (-1, 10))
    requirements = (Path(local) / "requirements.txt").read_text()
    assert "onnxruntime==" in requirements
    assert "torch" not in requirements


def test_running_again_registers_nothing_and_reports_the_same(registration, tmp_path):
    folders, params, summary, out = registration
    client = MlflowClient(params.tracking.uri)
    before = len(runs_in(client))
    assert register.run(**folders._asdict(), out=tmp_path / "registration", params=params) == summary
    for name in ("gate.json", "version.json"):
        assert (tmp_path / "registration" / name).read_bytes() == (out / name).read_bytes()
    assert len(runs_in(client)) == before
    assert len(client.search_model_versions("name = 'gkd-student'")) == 1
    assert len(client.search_logged_models([e.experiment_id for e in client.search_experiments()])) == 1


def test_on_what_the_steps_really_leave(project, evaluated, tmp_path, store_uri):
    made = {name: folder for name, folder in project.inputs().items() if name != "data"}
    params = project.params.model_copy(update={"tracking": with_store(store_uri).tracking})
    summary = register.run(**made, report=evaluated.report, out=tmp_path / "out", params=params)
    assert summary["registry"]["version"] == 1
    logged = MlflowClient(store_uri).get_run(summary["runs"]["student"][0]).data
    assert logged.params["train.epochs"] == "2"
    assert {"train_loss", "beta", "validation_top1", "test_top1", "onnx_top1", "latency_ms_p50"} <= set(logged.metrics)


def test_the_better_takes_over_and_the_worse_does_not(tmp_path, finish, store_uri):
    params = with_store(store_uri)
    shared = {}
    for name, seed, right in (("first", 1, 300), ("better", 2, 340), ("worse", 3, 310)):
        folders = finish(tmp_path / name, seed=seed, right=right)
        shared[name] = register.run(**folders._asdict(), out=tmp_path / f"{name}-out", params=params)
    assert shared["better"]["registry"] == {"name": "gkd-student", "version": 2, "alias": "champion"}
    assert shared["worse"]["registry"] == {"name": "gkd-student", "version": 3, "alias": "challenger"}
    gate, _ = contents(tmp_path / "worse-out")
    assert not gate["passed"]
    assert (gate["champion_before"], gate["champion_after"], gate["challenger"]) == (2, 2, 3)
    # 30 of 360 images lost, none gained, compared image by image.
    refused = gate["reasons"][1]
    assert refused["value"] == pytest.approx(-30 / 360, abs=1e-6)
    assert "(image by image)" in refused["sentence"]
    client = MlflowClient(store_uri)
    aliases = client.get_registered_model("gkd-student").aliases
    assert {a: int(n) for a, n in aliases.items()} == {"champion": 2, "previous_champion": 1, "challenger": 3}
    teachers = [run for run in runs_in(client) if run.data.tags["gkd.role"] == "teacher"]
    assert len(teachers) == 1, "the same teacher was logged twice"

    strict = with_store(store_uri, on_refusal="fail")
    with pytest.raises(
        GateRefused, match=r"version 3 was refused: top-1 is -8\.33 points against the champion"
    ) as error:
        register.run(**folders._asdict(), out=tmp_path / "strict-out", params=strict)
    assert error.value.exit_code == 1
    assert contents(tmp_path / "strict-out")[0] == gate

    # Other thresholds are another question: decided anew, nothing registered.
    lenient = with_store(store_uri, max_drop_to_champion=0.1)
    again = register.run(**folders._asdict(), out=tmp_path / "lenient-out", params=lenient)
    assert again["registry"] == {"name": "gkd-student", "version": 3, "alias": "champion"}
    assert len(client.search_model_versions("name = 'gkd-student'")) == 3


def test_other_data(tmp_path, finish, store_uri):
    first = finish(tmp_path / "first", seed=1)
    register.run(**first._asdict(), out=tmp_path / "out", params=with_store(store_uri))
    second = finish(tmp_path / "second", seed=2, data="e" * 64)
    refused = register.run(**second._asdict(), out=tmp_path / "out", params=with_store(store_uri))
    assert not refused["gate"]["passed"]
    assert "was measured on other data" in refused["gate"]["sentence"]
    promoted = register.run(**second._asdict(), out=tmp_path / "out", params=with_store(store_uri, new_data="promote"))
    assert promoted["registry"]["alias"] == "champion"


@pytest.mark.slow
def test_by_balanced_accuracy_the_champion_s_own_predictions_are_asked(tmp_path, finish, store_uri):
    """Both are wrong on the last images, whose classes are ten in turn: balanced accuracy is near top-1 here."""
    params = with_store(store_uri, metric="balanced_accuracy")
    first = finish(tmp_path / "first", seed=1, right=330)
    summary = register.run(**first._asdict(), out=tmp_path / "out", params=params)
    assert summary["registry"]["alias"] == "champion"
    reasons = contents(tmp_path / "out")[0]["reasons"]
    assert reasons[0]["sentence"].startswith("balanced accuracy is +1.00 points against the student alone")
    logged = MlflowClient(store_uri).get_run(summary["runs"]["student"][0]).data.metrics
    assert {"test_balanced_accuracy", "test_macro_f1", "student_minus_baseline_macro_f1_difference"} <= set(logged)

    worse = finish(tmp_path / "worse", seed=2, right=300)
    refused = register.run(**worse._asdict(), out=tmp_path / "out", params=params)
    assert not refused["gate"]["passed"]
    assert (
        "balanced accuracy is -8.33 points against the champion, version 1 (image by image)"
        in (refused["gate"]["sentence"])
    )

    run = MlflowClient(store_uri).get_run(summary["runs"]["student"][0])
    kept = Path(run.info.artifact_uri) / "report" / "predictions.npy"
    np.save(kept, np.zeros(360, dtype=np.int32))  # of other images, as it were
    better = finish(tmp_path / "better", seed=3, right=350)
    doubted = register.run(**better._asdict(), out=tmp_path / "out", params=params)
    assert "was registered without its predictions" in doubted["gate"]["sentence"]


@pytest.mark.slow
def test_a_champion_whose_predictions_are_gone(tmp_path, finish, store_uri):
    first = finish(tmp_path / "first", seed=1)
    summary = register.run(**first._asdict(), out=tmp_path / "out", params=with_store(store_uri))
    run = MlflowClient(store_uri).get_run(summary["runs"]["student"][0])
    correct = Path(run.info.artifact_uri) / "gate" / "correct.npy"
    correct.write_bytes(correct.read_bytes()[:40])
    second = finish(tmp_path / "second", seed=2)
    register.run(**second._asdict(), out=tmp_path / "out", params=with_store(store_uri))
    assert "by accuracy alone" in contents(tmp_path / "out")[0]["reasons"][1]["sentence"]
    MlflowClient(store_uri).set_registered_model_alias("gkd-student", "champion", "1")
    correct.unlink()
    third = finish(tmp_path / "third", seed=3)
    register.run(**third._asdict(), out=tmp_path / "out", params=with_store(store_uri))
    assert "by accuracy alone" in contents(tmp_path / "out")[0]["reasons"][1]["sentence"]


class Killed(BaseException):
    """The process ends here."""


def dies(*_, **__):
    raise Killed


def counted(uri: str) -> tuple[int, int, int, dict[str, int]]:
    """Complete runs, versions, models and aliases."""
    client = MlflowClient(uri)
    complete = [run for run in runs_in(client) if run.data.tags.get("gkd.complete") == "true"]
    models = client.search_logged_models([e.experiment_id for e in client.search_experiments()])
    aliases = client.get_registered_model("gkd-student").aliases
    versions = client.search_model_versions("name = 'gkd-student'")
    return len(complete), len(versions), len(models), {alias: int(number) for alias, number in aliases.items()}


@pytest.mark.parametrize(
    ("where", "what"),
    [
        (MlflowClient, "log_artifacts"),  # in the middle of a run
        pytest.param(MlflowClient, "set_terminated", marks=pytest.mark.slow),  # at its end
        pytest.param(MlflowClient, "log_model_artifacts", marks=pytest.mark.slow),  # in the middle of the model
        (MlflowClient, "create_registered_model"),  # before the version
        (Store, "point"),  # after it
        pytest.param(register, "decide", marks=pytest.mark.slow),  # before the gate
        (register, "make_champion"),  # between the decision and the alias
    ],
)
def test_killed_anywhere_the_next_run_finishes(where, what, tmp_path, finish, store_uri, monkeypatch):
    folders, params = finish(tmp_path / "run"), with_store(store_uri)
    with monkeypatch.context() as patch:
        patch.setattr(where, what, dies)
        with pytest.raises(Killed):
            register.run(**folders._asdict(), out=tmp_path / "out", params=params)
    assert not (tmp_path / "out").exists()
    summary = register.run(**folders._asdict(), out=tmp_path / "out", params=params)
    assert summary["registry"] == {"name": "gkd-student", "version": 1, "alias": "champion"}
    assert counted(store_uri) == (3, 1, 1, {"champion": 1, "challenger": 1})
    left = [run for run in runs_in(MlflowClient(store_uri)) if "gkd.complete" not in run.data.tags]
    assert all(run.info.status == "FAILED" for run in left)


def test_killed_after_the_alias_moved(tmp_path, finish, store_uri, monkeypatch):
    params = with_store(store_uri)
    register.run(**finish(tmp_path / "first", seed=1)._asdict(), out=tmp_path / "out", params=params)
    second = finish(tmp_path / "second", seed=2, right=350)
    tag = Store.tag
    with monkeypatch.context() as patch:
        patch.setattr(Store, "tag", lambda s, n, tags: dies() if "gate.settled" in tags else tag(s, n, tags))
        with pytest.raises(Killed):
            register.run(**second._asdict(), out=tmp_path / "out", params=params)
    register.run(**second._asdict(), out=tmp_path / "out", params=params)
    gate, _ = contents(tmp_path / "out")
    assert (gate["champion_before"], gate["champion_after"]) == (1, 2), "the decision first made is the one reported"
    assert counted(store_uri)[3] == {"champion": 2, "challenger": 2, "previous_champion": 1}


def test_a_champion_promoted_meanwhile_is_the_one_compared_with(tmp_path, finish, store_uri, monkeypatch):
    params = with_store(store_uri)
    for name, seed, right in (("first", 1, 300), ("strong", 2, 350)):
        register.run(**finish(tmp_path / name, seed=seed, right=right)._asdict(), out=tmp_path / "out", params=params)
    registry.rollback(params.tracking)
    decide, seen = register.decide, []

    def meanwhile(*arguments, champion, **options):
        seen.append(champion.version)
        if len(seen) == 1:
            registry.promote(params.tracking, "2", reason="somebody else")
        return decide(*arguments, champion=champion, **options)

    monkeypatch.setattr(register, "decide", meanwhile)
    third = finish(tmp_path / "third", seed=3, right=310)
    summary = register.run(**third._asdict(), out=tmp_path / "out", params=params)
    assert seen == [1, 2]
    assert not summary["gate"]["passed"]
    assert counted(store_uri)[3]["champion"] == 2


def test_what_a_person_took_back_stays_back(tmp_path, finish, store_uri):
    params = with_store(store_uri)
    register.run(**finish(tmp_path / "first", seed=1)._asdict(), out=tmp_path / "out", params=params)
    second = finish(tmp_path / "second", seed=2, right=350)
    register.run(**second._asdict(), out=tmp_path / "out", params=params)
    registry.rollback(params.tracking, reason="wrong on sevens")
    again = register.run(**second._asdict(), out=tmp_path / "out", params=params)
    assert again["gate"]["passed"], "the decision of then is reported"
    assert counted(store_uri)[3]["champion"] == 1
    other = register.run(**second._asdict(), out=tmp_path / "out", params=with_store(store_uri, max_size_mb=5.0))
    assert not other["gate"]["passed"]
    assert "taken back by hand" in other["gate"]["sentence"]
    assert "wrong on sevens" in other["gate"]["sentence"]
    assert counted(store_uri)[3]["champion"] == 1


def test_parameters_are_logged_only_as_far_as_they_are_the_network_s_own(tmp_path, finish, store_uri, capfd):
    folders = finish(tmp_path / "run")
    changed = parse_params({"tracking": {"uri": store_uri}, "train": {"learning_rate": 0.5}})
    capfd.readouterr()
    summary = register.run(**folders._asdict(), out=tmp_path / "out", params=changed)
    assert capfd.readouterr() == ("", ""), "nothing is said but what is ours"
    logged = MlflowClient(store_uri).get_run(summary["runs"]["student"][0]).data.params
    assert logged["seed"] == "0"
    assert not any(key.startswith("train.") for key in logged)


def test_in_a_run_that_the_platform_opened_and_again_without_it(tmp_path, finish, store_uri, monkeypatch):
    client = MlflowClient(store_uri)
    experiment = client.create_experiment("pipeline", artifact_location=str(tmp_path / "artifacts"))
    parent = client.create_run(experiment).info.run_id
    params, folders = with_store(store_uri), finish(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_RUN_ID", parent)
        patch.setenv("MLFLOW_EXPERIMENT_ID", experiment)
        summary = register.run(**folders._asdict(), out=tmp_path / "out", params=params)
        version = contents(tmp_path / "out")[1]
    ours = [client.get_run(ids[0]) for ids in summary["runs"].values()]
    assert {run.info.experiment_id for run in ours} == {experiment}
    assert {run.data.tags["mlflow.parentRunId"] for run in ours} == {parent}
    assert client.get_run(parent).info.status == "RUNNING", "it is not ours to end"
    assert register.run(**folders._asdict(), out=tmp_path / "out", params=params) == summary
    assert contents(tmp_path / "out")[1] == version
    assert len(runs_in(client)) == 4


DVC_STAGE = """stages:
  register:
    cmd: >-
      {python} -m pipelines.cli register --teacher run/teacher --baseline run/baseline --kd run/kd
      --student run/student --deploy run/deploy --report run/report --out registration
    deps: [run]
    outs: [registration]
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_dvc_experiment_in_a_temporary_clone_registers_in_the_checkout_s_store(tmp_path, finish, empty_store):
    checkout = tmp_path / "checkout"
    checkout.mkdir()

    def call(*command: str) -> None:
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "DVC_NO_ANALYTICS": "1"}
        result = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout + result.stderr

    def commit(message: str) -> None:
        call("git", "add", "--all")
        call("git", "-c", "user.name=x", "-c", "user.email=x@x", "commit", "--quiet", "-m", message)

    call("git", "init", "--quiet")
    call(sys.executable, "-m", "dvc", "init", "--quiet")
    (checkout / "params.yaml").write_text("{}")
    (checkout / "dvc.yaml").write_text(DVC_STAGE.format(python=sys.executable))
    (checkout / ".gitignore").write_text("mlflow.db\nmlartifacts\n/registration\n")
    shutil.copy(empty_store, checkout)
    finish(checkout / "run", seed=1)
    commit("first")
    call(sys.executable, "-m", "dvc", "repro")
    commit("its lock")
    shutil.rmtree(checkout / "run")
    finish(checkout / "run", seed=2, right=310)
    commit("a worse student")

    call(sys.executable, "-m", "dvc", "exp", "run", "--temp", "--name", "in-a-clone")
    call(sys.executable, "-m", "dvc", "exp", "apply", "in-a-clone")
    gate, version = contents(checkout / "registration")
    assert (gate["champion_before"], gate["passed"]) == (1, False), "the gate saw the champion"
    client = MlflowClient(f"sqlite:///{checkout / 'mlflow.db'}")
    artifacts = client.list_artifacts(client.get_model_version("gkd-student", str(version["version"])).run_id)
    assert {"network", "deploy", "report", "gate"} == {item.path for item in artifacts}, "it outlives the clone"
    aliases = client.get_registered_model("gkd-student").aliases
    assert {alias: int(number) for alias, number in aliases.items()} == {"champion": 1, "challenger": 2}


def benched(file: Path, sha256: str, milliseconds: float = 0.7, batch: int = 1) -> Path:
    """What `gkd bench deploy` would have written on a slower machine."""
    where = {"processor": "ARM", "cores": 4, "system": "Linux", "onnxruntime": "1.31.1"}
    cases = [Case("CPUExecutionProvider", 4, size, size * milliseconds, 9.0, 9.0, 99.0) for size in (8, batch)]
    model = {"file": "model.onnx", "sha256": sha256, "precision": "fp32"}
    file.write_text(json.dumps(DeployBench(model, where, 200, 10, cases).as_dict()))
    return file


def test_latency_counts_where_the_model_will_run(tmp_path, finish, store_uri):
    folders = finish(tmp_path / "run", latency=0.5)
    sha256 = file_digest(folders.deploy / "model.onnx")

    def gate(**settings) -> dict:
        params = with_store(store_uri, **settings)
        return register.run(**folders._asdict(), out=tmp_path / "out", params=params)["gate"]

    assert gate(max_latency_ms=0.6)["passed"], "half a millisecond on the machine that evaluated"
    file = benched(tmp_path / "b.json", sha256)
    refused = gate(max_latency_ms=0.6, deploy_bench=str(file))
    assert not refused["passed"]
    assert "on the target (ARM, fp32, CPU, 4 threads) one image takes a median of 0.700 ms" in refused["sentence"]
    assert gate(max_latency_ms=0.8, deploy_bench=str(file))["passed"]
    benched(file, sha256, milliseconds=0.9)
    assert not gate(max_latency_ms=0.8, deploy_bench=str(file))["passed"], "another file decides anew"

    for broken, words in (
        (benched(tmp_path / "other.json", "a" * 64), r"measured another model \(aaaaaaaaaaaa\) than those in"),
        (benched(tmp_path / "large.json", sha256, batch=2), "no case with one image"),
        (tmp_path / "none.json", "does not exist: run `gkd bench deploy` on the target"),
    ):
        with pytest.raises(GkdError, match=words):
            gate(max_latency_ms=0.8, deploy_bench=str(broken))
    with pytest.raises(GkdError, match="deploy_bench is given but max_latency_ms is null"):
        gate(deploy_bench=str(file))


def test_predictions_that_are_not_the_report_s(tmp_path, finish, store_uri):
    first, second = finish(tmp_path / "first", seed=1), finish(tmp_path / "second", seed=2)
    params = with_store(store_uri)
    with pytest.raises(GkdError, match=r"measures another model than the one in .*: run `gkd evaluate` again"):
        register.run(**first._replace(report=second.report)._asdict(), out=tmp_path / "out", params=params)
    np.save(first.report / "predictions.npy", np.zeros(360, np.int32))
    with pytest.raises(GkdError, match=r"do not agree with its metrics\.json: run `gkd evaluate` again"):
        register.run(**first._asdict(), out=tmp_path / "out", params=params)
    (second.report / "predictions.npy").unlink()
    with pytest.raises(GkdError, match=r"predictions in .* cannot be read .*: run `gkd evaluate` again"):
        register.run(**second._asdict(), out=tmp_path / "out", params=params)
    assert not (tmp_path / "out").exists()
    assert MlflowClient(store_uri).search_registered_models() == []
