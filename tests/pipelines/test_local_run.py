"""`gkd pipeline run --runner subprocess` of docs/kubernetes.md: a whole run on digits, beside the steps one by one."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from kfp import dsl

from components.graph import MAKER, STEP
from gkd_core.config import load_params, override, parse_params
from gkd_core.errors import GkdError
from gkd_core.files import file_digest, folder_digest, read_json
from pipelines.kubeflow import containers, local
from pipelines.kubeflow.local import run_pipeline
from tests import forked

ROOT = Path(__file__).parents[2]
MODEL = "gkd-student"
# Ten processes that import torch take a minute; on a machine that does much else, many.
pytestmark = pytest.mark.timeout(1800)
PARAMS = {
    "data": {"train_images": 200, "root": None},
    "teacher": {"name": "resnet8", "train": {"epochs": 1, "learning_rate": 0.1, "device": "cpu"}},
    "student": {"name": "resnet8"},
    # Numbers and nulls that a pipeline's arguments do not keep as they are.
    "distill": {"temperature": None, "options": {"gompertz": {"preset": "tuned", "weight_kd": 1.0, "r": None}}},
    "train": {"epochs": 5, "batch_size": 50, "clip_norm": 5.0, "device": "cpu"},
    "evaluate": {"latency_runs": 10, "device": "cpu"},
}


def gkd(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return forked.gkd(*arguments, cwd=cwd, env=environment(), timeout=1500)


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "GKD_"))}
    return kept | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A folder with params.yaml and a store whose champion was measured on other data, which no challenger beats."""
    from mlflow import MlflowClient

    folder = tmp_path_factory.mktemp("a project")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    client = MlflowClient(uri)
    client.create_registered_model(MODEL)
    champion = client.create_model_version(
        MODEL, str(folder), tags={"gkd.data": "0" * 64, "gkd.top1": "0.99", "gkd.manifest": "1" * 64}
    )
    client.set_registered_model_alias(MODEL, "champion", champion.version)
    (folder / "params.yaml").write_text(yaml.safe_dump(PARAMS | {"tracking": {"uri": uri}}))
    return folder


@pytest.fixture(scope="module")
def ran(project) -> SimpleNamespace:
    """The whole pipeline, in processes."""
    done = gkd("pipeline", "run", "--set", "train.epochs=1", "--out", "made", cwd=project)
    assert done.returncode == 0, done.stderr
    return SimpleNamespace(
        out=project / "made", summary=json.loads(done.stdout.splitlines()[-1]), stderr=done.stderr, project=project
    )


@pytest.fixture(scope="module")
def by_hand(project, tmp_path_factory) -> Path:
    """The same steps one by one, as `dvc repro` runs them."""
    from components import distill, evaluate, export, prepare, teacher

    params = load_params(project / "params.yaml", ["train.epochs=1"])
    made = tmp_path_factory.mktemp("by hand")
    inputs = {"data": made / "data", "teacher": made / "teacher"}
    prepare.run(out=made / "data", params=params)
    teacher.run(data=made / "data", out=made / "teacher", work=made / "work", params=params)
    for reference in ("baseline", "kd"):
        given = inputs | ({"teacher": None} if reference == "baseline" else {})
        distill.run(**given, out=made / reference, work=made / "work", params=params, reference=reference)
    distill.run(**inputs, out=made / "student", work=made / "work", params=params)
    export.run(**inputs, student=made / "student", out=made / "deploy", params=params)
    networks = {name: made / name for name in ("baseline", "kd", "student", "deploy")}
    evaluate.run(**inputs, **networks, out=made / "report", params=params)
    return made


