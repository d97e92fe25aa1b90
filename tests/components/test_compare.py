"""The comparison of methods: one budget, paired by seed, resumable run by run."""

import csv
import io
import json
import random
import signal
import time
import xml.etree.ElementTree as ElementTree

import pytest
import torch
import yaml
from scipy import stats

from components import compare, teacher
from gkd_core.config import parse_params
from gkd_core.errors import DivergedError, GkdError
from gkd_core.evaluation.comparison import WHERE
from gkd_core.files import folder_digest
from gkd_core.run_facts import run_facts, where_it_ran
from tests import forked

BUDGET = {
    "teacher": {"name": "resnet8", "train": {"epochs": 1, "device": "cpu"}},
    "student": {"name": "resnet8"},
    "train": {"epochs": 2, "device": "cpu", "teacher_cache": True},
}
PARAMS = parse_params(BUDGET)


def budget(**sections):
    return parse_params(BUDGET | sections)


@pytest.fixture(scope="module")
def compared(tmp_path_factory, few_digits):
    """Three methods, two seeds, stopped after two trainings and gone on with."""
    root = tmp_path_factory.mktemp("compare")
    teacher.run(data=few_digits, out=root / "teacher", work=root / "work", params=PARAMS)
    given = {"data": few_digits, "teacher": root / "teacher", "work": root / "work", "params": PARAMS}
    trained = []
    with pytest.MonkeyPatch.context() as patch:
        real = compare.distill.run

        def counted(**arguments):
            if len(trained) == 2:
                raise KeyboardInterrupt
            trained.append(arguments["out"].parent.name)
            return real(**arguments)

        patch.setattr(compare.distill, "run", counted)
        with pytest.raises(KeyboardInterrupt):
            compare.run(**given, out=root / "first", methods=["gompertz", "ce"], seeds=[0, 1])
    assert not (root / "first").exists()
    found = compare.run(**given, out=root / "out", methods=["gompertz", "ce"], seeds=[0, 1])
    return root, given, found, trained


