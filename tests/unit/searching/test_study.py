"""A study: what it draws does not depend on when it was stopped; who stops early; who takes over from whom."""

import json
import math
import multiprocessing
import os
import signal
from pathlib import Path

import optuna
import pytest

from gkd_core.config import parse_params
from gkd_core.config.space import read_space
from gkd_core.errors import DivergedError, GkdError
from gkd_core.searching import study
from gkd_core.searching.findings import Findings, Found
from gkd_core.searching.place import Place
from gkd_core.searching.study import Budget, open_study

EPOCHS = 4
PARAMS = parse_params({"distill": {"method": "kd"}, "train": {"epochs": EPOCHS}})
SPACE = {
    "train.learning_rate": {"low": 0.01, "high": 1.0, "log": True},
    "distill.method": {"choices": ["kd", "dkd"]},
    "distill.options.kd.weight": {"low": 0.1, "high": 0.9},
}


def top1(params, epoch=EPOCHS):
    """Best at a learning rate of 0.1, and better with every epoch."""
    off = abs(math.log10(params.train.learning_rate) + 1)
    return (
        (0.9 - 0.3 * off - 0.05 * (params.distill.method == "dkd") + 0.001 * (params.train.seed % 7)) * epoch / EPOCHS
    )


def train(params, hook):
    for epoch in range(1, EPOCHS + 1):
        hook({"epoch": epoch, "validation_top1": top1(params, epoch)}, EPOCHS)
    return top1(params), 1.0


def opened(folder, space=SPACE, **more):
    """A study in a folder; in memory without one."""
    given = {"title": "study", "study": "study", "facts": {"data": "1"}, "work": folder}
    return open_study(read_space(space, PARAMS), **(given | more))


def told(search):
    """All that is told of the trials."""
    return Findings([Found.of(search, "study")], {}).as_dict()


@pytest.fixture(scope="module")
def whole():
    """What a study of 16 trials tells that nobody interrupted."""
    search = opened(None)
    search.run(train, Budget(16))
    return told(search)


def test_it_finds_what_is_good_and_stops_what_is_not(whole):
    (found,) = whole["studies"]
    states = [trial["state"] for trial in found["trials"]]
    assert states.count("complete") + states.count("stopped") == 16
    assert states.count("stopped") >= 3
    assert states[:5] == ["complete"] * 5, "nobody is stopped before there is a median"
    assert all(2 <= trial["epochs"] < EPOCHS for trial in found["trials"] if trial["state"] == "stopped")
    best = found["best"]
    assert best["validation_top1"] == max(t["validation_top1"] for t in found["trials"] if t["state"] == "complete")
    assert 0.03 < best["values"]["train.learning_rate"] < 0.3
    assert all(("distill.options.kd.weight" in t["values"]) == (t["values"]["distill.method"] == "kd")
               for t in found["trials"])  # fmt: skip


@pytest.mark.parametrize(("trials", "told"), [(9, False), (10, True)])
def test_importance_is_told_of_ten_complete_trials_or_more(trials, told, tmp_path):
    search = opened(None, prune=False)
    search.run(train, Budget(trials))
    found = Findings([Found.of(search, "study")], {})
    (study,) = found.studies
    assert ([*study.importance][:1] == ["train.learning_rate"]) == told
    assert [row[2] for row in study.chosen()[1:]].count("too few trials") == (0 if told else 3)
    found.save(tmp_path)
    assert ("not told" in (tmp_path / "search.svg").read_text()) != told
    assert "too few to tell" in (tmp_path / "search.md").read_text()


def test_other_draws_with_another_seed(whole):
    search = opened(None, seed=1)
    search.run(train, Budget(3))
    assert told(search)["studies"][0]["trials"] != whole["studies"][0]["trials"][:3]


@pytest.mark.parametrize("moment", ["in a training", "between trials", "before it has a lock"])
def test_interrupted_and_gone_on_with_it_tells_what_an_uninterrupted_one_tells(moment, whole, tmp_path, monkeypatch):
    stops, calls = iter([2, 9, 14]), []
    stop = next(stops)

    def interrupted(params, hook):
        calls.append(params)
        if moment == "in a training" and len(calls) == stop:
            hook({"epoch": 1, "validation_top1": top1(params, 1)}, EPOCHS)
            raise KeyboardInterrupt
        return train(params, hook)

    class Holding(Place):
        def holding(self, trial):
            if moment == "before it has a lock" and trial == stop:
                raise KeyboardInterrupt
            return super().holding(trial)

    for _ in range(3):
        search = opened(tmp_path)
        search.place = Holding(search.place.folder)
        if moment == "between trials":
            search.run(train, Budget(stop))
        else:
            with pytest.raises(KeyboardInterrupt):
                search.run(interrupted, Budget(16))
        calls, stop = [], next(stops, 0)
        if moment == "in a training" and stop:
            stop -= 7
    search = opened(tmp_path)
    search.run(train, Budget(16))
    assert told(search) == whole


