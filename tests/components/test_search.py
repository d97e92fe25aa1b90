"""`gkd search` on real trainings: by validation alone, killed or not the same, its files what other commands take."""

import csv
import json
import random
import signal
import time

import pytest
import yaml

from components import search, teacher
from gkd_core.config import load_params, parse_params
from gkd_core.config.contenders import line_up, parse_contenders
from gkd_core.data.prepared import PreparedData
from gkd_core.errors import GkdError
from gkd_core.files import kind_of
from gkd_core.searching.study import Budget
from tests import forked

BUDGET = {
    "teacher": {"name": "resnet8", "train": {"epochs": 1, "device": "cpu"}},
    "student": {"name": "resnet8"},
    "distill": {"method": "kd"},
    "train": {"epochs": 2, "device": "cpu"},
}
PARAMS = parse_params(BUDGET)
SPACE = {
    "distill.method": {"choices": ["kd", "dkd"]},
    "train.learning_rate": {"low": 0.01, "high": 0.5, "log": True},
    "distill.options.kd.weight": {"low": 0.1, "high": 0.9},
}


@pytest.fixture(scope="module")
def given(tmp_path_factory, few_digits):
    root = tmp_path_factory.mktemp("search")
    teacher.run(data=few_digits, out=root / "teacher", work=root / "work", params=PARAMS)
    return {"data": few_digits, "teacher": root / "teacher", "params": PARAMS}


def plan(given, work, space=SPACE, **more):
    return search.Plan(**given, work=work, space=space, **more)


def test_each_method_is_searched_for_itself_and_the_test_split_stays_closed(given, tmp_path, monkeypatch):
    split = PreparedData.split
    monkeypatch.setattr(
        PreparedData, "split", lambda self, name: pytest.fail("opened") if name == "test" else split(self, name)
    )
    out, work = tmp_path / "out", tmp_path / "work"
    asked = plan(given, work, each="distill.method")
    found = search.run(asked, out=out, budget=Budget(2))
    assert [study.name for study in found.studies] == ["kd, searched", "dkd, searched"]
    assert [len(study.trials) for study in found.studies] == [2, 2]
    assert kind_of(out) == "search"
    best = found.best.best
    params = load_params(out / "best.yaml")
    assert params.distill.method == best.values["distill.method"]
    assert params.train.learning_rate == best.values["train.learning_rate"]
    assert params.train.epochs == 2
    entries = parse_contenders((out / "contender.yaml").read_text(), "contender.yaml")
    lined = line_up(PARAMS, contenders=entries)
    assert [each.name for each in lined] == ["kd, searched", "dkd, searched"]
    assert lined[0].params.distill.options["kd"]["weight"] == found.studies[0].best.values["distill.options.kd.weight"]
    assert not [file for file in work.rglob("*") if file.name in ("checkpoint.pt", "model.safetensors")]
    # What is done is done: a larger budget goes on, the same one trains nothing.
    monkeypatch.setattr(search.distill, "run", lambda **_: pytest.fail("trained again"))
    assert search.run(asked, out=out, budget=Budget(2)).as_dict() == found.as_dict()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"space": {"train.lerning_rate": {"low": 1, "high": 2}}}, "did you mean 'train.learning_rate'"),
        ({"each": "distill.metod"}, "--each 'distill.metod' is unknown; did you mean 'distill.method'"),
        ({"each": "train.learning_rate"}, "--each train.learning_rate takes a parameter with choices"),
        ({"seeds": [0, 0]}, "--seeds names"),
        (
            {"params": parse_params(BUDGET | {"train": {"devices": 2}})},
            "train.devices is 2, but a trial is trained in one",
        ),
        (
            {"space": SPACE | {"student.weights": {"choices": [None, "gone/net"]}}},
            "student.weights is gone/net, but there is no file or folder",
        ),
        ({"storage": "search.db"}, "--storage is search.db: give the address"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_anything_is_trained(more, words, given, tmp_path, monkeypatch):
    monkeypatch.setattr(search.distill, "run", lambda **_: pytest.fail("trained"))
    asked = search.Plan(**({"work": tmp_path / "work", "space": SPACE} | given | more))
    with pytest.raises(GkdError) as caught:
        search.run(asked, out=tmp_path / "out", budget=Budget(1))
    assert words in str(caught.value)
    assert not (tmp_path / "out").exists()


def arguments_for(given, folder, *more):
    (folder / "params.yaml").write_text(yaml.safe_dump(BUDGET | {"train": {"epochs": 3, "device": "cpu"}}))
    (folder / "space.yaml").write_text(yaml.safe_dump(SPACE))
    return ["search", "space.yaml", "--data", str(given["data"]), "--teacher", str(given["teacher"]), *more]


def told(folder):
    """What a search says, without the seconds that its trainings took."""
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    rows = list(csv.DictReader(files.pop("trials.csv").decode().splitlines()))
    return files, [{name: cell for name, cell in row.items() if name != "seconds"} for row in rows]


@pytest.mark.slow
def test_killed_at_random_and_gone_on_with_it_tells_what_an_uninterrupted_one_tells(given, tmp_path):
    arguments = arguments_for(given, tmp_path, "--trials", "8")
    seed = random.SystemRandom().randrange(10**6)
    print(f"moments drawn with seed {seed}")
    moments = random.Random(seed)
    for number in range(3):  # each sees seven epochs at most, of more than twenty
        said = tmp_path / f"said {number}"
        said.mkdir()
        process = forked.start(forked.command, *arguments, cwd=tmp_path, said=said)
        epochs = moments.randint(1, 6)
        while process.is_alive() and (said / "stderr").read_text().count("epoch ") < epochs:
            time.sleep(0.02)
        time.sleep(moments.uniform(0.0, 0.3))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert not (tmp_path / "search").exists()
    done = forked.gkd(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    whole = forked.gkd(*arguments, "--out", "whole", "--work", "another", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    assert told(tmp_path / "search") == told(tmp_path / "whole")
    assert json.loads(done.stdout.splitlines()[-1])["params"] == "search/best.yaml"


@pytest.mark.slow
def test_two_workers_share_a_study_and_its_winner_is_what_distill_takes(given, tmp_path):
    arguments = arguments_for(given, tmp_path, "--trials", "4", "--workers", "2")
    done = forked.gkd(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader((tmp_path / "search" / "trials.csv").open()))
    assert [row["trial"] for row in rows] == ["0", "1", "2", "3"]
    folders = ["--data", str(given["data"]), "--teacher", str(given["teacher"])]
    best = forked.gkd("distill", *folders, "--params", "search/best.yaml", cwd=tmp_path)
    assert best.returncode == 0, best.stderr
    facts = json.loads((tmp_path / "student" / "training.json").read_text())
    top1 = max(float(row["validation_top1"]) for row in rows if row["state"] == "complete")
    assert facts["validation_top1"] == pytest.approx(top1, abs=1e-6)