class TestARun:
    def test_goes_on_with_what_was_done(self, compared):
        root, _, _, trained = compared
        assert [name.rsplit("-", 1)[0] for name in trained] == ["kd-seed0", "gompertz-seed0"]
        assert len(list((root / "work" / "compare").glob("*/result.json"))) == 6

    def test_seeds_share_what_the_teacher_answered(self, compared):
        root, _, _, _ = compared
        runs = (root / "work" / "compare").glob("*/student/run.json")
        facts = {path.parent.parent.name.rsplit("-", 1)[0]: json.loads(path.read_text()) for path in runs}
        hits = {name: fact["teacher_cache_hits"] for name, fact in facts.items() if "teacher_cache_hits" in fact}
        assert hits.keys() == {"kd-seed0", "kd-seed1"}  # nobody teaches ce, and gompertz reads feature maps
        assert hits["kd-seed0"] < 0.1 < hits["kd-seed1"]  # two epochs of nine views are two ninths of them
        assert len(list((root / "work" / "teacher-cache").glob("*.answers"))) == 1

    def test_every_number_follows_from_the_runs(self, compared):
        root, _, found, _ = compared
        rows = list(csv.DictReader((root / "out" / "runs.csv").open()))
        top1 = {(row["name"], int(row["seed"])): float(row["top1"]) for row in rows}
        assert len(top1) == 6
        ((pair, standings),) = found.items()
        assert pair == "resnet8 → resnet8"
        for row in standings:
            values = [top1[row["name"], seed] for seed in (0, 1)]
            assert row["mean"] == pytest.approx(sum(values) / 2, abs=1e-6)
            if row["name"] != "kd":
                reference = [top1["kd", seed] for seed in (0, 1)]
                assert row["difference"]["mean"] == pytest.approx(sum(values) / 2 - sum(reference) / 2, abs=1e-6)
                if values[0] - reference[0] != values[1] - reference[1]:
                    interval = stats.ttest_rel(values, reference).confidence_interval(0.95)
                    assert row["difference"]["low"] == pytest.approx(interval.low, abs=1e-5)

    def test_every_row_says_where_it_was_trained(self, compared):
        root, _, _, _ = compared
        for row in csv.DictReader((root / "out" / "runs.csv").open()):
            assert row["hardware"].endswith("thread")
            assert row["torch"] == torch.__version__
            assert float(row["seconds"]) > 0
            assert row["commit"] == where_it_ran(run_facts(device=torch.device("cpu")))["commit"]

    def test_its_files_say_the_same(self, compared):
        root, _, found, _ = compared
        assert json.loads((root / "out" / "comparison.json").read_text())["pairs"] == json.loads(json.dumps(found))
        table = (root / "out" / "comparison.md").read_text()
        assert all(f"| {method} | 2 |" in table for method in ("kd", "gompertz", "ce"))
        text = "".join(ElementTree.parse(root / "out" / "comparison.svg").getroot().itertext())
        assert "gompertz" in text
        assert "minus kd" in text

    def test_by_another_metric_nothing_is_trained_again(self, compared, monkeypatch):
        root, given, _, _ = compared
        monkeypatch.setattr(compare.distill, "run", lambda **_: pytest.fail("trained again"))
        chosen = {"methods": ["gompertz", "ce"], "seeds": [0, 1], "metric": "macro_f1"}
        ((_, standings),) = compare.run(**given, out=root / "by f1", **chosen).items()
        rows = list(csv.DictReader((root / "by f1" / "runs.csv").open()))
        for standing in standings:
            values = [float(row["macro_f1"]) for row in rows if row["name"] == standing["method"]]
            assert standing["mean"] == pytest.approx(sum(values) / 2, abs=1e-6)
        assert "macro-F1, mean ± sd" in (root / "by f1" / "comparison.md").read_text()
        assert "macro-F1 minus kd" in (root / "by f1" / "comparison.svg").read_text()
        assert json.loads((root / "by f1" / "comparison.json").read_text())["metric"] == "macro_f1"

    def test_once_more_trains_nothing_and_gives_the_same_bytes(self, compared, monkeypatch):
        root, given, _, _ = compared
        monkeypatch.setattr(compare.distill, "run", lambda **_: pytest.fail("trained again"))
        compare.run(**given, out=root / "again", methods=["gompertz", "ce"], seeds=[0, 1])
        assert folder_digest(root / "again") == folder_digest(root / "out")

    def test_contenders_share_the_teacher_and_what_was_trained_before(self, compared, monkeypatch):
        root, given, _, _ = compared
        trained = []
        real = compare.distill.run
        monkeypatch.setattr(compare.distill, "run", lambda **each: trained.append(each["out"].parent) or real(**each))
        kd = {"method": "kd"}
        entries = [
            {"name": "plain", "distill": kd},
            {"name": "larger steps", "distill": kd, "train": {"learning_rate": 0.2}},
            {"name": "larger student", "distill": kd, "student": {"name": "resnet14"}},
        ]
        ((pair, standings),) = compare.run(**given, out=root / "named", contenders=entries, seeds=[0, 1]).items()
        assert pair == "resnet8 → several students"
        assert {row["name"]: row["student"] for row in standings} == {
            "plain": "resnet8", "larger steps": "resnet8", "larger student": "resnet14",
        }  # fmt: skip
        assert len(trained) == 4, "plain KD was trained again under another name"
        assert json.loads((root / "named" / "comparison.json").read_text())["reference"] == "plain"
        entries[1]["train"] = {"learning_rate": 0.1}  # under the same name
        changed = compare.run(**given, out=root / "changed", contenders=entries, seeds=[0, 1])
        assert len(trained) == 6
        before, after = (
            {row["name"]: row["settings"] for row in found[pair]} for found in ({pair: standings}, changed)
        )
        assert {name for name in before if before[name] != after[name]} == {"larger steps"}

    def test_a_method_is_trained_as_the_distill_step_trains_it(self, compared):
        root, given, _, _ = compared
        folder = next((root / "work" / "compare").glob("gompertz-seed1-*"))
        params = budget(train={"epochs": 2, "device": "cpu", "seed": 1}, distill={"method": "gompertz"})
        compare.distill.run(**(given | {"params": params}), out=root / "alone")
        weights = "model.safetensors"
        assert (root / "alone" / weights).read_bytes() == (folder / "student" / weights).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"methods": ["gompert"]}, "did you mean 'gompertz'"),
        ({"reference": "kdd"}, "--reference: method"),
        ({"seeds": [0, 0]}, "different seeds"),
        ({"seeds": []}, "different seeds"),
        ({"seeds": [-1]}, "0 or more"),
        ({"metric": "f1"}, "--metric 'f1' is unknown"),
        (
            {"contenders": ["kd", {"name": "a", "student": {"weights": "w.pth"}}]},
            "'a': student.weights 'w.pth' do not exist",
        ),
        ({"params": budget(distill={"temperature": 2.0})}, "distill.temperature is 2"),
        (
            {"params": budget(distill={"scheme": "mutual", "method": "kd"})},
            "distill.method dkd do not go together",
        ),
        (
            {"params": budget(train={"balance": "weights"}), "methods": ["ce", "rkd"]},
            "method rkd .* cannot be weighted",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_trained(arguments, words, few_digits, tmp_path):
    given = {"data": few_digits, "teacher": tmp_path / "teacher", "out": tmp_path / "out", "work": tmp_path / "work"}
    with pytest.raises(GkdError, match=words):
        compare.run(**given, **({"params": PARAMS} | arguments))
    assert not (tmp_path / "work").exists()


def test_nothing_to_compare(tmp_path):
    with pytest.raises(GkdError, match="no finished training"):
        compare.write_comparison([], out=tmp_path / "out", reference="kd")


def test_one_that_diverges_is_named_and_the_others_are_trained(compared, tmp_path):
    _, given, _, _ = compared
    given = given | {"work": tmp_path / "work"}
    boom = {"name": "boom", "distill": {"method": "ce"}, "train": {"learning_rate": 1e30}}
    with pytest.raises(DivergedError) as raised:
        compare.run(**given, out=tmp_path / "out", contenders=[boom, "ce"], seeds=[3])
    first, last = str(raised.value).splitlines()
    assert first.startswith("'boom', seed 3: student resnet8: at epoch 1")
    assert "NaN or infinite" in first
    assert last.startswith("what else was trained (1) is kept: change or leave out what failed")
    assert not (tmp_path / "out").exists()
    assert len(list((tmp_path / "work" / "compare").glob("*/result.json"))) == 1


def told(folder):
    """What a comparison says, without how long and where it was trained."""
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    runs = list(csv.DictReader(io.StringIO(files.pop("runs.csv").decode())))
    return files, [{name: cell for name, cell in run.items() if name not in WHERE} for run in runs]


@pytest.mark.slow
def test_killed_at_random_and_gone_on_with_it_tells_what_an_uninterrupted_one_tells(compared, tmp_path):
    given = compared[1]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(BUDGET | {"train": {"epochs": 3, "device": "cpu"}}))
    entries = ["kd", {"name": "wider steps", "distill": {"method": "kd"}, "train": {"learning_rate": 0.2}}]
    (tmp_path / "contenders.yaml").write_text(yaml.safe_dump(entries))
    arguments = ["compare", "--data", str(given["data"]), "--teacher", str(given["teacher"]), "--seeds", "0,1",
                 "--contenders", "contenders.yaml"]  # fmt: skip
    seed = random.SystemRandom().randrange(10**6)
    print(f"moments drawn with seed {seed}")
    moments, killed = random.Random(seed), 0
    for number in range(3):  # of twelve epochs each sees three at most
        said = tmp_path / f"said {number}"
        said.mkdir()
        process = forked.start(forked.command, *arguments, cwd=tmp_path, said=said)
        epochs = moments.randint(1, 3)
        while process.is_alive() and (said / "stderr").read_text().count("epoch ") < epochs:
            time.sleep(0.02)
        time.sleep(moments.uniform(0.0, 0.2))
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        assert not (tmp_path / "comparison").exists()
    assert killed == 3
    done = forked.gkd(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    whole = forked.gkd(*arguments, "--out", "whole", "--work", "another", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    assert told(tmp_path / "comparison") == told(tmp_path / "whole")
