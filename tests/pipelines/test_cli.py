"""The command line as a user meets it: real processes, exit codes, one sentence on stderr, JSON last on stdout."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from gkd_core import schemes
from gkd_core.methods import METHODS
from tests import forked

ROOT = Path(__file__).parents[2]


def gkd(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return forked.gkd(*arguments, cwd=cwd, env=os.environ | {"COLUMNS": "200"})


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"train": {"epochs": 1, "device": "cpu"}}))
    return tmp_path


def refused(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("gkd: ")
    return lines[0]


def test_help_lists_the_steps(tmp_path):
    result = gkd("--help", cwd=tmp_path)
    assert result.returncode == 0
    for step in ("prepare", "teacher", "distill", "export", "evaluate", "register", "registry", "methods"):
        assert step in result.stdout


def test_prepare_ends_in_json_and_writes_its_folder(folder):
    result = gkd("prepare", cwd=folder)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1])["source"] == "digits"
    assert (folder / "data" / "dataset.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["prepare", "--set", "data.sorce=digits"], ["'data.sorce' is unknown", "did you mean 'data.source'?"]),
        (["prepare", "--set", "data.source=cifar11"], ["cifar11", "did you mean 'cifar10'?"]),
        (["prepare", "--set", "data.source=folder"], ["data.root"]),
        (["prepare", "--set", "data.source=folder", "--set", "data.root=nowhere"], ["nowhere"]),
        (["prepare", "--params", "none.yaml"], ["none.yaml does not exist"]),
        (["teacher", "--data", "nowhere"], ["the data folder nowhere has no dataset.json", "run the step"]),
        (["distill", "--reference", "basline"], ["--reference 'basline' is unknown; did you mean 'baseline'?"]),
        (["distill", "--set", "distill.method=gomperz"], ["distill.method 'gomperz'", "did you mean 'gompertz'?"]),
        (["export"], ["has no"]),
        (["evaluate"], ["has no"]),
        (["summary"], ["the report folder report has no metrics.json"]),
        # Options that exclude each other, or do nothing without another.
        (["methods", "--json", "--markdown"], ["--json", "--markdown"]),
        (["verify", ".", "--name", "birds"], ["--name 'birds'", "--server"]),
        (["serve", "deploy", "--no-batching", "--max-delay-ms", "3"], ["--max-delay-ms 3", "--no-batching"]),
        (["serve", "deploy", "--tracking-uri", "sqlite:///x.db"], ["--tracking-uri", "deploy"]),
        (["predict", "cat.jpg", "--tracking-uri", "sqlite:///x.db"], ["--tracking-uri", "deploy"]),
        (["distill", "--reference", "baseline", "--teacher", "teacher"], ["--reference baseline", "--teacher"]),
        (["bundle", "out", "--registration", "r", "--no-registration"], ["--registration", "--no-registration"]),
        (["compare", "--reference", "kdd"], ["--reference 'kdd'", "did you mean 'kd'?"]),
        (["compare", "--methods", "kd,gomperz"], ["--methods: method 'gomperz'", "did you mean 'gompertz'?"]),
        (["compare", "--seeds", "0,a"], ["--seeds", "0,a"]),
        (["pipeline", "run", "--user", "1:1"], ["--user", "--runner subprocess"]),
        (["pipeline", "run", "--parallelism", "2"], ["--parallelism", "--pipeline sweep"]),
        (["pipeline", "submit", "--timeout", "5"], ["--timeout", "--wait"]),
        (["pipeline", "submit", "--poll", "5"], ["--poll", "--wait"]),
        (["pipeline", "list", "--schedules", "--limit", "5"], ["--limit", "--schedules"]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_sentence_and_exit_code_2(folder, arguments, parts):
    before = sorted(p.name for p in folder.iterdir())
    message = refused(gkd(*arguments, cwd=folder))
    for part in parts:
        assert part in message
    assert sorted(p.name for p in folder.iterdir()) == before, "something half-written was left"


def test_wrong_option_values_and_networks_are_named(folder, digits, teacher):
    distill = ["distill", "--data", str(digits), "--teacher", str(teacher)]
    cases = {
        "student.name=resnet9": "did you mean 'resnet8'?",
        "distill.options.gompertz.sover=sliced": "gompertz.solver'",
        "distill.options.gompertz.r=2": "distill.options.gompertz.r is 2",
        "distill.options.gompertz.solver=sinkhorm": "distill.options.gompertz.solver is 'sinkhorm'",
        "train.device=cuda:7": "no such device",
    }
    for setting, part in cases.items():
        assert part in refused(gkd(*distill, "--set", setting, cwd=folder))
    assert "pass --teacher" in refused(gkd("distill", "--data", str(digits), cwd=folder))


def test_a_damaged_teacher_is_named(folder, digits, teacher):
    import shutil

    broken = folder / "teacher"
    shutil.copytree(teacher, broken)
    weights = next(broken.rglob("model.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-100])
    message = refused(gkd("distill", "--data", str(digits), "--teacher", str(broken), cwd=folder))
    assert "model.safetensors is damaged" in message


def test_lists(tmp_path):
    rows = json.loads(gkd("methods", "--json", cwd=tmp_path).stdout.splitlines()[-1])
    names = [row["name"] for row in rows]
    assert len(rows) >= 20
    assert len(set(names)) == len(names)
    assert set(names) == {*METHODS, *schemes.names()}
    assert {row["kind"] for row in rows} == {"method", "scheme"}
    gompertz = rows[names.index("gompertz")]
    assert gompertz["kind"] == "method"
    assert gompertz["schedule"] == "gompertz"
    assert "solver" in gompertz["hyperparameters"]
    assert "train.learning_rate" in gkd("params", cwd=tmp_path).stdout


def test_a_place_to_write_that_cannot_be_is_named(folder):
    (folder / "file").write_text("mine")
    assert "is a file" in refused(gkd("prepare", "--out", "file", cwd=folder))
    assert "current folder" in refused(gkd("prepare", "--out", ".", cwd=folder))
    assert "file/below" in refused(gkd("prepare", "--out", "file/below", cwd=folder))
    assert (folder / "file").read_text() == "mine"


def test_photos_are_never_replaced(folder):
    for name in ("cat", "dog"):
        (folder / "photos" / name).mkdir(parents=True)
        (folder / "photos" / name / "1.jpg").write_bytes(b"precious")
    settings = ["--set", "data.source=folder", "--set", "data.root=photos"]
    assert "would replace what is read" in refused(gkd("prepare", *settings, "--out", "photos", cwd=folder))
    assert (folder / "photos" / "cat" / "1.jpg").read_bytes() == b"precious"


def test_what_the_student_cannot_be_is_said_before_the_teacher_is_trained(folder, digits):
    teacher = ["teacher", "--data", str(digits)]
    assert "student.name 'resnet9' is unknown" in refused(gkd(*teacher, "--set", "student.name=resnet9", cwd=folder))
    wrong = gkd(*teacher, "--set", "distill.options.gompertz.sover=sliced", cwd=folder)
    assert "gompertz.solver'" in refused(wrong)


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_is_one_sentence_and_leaves_nothing_half_written(stop, folder, digits):
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", "distill", "--data", str(digits), "--reference", "baseline",
         "--set", "train.epochs=200"],
        cwd=folder, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    for line in process.stderr:
        if "epoch 1/" in line:
            break
    process.send_signal(stop)
    rest = process.stderr.read()
    assert process.wait(60) == 128 + stop
    assert rest.strip().splitlines()[-1] == "gkd: interrupted; run the same command again to go on"
    assert "Traceback" not in rest
    assert sorted(p.name for p in folder.iterdir()) == ["params.yaml", "work"]