@pytest.mark.slow
class TestARun:
    def test_leaves_the_folders_that_dvc_leaves(self, ran):
        assert {path.name for path in ran.out.iterdir()} == {*MAKER, "work", "pipeline.log"}
        assert not list((ran.out / "work").rglob("*.pt"))

    @pytest.mark.parametrize("name", ["data", "teacher", "baseline", "kd", "student", "deploy"])
    def test_has_the_digests_of_the_steps_run_one_by_one(self, ran, by_hand, name):
        assert folder_digest(ran.out / name) == folder_digest(by_hand / name)
        assert ran.summary["artifacts"][name] == folder_digest(by_hand / name)

    def test_measures_the_same(self, ran, by_hand):
        for file in ("metrics.json", "predictions.npy", "plots/confusion.csv", "plots/schedule.csv"):
            assert file_digest(ran.out / "report" / file) == file_digest(by_hand / "report" / file)

    def test_says_what_it_did(self, ran):
        shown = [line for line in ran.stderr.splitlines() if line.endswith(" …")]
        assert sorted(shown) == sorted(f"{step} …" for step in ("settings", *STEP, "ended"))
        assert "executor_input" not in ran.stderr
        assert "executor_input" in (ran.out / "pipeline.log").read_text()
        assert "the pipeline ended: SUCCEEDED" in ran.stderr
        assert ran.summary["runner"] == "subprocess"

    def test_a_gate_that_says_no_leaves_champion_and_the_run_is_green(self, ran):
        from mlflow import MlflowClient

        assert ran.summary["gate"]["passed"] is False
        assert not read_json(ran.out / "registration" / "gate.json", "it")["passed"]
        aliases = MlflowClient(f"sqlite:///{ran.project / 'mlflow.db'}").get_registered_model(MODEL).aliases
        assert {name: int(number) for name, number in aliases.items()} == {"champion": 1, "challenger": 2}

    def test_artifacts_carry_digests(self, ran):
        """As kfp logged them when each task ended."""
        log = (ran.out / "pipeline.log").read_text()
        for name, key in (("teacher", "digest"), ("student", "digest"), ("data", "sha256")):
            digest = (
                read_json(ran.out / "data" / "dataset.json", "it")["sha256"]
                if name == "data"
                else folder_digest(ran.out / name)
            )
            assert f"'{key}': '{digest}'" in log or f'"{key}": "{digest}"' in log, name
        assert "confusionMatrix" in log


def mini(finished: Path, settings: dict) -> object:
    """The register task alone, on what a run left."""
    from pipelines.kubeflow import components as steps

    kinds = dict.fromkeys(("teacher", "baseline", "kd", "student", "deploy"), dsl.Model) | {"report": dsl.Artifact}

    @dsl.pipeline(name="register-alone")
    def alone(params: dict = {}, overrides: list = []):  # noqa: B006
        given = {
            name: dsl.importer(artifact_uri=str(finished / name), artifact_class=kind, reimport=True).output
            for name, kind in kinds.items()
        }
        steps.register(settings=json.dumps(settings), **given)

    return alone


@pytest.mark.slow
def test_a_gate_that_says_no_fails_the_run_where_that_is_wanted(ran, monkeypatch, tmp_path, capfd):
    from components.graph import divide

    params = load_params(ran.project / "params.yaml", ["train.epochs=1", "gate.on_refusal=fail"])
    monkeypatch.setattr(local, "create_pipeline", lambda *_: mini(ran.out, divide(params)["register"]))
    monkeypatch.setitem(local.FOLDERS, "distillation", {"register": "registration"})
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)
    with pytest.raises(local.StepFailed) as caught:
        local.run_pipeline(runner="subprocess", params=ran.project / "params.yaml", out=tmp_path / "made")
    assert caught.value.exit_code == 1
    assert str(caught.value).startswith("register: ")
    assert "not promoted" in str(caught.value) or "gate" in str(caught.value)
    # The decision is there all the same, and it is the one that the run before came to.
    assert read_json(tmp_path / "made" / "registration" / "gate.json", "it")["passed"] is False


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    return tmp_path


