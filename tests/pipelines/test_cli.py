"""The command line as a user meets it: real processes, exit codes, one sentence on stderr, JSON last on stdout."""

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import yaml

from gkd_core import schemes
from gkd_core.methods import METHODS
from tests import forked


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
        (["teacher", "--data", "nowhere"], ["the data folder nowhere has no dataset.json", "run `gkd prepare`"]),
        (["distill", "--reference", "basline"], ["--reference 'basline' is unknown; did you mean 'baseline'?"]),
        (["teacher", "--set", "student.name=resnet9"], ["student.name 'resnet9'", "did you mean 'resnet8'?"]),
        (["export"], ["has no"]),
        (["evaluate"], ["has no"]),
        (["summary"], ["the report folder report has no metrics.json"]),
        # Options that exclude each other, or do nothing without another.
        (["methods", "--json", "--markdown"], ["--json", "--markdown"]),
        (["verify", ".", "--name", "birds"], ["--name 'birds'", "--server"]),
        (["serve", "deploy", "--no-batching", "--max-delay-ms", "3"], ["--max-delay-ms 3", "--no-batching"]),
        (["serve", "deploy", "--tracking-uri", "sqlite:///x.db"], ["--tracking-uri", "deploy"]),
        (["predict", "cat.jpg", "--tracking-uri", "sqlite:///x.db"], ["--tracking-uri", "deploy"]),
        (["predict", "cat.jpg", "--json", "-o", "out.jsonl"], ["--json", "-o"]),
        (["predict", "cat.jpg", "--copy", "-o", "out.csv"], ["--copy", "--sort-into"]),
        (["predict", "cat.jpg", "--sort-into", "by-class"], ["--sort-into", "-o out.csv"]),
        (["predict", "."], [". is a folder", "-o out.csv"]),
        (["predict", "s3://bucket/photos"], ["s3://bucket/photos is an address", "-o out.csv"]),
        (["predict", "list.csv", "--workers", "2"], ["--workers", "-o out.csv"]),
        (["distill", "--reference", "baseline", "--teacher", "teacher"], ["--reference baseline", "--teacher"]),
        (["bundle", "out", "--registration", "r", "--no-registration"], ["--registration", "--no-registration"]),
        (["compare", "--reference", "kdd"], ["--reference 'kdd'", "did you mean 'kd'?"]),
        (["frontier", "--students", "resnet8,resnet8"], ["--students names resnet8 twice"]),
        (["compare", "--methods", "kd,gomperz"], ["--methods: method 'gomperz'", "did you mean 'gompertz'?"]),
        (["compare", "--seeds", "0,a"], ["--seeds", "0,a"]),
        (["compare", "--contenders", "nowhere.yaml"], ["nowhere.yaml does not exist", "--contenders FILE"]),
        (["bench", "deploy", "--model", "nowhere"], ["nowhere is neither an ONNX file nor a folder"]),
        (["bench", "deploy", "--batches", "1,x"], ["--batches is '1,x'", "such as 1,8,32"]),
        (["bench", "deploy", "--tracking-uri", "sqlite:///x.db"], ["--tracking-uri", "deploy"]),
        (["search", "nowhere.yaml"], ["nowhere.yaml does not exist"]),
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


def test_a_model_is_measured_into_a_file_for_the_gate(tmp_path, make_deploy):
    make_deploy(tmp_path / "deploy")
    numbers = ("--runs", "10", "--warmup", "0", "--batches", "1,4", "--threads", "1,2")
    result = gkd("bench", "deploy", *numbers, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    content = json.loads((tmp_path / "deploy-bench.json").read_text())
    assert json.loads(result.stdout.splitlines()[-1]) == {"path": "deploy-bench.json", **content}
    cases = [(case["threads"], case["batch"]) for case in content["cases"]]
    assert cases == [(1, 1), (1, 4), (2, 1), (2, 4)]
    manifest = json.loads((tmp_path / "deploy" / "manifest.json").read_text())
    assert content["model"]["sha256"] == manifest["model"]["sha256"]
    refusal = refused(gkd("bench", "deploy", "--providers", "cuda", "--out", "again.json", cwd=tmp_path))
    assert "'cuda' is not in this onnxruntime" in refusal
    assert not (tmp_path / "again.json").exists()


def test_what_the_machine_or_the_call_lacks_is_named(folder, digits, teacher):
    words = ["distill", "--data", str(digits)]
    elsewhere = ["--teacher", str(teacher), "--set", "train.device=cuda:7"]
    assert "no such device" in refused(gkd(*words, *elsewhere, cwd=folder))
    assert "pass --teacher" in refused(gkd(*words, cwd=folder))


def test_a_damaged_teacher_is_named(folder, digits, teacher):
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


def test_a_reference_is_written_to_a_folder_of_its_own_name(folder, digits):
    off = ["--set", "references.baseline=false", "--data", str(digits)]
    assert gkd("distill", "--reference", "baseline", *off, cwd=folder).returncode == 0
    assert (folder / "baseline" / "training.json").is_file()
    assert not (folder / "student").exists()


def test_photos_are_never_replaced(folder):
    for name in ("cat", "dog"):
        (folder / "photos" / name).mkdir(parents=True)
        (folder / "photos" / name / "1.jpg").write_bytes(b"precious")
    settings = ["--set", "data.source=folder", "--set", "data.root=photos"]
    assert "would replace what is read" in refused(gkd("prepare", *settings, "--out", "photos", cwd=folder))
    assert (folder / "photos" / "cat" / "1.jpg").read_bytes() == b"precious"


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_is_one_sentence_and_leaves_nothing_half_written(stop, folder, digits, tmp_path_factory, until):
    words = ["distill", "--data", str(digits), "--reference", "baseline", "--set", "train.epochs=200"]
    said = tmp_path_factory.mktemp("said")
    process = forked.start(forked.command, *words, cwd=folder, said=said)
    errors = said / "stderr"
    until(lambda: "epoch 1/" in errors.read_text(), "the end of the first epoch")
    os.kill(process.pid, stop)
    process.join(60)
    assert process.exitcode == 128 + stop
    assert errors.read_text().strip().splitlines()[-1] == "gkd: interrupted; run the same command again to go on"
    assert "Traceback" not in errors.read_text()
    assert sorted(p.name for p in folder.iterdir()) == ["params.yaml", "work"]