def dies(folder, epoch):
    """Search in this process, which is killed in that epoch of all its trainings."""
    seen = 0

    def deadly(params, hook):
        def counted(row, epochs):
            nonlocal seen
            seen += 1
            hook(row, epochs)
            if seen == int(epoch):
                os.kill(os.getpid(), signal.SIGKILL)

        return train(params, counted)

    opened(Path(folder)).run(deadly, Budget(16))


def test_killed_and_gone_on_with_it_tells_what_an_uninterrupted_one_tells(whole, tmp_path):
    context = multiprocessing.get_context("fork")
    for epoch in (3, 9, 17):
        process = context.Process(target=dies, args=(str(tmp_path), epoch))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    search = opened(tmp_path)
    search.run(train, Budget(16))
    assert told(search) == whole


def works(folder):
    opened(Path(folder)).run(train, Budget(20))


def test_what_was_left_here_long_ago_is_gone_on_with_all_the_same(whole, tmp_path, monkeypatch):
    def gone(params, hook):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        opened(tmp_path).run(gone, Budget(16))
    # An hour later: what nobody has taken over counts as silent.
    search, real = opened(tmp_path), optuna.storages.RDBStorage.record_heartbeat
    beaten = []
    monkeypatch.setattr(
        optuna.storages.RDBStorage, "record_heartbeat", lambda self, trial: beaten.append(trial) or real(self, trial)
    )
    monkeypatch.setattr(
        optuna.storages.RDBStorage, "_get_stale_trial_ids", lambda self, study: [1] if 1 not in beaten else []
    )
    search.run(train, Budget(3))
    assert told(search)["studies"][0]["trials"] == whole["studies"][0]["trials"][:3]


def test_two_workers_at_once_share_the_trials(tmp_path):
    opened(tmp_path)
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=works, args=(str(tmp_path),)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    trials = opened(tmp_path).study.get_trials()
    assert [trial.number for trial in trials] == list(range(20))
    assert {trial.state.name for trial in trials} <= {"COMPLETE", "PRUNED"}


def test_what_a_worker_elsewhere_left_is_tried_again_when_it_fell_silent(tmp_path, monkeypatch):
    def gone(params, hook):
        raise KeyboardInterrupt

    address = f"sqlite:///{tmp_path}/search.db"
    elsewhere = opened(tmp_path / "another", storage=address)
    with pytest.raises(KeyboardInterrupt):
        elsewhere.run(gone, Budget(3))
    search = opened(tmp_path / "here", storage=address)
    search.run(train, Budget(3))
    assert search.others() == 1
    assert [trial.state.name for trial in search.study.get_trials()] == ["RUNNING", "COMPLETE", "COMPLETE"]
    monkeypatch.setattr(optuna.storages.RDBStorage, "_get_stale_trial_ids", lambda self, study: [1])
    assert search.others() == 0
    monkeypatch.undo()
    search.run(train, Budget(3))
    first, _, _, again = search.study.get_trials()
    assert (first.state.name, again.state.name) == ("FAIL", "COMPLETE")
    assert first.params == again.params
    assert len(told(search)["studies"][0]["trials"]) == 3


@pytest.mark.filterwarnings("ignore:Heartbeat of storage is supposed")
def test_nobody_waits_for_a_worker_elsewhere_that_was_killed_before_its_first_heartbeat(tmp_path, monkeypatch):
    address = f"sqlite:///{tmp_path}/search.db"
    opened(tmp_path / "another", storage=address).study.ask()
    search = opened(tmp_path / "here", storage=address)
    assert search.others() == 1
    monkeypatch.setattr(study, "SILENT_SECONDS", -1)
    assert search.others() == 0
    monkeypatch.undo()
    search.run(train, Budget(2))
    assert [trial.state.name for trial in search.study.get_trials()] == ["FAIL", "COMPLETE", "COMPLETE"]


def test_several_seeds_make_a_mean_and_a_finished_one_is_not_trained_again():
    search, trained = opened(None, seeds=[0, 3]), []

    def counted(params, hook):
        trained.append(params.train.seed)
        if len(trained) == 2:
            raise KeyboardInterrupt
        return train(params, hook)

    with pytest.raises(KeyboardInterrupt):
        search.run(counted, Budget(1))
    (left,) = search.study.get_trials()
    with search.place.alone():
        search._try(optuna.Trial(search.study, left._trial_id), counted)
    assert trained == [0, 3, 3]
    (trial,) = told(search)["studies"][0]["trials"]
    assert trial["validation_top1"] == pytest.approx(sum(trial["by_seed"].values()) / 2, abs=1e-6)
    assert list(trial["by_seed"]) == ["0", "3"]