@pytest.mark.slow
def test_a_failing_step_fails_the_pipeline_with_its_own_sentence(folder):
    done = gkd("pipeline", "run", "--set", "data.source=folder", "--set", "data.root=nowhere", cwd=folder)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    alone = gkd("prepare", "--set", "data.source=folder", "--set", "data.root=nowhere", cwd=folder)
    assert last == alone.stderr.strip().replace("gkd: ", "gkd: prepare: ")
    assert "the pipeline ended: FAILED" in done.stderr
    assert {path.name for path in (folder / "pipeline-run").iterdir()} == {"work", "pipeline.log"}
    assert not done.stdout.strip()


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--runner", "dokcer"], ["--runner 'dokcer' is unknown", "'docker'"]),
        (["--set", "train.epoch=3"], ["'train.epoch' is unknown", "'train.epochs'"]),
        (["--pipeline", "swep"], ["--pipeline 'swep' is unknown", "'sweep'"]),
        (["--argument", "dvc_reop=x"], ["--argument 'dvc_reop' is unknown", "'dvc_repo'"]),
        (["--pipeline", "sweep", "--argument", "seeds=3"], ["--argument seeds is 3", "list"]),
        (["--out", "params.yaml"], ["--out params.yaml is a file"]),
        (["--user", "1:1"], ["--user", "--runner subprocess"]),
        (["--mlflow", "http://me:secret@mlflow.example"], ["http://***@… holds a password"]),
    ],
)
def test_what_is_wrong_is_told_before_anything_runs(folder, arguments, parts, monkeypatch, gkd_here):
    monkeypatch.chdir(folder)
    code, told = gkd_here("pipeline", "run", *arguments)
    assert code == 2
    for part in parts:
        assert part in told
    assert "me:secret" not in told
    assert [path.name for path in folder.iterdir()] == ["params.yaml"]


@pytest.mark.parametrize(
    ("variable", "value", "runner", "part"),
    [
        ("DOCKER_HOST", "unix:///nowhere/docker.sock", "docker", "there is no container engine that answers"),
        ("GKD_IMAGE", "not an image", "docker", "no name of a container image"),
        ("GKD_IMAGE", "not an image", "subprocess", "no name of a container image"),
    ],
)
def test_what_containers_would_need_is_looked_at_before_anything_is_made(
    folder, variable, value, runner, part, monkeypatch, gkd_here
):
    monkeypatch.chdir(folder)
    monkeypatch.setenv(variable, value)
    code, told = gkd_here("pipeline", "run", "--runner", runner)
    assert code == 2
    (line,) = told.strip().splitlines()
    assert part in line
    assert [path.name for path in folder.iterdir()] == ["params.yaml"]


def test_nothing_is_left_when_the_containers_would_lack_their_data(folder, monkeypatch):
    monkeypatch.setattr(containers, "refuse_no_engine", list)
    monkeypatch.chdir(folder)
    for overrides, user, part in (
        (["data.source=folder", "data.root=nowhere"], None, "data.root nowhere does not exist"),
        ([], "me", "--user 'me' is not of the form UID:GID"),
    ):
        with pytest.raises(GkdError, match=part):
            run_pipeline(
                runner="docker", params=folder / "params.yaml", overrides=overrides, out=folder / "made", user=user
            )
        assert [path.name for path in folder.iterdir()] == ["params.yaml"]


@pytest.mark.parametrize("runner", ["subprocess", "docker"])
@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["teacher.source=nowhere"], "teacher.source is nowhere, but there is no file or folder"),
        (["student.weights=./nowhere.pth"], "student.weights is ./nowhere.pth, but there is no file or folder"),
        (["evaluate.frontier=front"], "evaluate.frontier is front, but there is no folder"),
        (["gate.max_latency_ms=1", "gate.deploy_bench=x.json"], "gate.deploy_bench is x.json, but there is no file"),
        (["decide={coverage: 0.9, unknown: others}"], "decide.unknown is others, but there is no folder"),
    ],
)
def test_a_path_that_is_not_there_is_refused_before_anything_is_made(runner, overrides, part, folder, monkeypatch):
    monkeypatch.setattr(containers, "refuse_no_engine", list)
    monkeypatch.chdir(folder)
    with pytest.raises(GkdError, match=part) as caught:
        run_pipeline(runner=runner, params=folder / "params.yaml", overrides=overrides, out=folder / "made")
    assert caught.value.exit_code == 2
    assert [path.name for path in folder.iterdir()] == ["params.yaml"]


