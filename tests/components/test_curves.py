"""Curves for DVC: the files that DVCLive writes, and what DVC itself makes of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from components.curves import METRICS, PLOTS, Curves
from components.live import followed
from gkd_core.config import TrackingConfig
from gkd_core.tables import write_table
from pipelines.dvc import dvc_yaml

ROWS = [{"epoch": n, "train_loss": 2.5 / n, "beta": 1.0, "validation_top1": 0.1 * n} for n in (1, 2, 3)]
OFF = TrackingConfig(live=False)


def files(folder: Path) -> dict[str, str]:
    return {f.relative_to(folder).as_posix(): f.read_text() for f in sorted(folder.rglob("*")) if f.is_file()}


@pytest.mark.parametrize("label", ["", "2-resnet20"])
def test_the_files_are_dvclive_s_own(label, tmp_path, monkeypatch):
    from dvclive import Live

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_STUDIO_OFFLINE", "true")
    theirs = Live("theirs", save_dvc_exp=False, dvcyaml=None, report=None, monitor_system=False)
    curves = Curves(tmp_path / "ours")
    for n, row in enumerate(ROWS, start=1):
        theirs.step = row["epoch"]
        for name, value in row.items():
            if name != "epoch":
                theirs.log_metric(f"{label}/{name}" if label else name, value)
        theirs.make_summary()
        curves.write(label, ROWS[:n])
        assert files(tmp_path / "ours") == files(tmp_path / "theirs")


def test_a_training_that_goes_on_has_every_step_once_and_nothing_of_another(tmp_path):
    Curves(tmp_path).write("", [{"epoch": 1, "train_fitnet": 1.0}])
    with followed(OFF, tmp_path) as live:
        live.begin("baseline resnet8", {}, None, ROWS[:2])
        live.epoch(ROWS[2], 100.0)
        live.end(ROWS)
    assert files(tmp_path).keys() == {METRICS, *(f"{PLOTS}/{name}.tsv" for name in ROWS[0] if name != "epoch")}
    assert (tmp_path / PLOTS / "beta.tsv").read_text() == "step\tbeta\n1\t1.0\n2\t1.0\n3\t1.0\n"
    latest = {name: value for name, value in ROWS[2].items() if name != "epoch"}
    assert json.loads((tmp_path / METRICS).read_text()) == latest | {"step": 3}


def test_trainings_of_one_step_are_told_apart_the_finished_ones_too(tmp_path):
    space, out = tmp_path / "space", tmp_path / "curves"
    (space / "1-vgg8").mkdir(parents=True)
    write_table(space / "1-vgg8" / "history.csv", ROWS)  # made before this process was started again
    with followed(OFF, out, several=True) as live:
        live.begin("teacher 2, resnet8", {}, space / "2-resnet8.training", [])
        live.epoch(ROWS[0], 100.0)
    latest = json.loads((out / METRICS).read_text())
    assert (latest["1-vgg8"]["train_loss"], latest["2-resnet8"]["train_loss"]) == (2.5 / 3, 2.5)
    assert (out / PLOTS / "1-vgg8" / "train_loss.tsv").read_text().count("\n") == 4


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_dvc_shows_them_and_tracks_them_with_the_stage(tmp_path, few_digits):
    root = Path(__file__).parents[2]
    home = {"HOME": str(tmp_path / "home"), "DVC_NO_ANALYTICS": "1", "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    (tmp_path / "home").mkdir()

    def call(*command: str) -> str:
        result = subprocess.run(
            command, cwd=checkout, env=os.environ | home, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    dvc = [sys.executable, "-m", "dvc"]
    call("git", "init", "--quiet")
    call("git", "config", "--global", "user.name", "x")
    call("git", "config", "--global", "user.email", "x@x")
    call(*dvc, "init", "--quiet")
    graph = yaml.safe_load(dvc_yaml(checkout=False))
    stage = graph["stages"]["baseline"]
    command = stage["cmd"].replace("gkd ", f"{sys.executable} -m pipelines.cli ", 1)
    stage["cmd"] = command.replace("--data data", f"--data {few_digits}")
    del stage["deps"]
    graph["stages"] = {"baseline": stage}
    (checkout / "dvc.yaml").write_text(yaml.safe_dump(graph, sort_keys=False))
    params = {"student": {"name": "resnet8"}, "train": {"epochs": 1, "device": "cpu"}, "references": {"kd": False}}
    (checkout / "params.yaml").write_text(yaml.safe_dump(params))
    (checkout / ".gitignore").write_text("/baseline\n/dvclive\n/work\n")
    call("git", "add", "--all")
    call("git", "commit", "--quiet", "-m", "first")

    call(*dvc, "repro")
    assert call("git", "status", "--porcelain").split() == ["??", "dvc.lock"], "git is given nothing of them"
    outs = yaml.safe_load((checkout / "dvc.lock").read_text())["stages"]["baseline"]["outs"]
    assert [out["path"] for out in outs] == ["baseline", "dvclive/baseline"]
    call("git", "add", "dvc.lock")
    call("git", "commit", "--quiet", "-m", "its lock")
    assert "up to date" in call(*dvc, "status")

    # As docs/start.md has it.
    call(*dvc, "exp", "run", "--name", "longer", "--set-param", "train.epochs=2")
    assert not call("git", "log", "--oneline", "-1").startswith("longer"), "nothing is committed by itself"
    shown = json.loads(call(*dvc, "exp", "show", "--json"))
    found = {}
    for commit in shown:
        for state in [commit, *(one for exp in commit.get("experiments") or [] for one in exp["revs"])]:
            metrics = state["data"]["metrics"].get("dvclive/baseline/metrics.json", {}).get("data", {})
            found[state["name"] or state["rev"]] = metrics.get("step")
    assert (found["workspace"], found["longer"]) == (2, 2), found
    assert 1 in found.values(), f"{found}: the commit before, whose files DVC has"
    plots = call(*dvc, "plots", "show", "--json")
    assert "dvclive/baseline/plots/metrics/train_loss.tsv" in plots