def test_settings_that_were_had_before_are_not_trained_again_and_end_a_search_of_few():
    few = {"distill.method": {"choices": ["kd", "dkd"]}, "train.learning_rate": 0.1}
    search, trained = opened(None, few), []

    def counted(params, hook):
        trained.append(params.distill.method)
        return train(params, hook)

    search.run(counted, Budget(1000))
    assert sorted(trained) == ["dkd", "kd"]
    trials = told(search)["studies"][0]["trials"]
    assert len(trials) < 100
    assert {trial["copy_of"] for trial in trials[-5:]} <= {0, 1, 2, 3, 4, 5, 6}


def test_a_training_that_diverges_is_a_bad_trial_and_the_search_goes_on():
    def diverges(params, hook):
        hook({"epoch": 1, "validation_top1": 0.1}, EPOCHS)
        if params.train.learning_rate > 0.3:
            raise DivergedError("the loss is NaN")
        return train(params, hook)

    search = opened(None)
    search.run(diverges, Budget(12))
    failed = [t for t in told(search)["studies"][0]["trials"] if t["state"] == "failed"]
    assert failed
    assert all(trial["why"] == "the loss is NaN" for trial in failed)
    assert all(trial["values"]["train.learning_rate"] > 0.3 for trial in failed)


def test_what_stops_the_first_trial_stops_the_search():
    def fails(params, hook):
        raise GkdError("the teacher is not there")

    search = opened(None)
    with pytest.raises(GkdError, match="the teacher is not there"):
        search.run(fails, Budget(12))
    with pytest.raises(GkdError, match="none of the 0 trials of study was trained to its end"):
        told(search)


def test_without_stopping_every_trial_is_trained_to_its_end():
    search = opened(None, prune=False)
    search.run(train, Budget(12))
    assert {trial["state"] for trial in told(search)["studies"][0]["trials"]} == {"complete"}


def test_no_trial_begins_after_the_time():
    search = opened(None)
    search.run(train, Budget(minutes=1e-9))
    assert search.study.get_trials() == []


def test_more_trials_go_on_with_the_same_study(whole, tmp_path):
    opened(tmp_path).run(train, Budget(7))
    search = opened(tmp_path)
    search.run(train, Budget(16))
    assert told(search) == whole


def test_a_study_of_other_things_is_refused(tmp_path):
    opened(tmp_path)
    with pytest.raises(GkdError, match="--study study was begun with another data: give it another name"):
        opened(tmp_path, facts={"data": "2"}, option="--")


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("search.db", "--storage is search.db: give the address of a database"),
        ("nosuch://user:secret@host/x", r"--storage nosuch://user:\*\*\*@host/x cannot be opened"),
        ("sqlite:////nowhere/at/all.db", "cannot be opened"),
    ],
)
def test_a_database_that_is_none_is_told_in_a_sentence(address, words):
    with pytest.raises(GkdError, match=words) as caught:
        opened(None, storage=address, option="--")
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_study_that_is_refused_leaves_nothing(tmp_path):
    work = tmp_path / "new" / "work"
    with pytest.raises(GkdError, match="cannot be opened"):
        opened(work, storage="sqlite:////nowhere/search.db")
    assert [*tmp_path.iterdir()] == []
    database = f"sqlite:///{tmp_path / 'shared.db'}"
    opened(None, storage=database)
    with pytest.raises(GkdError, match="was begun with another data"):
        opened(work, storage=database, facts={"data": "2"})
    assert [*tmp_path.iterdir()] == [tmp_path / "shared.db"]
    opened(work, storage=database)
    with pytest.raises(GkdError):
        opened(work, storage=database, facts={"data": "2"})
    assert len([*work.glob("search/*/study.lock")]) == 1, "the place of a study that goes on"


def test_its_files_say_the_same(tmp_path):
    search = opened(None)
    search.run(train, Budget(12))
    found = Findings([Found.of(search, "the study")], {"trials": 12})
    found.save(tmp_path)
    content = json.loads((tmp_path / "search.json").read_text())
    best = content["studies"][0]["best"]
    params = parse_params(found.params)
    assert params.train.learning_rate == best["values"]["train.learning_rate"]
    assert params.train.epochs == EPOCHS
    assert (tmp_path / "contender.yaml").read_text().splitlines()[1] == "- name: the study"
    page = (tmp_path / "search.html").read_text()
    assert "train.learning_rate" in page
    assert "<script" not in page
    assert len((tmp_path / "trials.csv").read_text().splitlines()) == 13
    assert "| train.learning_rate |" in (tmp_path / "search.md").read_text()