def test_containers_see_what_networks_start_from(folder, monkeypatch):
    monkeypatch.setattr(containers, "refuse_no_engine", list)
    monkeypatch.setattr(containers.Containers, "_see_tracking", lambda *_: None)
    monkeypatch.chdir(folder)
    for file in ("own.pth", "second.pth"):
        (folder / file).write_text("")
    members = [{"name": "resnet8", "seed": 3}, {"name": "resnet8", "weights": "second.pth"}]
    given = {
        "teacher": {"members": members},
        "student": {"name": "resnet8", "weights": "own.pth"},
        "distill": {"scheme": "ensemble", "method": "kd"},
    }
    run = containers.Containers(parse_params(given), {}, folder / "root", folder / "work", {}, None)
    assert {place: kind for place, kind in run._mounts.items() if place.suffix} == {
        folder / "own.pth": False,
        folder / "second.pth": False,
    }
    found = parse_params(given, run.overrides)
    assert found.student.weights == str(folder / "own.pth")
    assert [member.weights for member in found.teacher.members] == [None, str(folder / "second.pth")]
    assert found.teacher.members[0].seed == 3
    published = parse_params({"student": {"name": "mobilenet_v3_small", "weights": "pretrained"}})
    assert containers.Containers(published, {}, folder / "root", folder / "work", {}, None).overrides == []


def test_containers_see_the_files_of_every_source(folder, monkeypatch):
    monkeypatch.setattr(containers, "refuse_no_engine", list)
    monkeypatch.setattr(containers.Containers, "_see_tracking", lambda *_: None)
    for file in ("list.csv", "photos.zip"):
        (folder / file).write_text("")

    def made(source: str, root: str) -> containers.Containers:
        params = parse_params({"data": {"source": source, "root": root}})
        return containers.Containers(params, {}, folder / "root", folder / "work", {}, None)

    alone = made("folder", str(folder / "photos.zip"))
    assert alone.overrides == [override("data.root", folder / "photos.zip")]
    assert alone._mounts[folder / "photos.zip"] is False
    assert made("list", str(folder / "list.csv"))._mounts[folder] is False, "the images lie beside it"
    elsewhere = made("list", "s3://bucket/list.csv")
    assert (elsewhere.overrides, elsewhere._network) == ([], None)
    assert made("folder", "http://localhost:8000/photos.zip")._network == "host"


class Engine:
    """A container engine with two tasks at work, one of which does not heed SIGTERM."""

    def __init__(self) -> None:
        self.at_work, self.told, self.label = ["polite", "stubborn"], [], ""
        self.containers = self

    def close(self) -> None:
        self.told.append("closed")

    def list(self, *, filters: dict[str, str], ignore_removed: bool) -> list[SimpleNamespace]:
        self.label = filters["label"]
        return [self._container(name) for name in self.at_work]

    def _container(self, name: str) -> SimpleNamespace:
        def kill() -> None:
            self.told.append(f"kill {name}")
            self.at_work.remove(name)

        def exec_run(command: list[str]) -> None:
            self.told.append(f"{name}: {' '.join(command)}")
            if name == "polite":
                self.at_work.remove(name)

        return SimpleNamespace(kill=kill, exec_run=exec_run)


def test_containers_are_asked_to_end_and_killed_only_when_they_do_not(folder, monkeypatch):
    monkeypatch.setattr(containers, "refuse_no_engine", list)
    monkeypatch.setattr("docker.from_env", lambda: engine)
    run = containers.Containers(parse_params({}), {}, folder / "root", folder / "work", {}, None)

    engine = Engine()
    engine.at_work = ["polite"]
    run.stop(3600)
    asked = "sh -c kill -TERM -1"  # to all processes: the first is a shell that hands nothing on
    assert engine.told == [f"polite: {asked}", "closed"]
    assert engine.label == f"gkd.run={run.runner().container_run_args['labels']['gkd.run']}", "of this run alone"

    engine = Engine()
    run.stop(0)
    assert engine.told == [f"polite: {asked}", f"stubborn: {asked}", "kill stubborn", "closed"]

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    engine = Engine()
    monkeypatch.setattr(containers.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):  # once more: nobody waits
        run.stop(3600)
    assert engine.told[-2:] == ["kill stubborn", "closed"]


