"""What is sent to a server, and what is said of it before: arguments, places only pods reach, the cluster's cache."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.commands.options import Arguments
from pipelines.commands.pipeline import Task
from pipelines.kubeflow import runs, schedules
from pipelines.kubeflow.compile import compile_pipeline
from pipelines.kubeflow.package import Work, check, unchecked
from pipelines.kubeflow.schedules import Clock
from tests.pipelines.conftest import cached, says
from tests.pipelines.kfp_server import KfpServer

ROOT = Path(__file__).parents[2]


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
def test_what_cannot_run_is_refused(work, change, parts):
    with says(*parts):
        check(replace(work, **change), print)


def test_what_only_pods_reach_is_named(tmp_path):
    work = {"claim": "shared", "mount": "/gkd/work", "sub_path": "team/gkd"}
    own = {"light": {"queue": "small"}, "training": {"queue": "gpus"}, "nodes": {"count": 2}, "work": work}
    (tmp_path / "own.yaml").write_text(json.dumps(own))
    compile_pipeline(tmp_path / "p.yaml", params=ROOT / "params.yaml", profile=str(tmp_path / "own.yaml"))
    said = unchecked(Work(tmp_path / "p.yaml", {}, "name"))
    assert "the claim shared (folder team/gkd), Kueue's queues gpus, small, and the MLflow server" in said


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
def test_what_no_task_could_use_is_not_sent(whole, arguments, parts):
    with says(*parts):
        check(Work(whole, arguments, "name"), print)


def test_an_ssh_address_holds_no_password(whole):
    arguments = {"dvc_repo": "git@host:team/data.git", "dvc_path": "images", "data_source": "folder"}
    assert check(Work(whole, arguments, "name"), print).arguments == arguments


def test_a_repository_and_images_in_a_volume_of_the_profile_are_there(tmp_path):
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


def test_a_sweep_is_looked_at_as_its_first_task_would(compiled):
    check(Work(compiled(which="sweep"), {"pairs": [["resnet20", "resnet8"]]}, "name"), print)
    with says("'kdd'"):
        check(Work(compiled(which="sweep"), {"methods": ["kdd"]}, "name"), print)


@pytest.mark.parametrize(("profile", "devices"), [("gpu", 1), ("multi-gpu", 4), ("multi-node", 8)])
def test_parameters_given_to_a_file_train_on_the_devices_it_was_compiled_for(compiled, profile, devices):
    work = check(Work(compiled(profile), {"params": {"train": {"epochs": 7}}}, "name"), print)
    sent = work.arguments["params"]
    assert sent["train"].get("devices", 1) == devices
    assert sent.get("teacher", {"train": {}})["train"].get("devices", 1) == devices
    assert sent["train"]["epochs"] == 7
    for wrong in {1, 2, 4} - {devices}:
        with says(f"train.devices is {wrong}, but"):
            check(Work(compiled(profile), {"params": {"train": {"devices": wrong}}}, "name"), print)


def test_what_would_be_lost_and_what_no_node_may_find_is_pointed_out(whole):
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
def test_a_profile_may_name_the_server(tmp_path, capsys, more):
    (tmp_path / "own.yaml").write_text(f"{more}\n")
    options = {"params": ROOT / "params.yaml", "profile": str(tmp_path / "own.yaml"), "warn": True}
    compile_pipeline(tmp_path / "p.yaml", **options)
    assert capsys.readouterr().err == ""
    said = []
    check(Work(tmp_path / "p.yaml", {}, "name"), said.append)
    assert [line for line in said if "names no registry" not in line] == []


@pytest.mark.parametrize("upload", [None, "gkd"])
@pytest.mark.parametrize("scheduled", [False, True])
def test_without_the_cache_no_task_of_what_the_server_got_has_any(connect, whole, upload, scheduled):
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
def test_what_moves_behind_its_name_is_warned_about(whole, arguments, warned):
    if "dvc_repo" in arguments:
        arguments |= {"dvc_path": "images", "overrides": ["data.source=folder"]}
    for caching in (True, False):
        said = []
        check(Work(whole, {"mlflow": "http://mlflow:5000"} | arguments, "name", caching=caching), said.append)
        found = [line for line in said if "cache" in line]
        assert len(found) == (1 if warned and caching else 0)
        assert not found or warned in found[0]