def test_a_folder_that_no_step_wrote_is_not_replaced(folder):
    (folder / "made" / "teacher").mkdir(parents=True)
    (folder / "made" / "teacher" / "thesis.txt").write_text("mine")
    with pytest.raises(GkdError, match=r"thesis\.txt"):
        run_pipeline(runner="subprocess", params=folder / "params.yaml", out=folder / "made")


def test_a_project_is_not_replaced_by_a_run(folder, monkeypatch):
    (folder / "project").mkdir()
    (folder / "project" / "dvc.yaml").touch()
    monkeypatch.chdir(folder)
    for out in (Path(), Path(".."), folder / "project"):
        with pytest.raises(GkdError, match="is a project") as error:
            run_pipeline(runner="subprocess", params=folder / "params.yaml", out=out)
        assert error.value.exit_code == 2


@pytest.mark.slow
def test_stopped_it_leaves_no_process_and_nothing_half_written(folder):
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", "pipeline", "run", "--set", "teacher.train.epochs=5000",
         "--set", "references.baseline=false"],
        cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        for line in process.stderr:
            if line.startswith("teacher …"):
                break
        tasks = next((folder / "pipeline-run").glob(".kubeflow-*/tasks"))
        (state,) = [read_json(file, "it") for file in tasks.glob("teacher-*.json")]
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    while alive(state["pid"]):
        time.sleep(0.1)
    left = {path.name for path in (folder / "pipeline-run").iterdir()}
    # What was finished is kept; baseline needs no teacher, so it may have come before or not.
    assert left | {"baseline"} == {"data", "baseline", "work", "pipeline.log"}


@pytest.mark.slow
def test_a_task_that_was_killed_and_is_run_again_goes_on_where_it_was(folder, tmp_path_factory):
    """As on a cluster, where a preempted pod is tried again with the same volume at GKD_WORK."""
    from components import distill

    epochs = 30
    out = folder / "pipeline-run"
    overrides = [f"train.epochs={epochs}", "references={baseline: false, kd: false}", "distill.method=gompertz"]

    def until(said: str, stop: Callable[[subprocess.Popen], None]) -> tuple[int, list[str]]:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.cli", "pipeline", "run", *(f"--set={given}" for given in overrides)],
            cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        lines = []
        try:
            for line in process.stderr:
                lines.append(line)
                if said in line:
                    break
            stop(process)
        finally:
            _, errors = process.communicate(timeout=600)
        return process.returncode, [*lines, *errors.splitlines()]

    def kill_the_task(_: subprocess.Popen) -> None:
        (record,) = out.glob(".kubeflow-*/tasks/distill-*.json")
        os.kill(read_json(record, "it")["pid"], signal.SIGKILL)

    code, lines = until("(gompertz)  epoch 2/", kill_the_task)
    assert code == 2
    assert lines[-1].startswith("gkd: distill was killed, ")
    assert not (out / "student").exists()
    assert list((out / "work").rglob("*.pt")), "its checkpoint is on the volume"

    # The second time it is stopped once the student is there: what comes after is not looked at here.
    code, lines = until("export …", lambda process: process.send_signal(signal.SIGTERM))
    assert code == 128 + signal.SIGTERM
    trained = [line for line in lines if "(gompertz)  epoch " in line]
    assert f"epoch {epochs}/{epochs}" in trained[-1]
    assert not [line for line in trained if "epoch 1/" in line], "it began anew"
    assert not list((out / "work").rglob("*.pt"))

    whole = tmp_path_factory.mktemp("never killed")
    params = load_params(folder / "params.yaml", overrides)
    given = {"data": out / "data", "teacher": out / "teacher"}
    distill.run(**given, out=whole / "student", work=whole / "work", params=params)
    assert folder_digest(out / "student") == folder_digest(whole / "student")


def alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"
