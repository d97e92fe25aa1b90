"""How many threads a training has: of its work and the cores, kept when it goes on, written down."""

import json

import pytest
import torch

import gkd_core as gkd
from gkd_core.config import TrainingConfig, parse_params
from gkd_core.errors import GkdError
from gkd_core.models.macs import multiply_accumulates
from gkd_core.schemes import DistillationSpec
from gkd_core.training import threads, trainer
from gkd_core.training.threads import CORES, computing_with, cores_of, threads_for, torch_limit
from gkd_core.training.trainer import Trainer, Training
from tests.unit.stripes import network, stripes_data

MACS_8_PIXELS = multiply_accumulates(network("resnet8", 0), 1, 8)


def training(space=None, *, teacher=None, **settings) -> Training:
    config = {"epochs": 2, "batch_size": 16, "device": "cpu", **settings}
    return Training(
        network("resnet8", 0),
        stripes_data(32),
        TrainingConfig.model_validate(config),
        DistillationSpec("ce" if teacher is None else "kd"),
        () if teacher is None else (teacher,),
        space=space,
    )


@pytest.fixture
def cores(monkeypatch):
    """Set how many there are, and make a thread worth three images of resnet8: a batch of 16 wants five."""
    monkeypatch.setattr(threads, "WORK_PER_THREAD", 3 * MACS_8_PIXELS)

    def set_cores(number: int) -> None:
        for module in (threads, trainer):
            monkeypatch.setattr(module, "torch_limit", lambda: number)

    return set_cores


@pytest.mark.parametrize(
    ("work", "cores", "expected"),
    [(0, 8, 1), (799_999_999, 8, 1), (1_600_000_000, 8, 4), (10**12, 8, 8), (10**12, 1, 1)],
)
def test_a_thread_for_every_so_much_work_and_never_more_than_cores(work, cores, expected):
    assert threads_for(work, cores) == expected


def test_no_more_threads_than_torch_was_given_nor_than_this_process_may(monkeypatch):
    monkeypatch.setattr(threads, "thread_limit", lambda: 8)
    with computing_with(3):
        assert torch_limit() == 3
    monkeypatch.setattr(threads, "thread_limit", lambda: 2)
    with computing_with(3):
        assert torch_limit() == 2


def test_work_is_of_the_largest_network_for_the_images_of_a_step(cores):
    cores(64)
    teacher = network("resnet14", 7)
    assert Trainer(training()).threads == 16 // 3
    assert Trainer(training(batch_size=1000)).threads == 32 // 3, "there are but 32 images"
    assert Trainer(training(teacher=teacher)).threads == 16 * multiply_accumulates(teacher, 1, 8) // (3 * MACS_8_PIXELS)
    cores(2)
    assert Trainer(training()).threads == 2


def test_torch_computes_with_them_during_the_training_and_its_record_has_them(cores, monkeypatch, tmp_path):
    cores(2)
    seen = []
    validate = trainer.validate
    monkeypatch.setattr(
        trainer, "validate", lambda *a, **k: (seen.append(torch.get_num_threads()), validate(*a, **k))[1]
    )
    before = torch.get_num_threads()
    result = training(epochs=1).run()
    result.save(tmp_path)
    assert (seen, torch.get_num_threads()) == ([2], before)
    assert json.loads((tmp_path / "training.json").read_text())["threads"] == 2
    assert json.loads((tmp_path / "run.json").read_text())["threads"] == 2


@pytest.mark.parametrize(("began", "here"), [(2, 1), (1, 2)])
def test_a_training_goes_on_with_as_many_threads_on_a_machine_with_others(
    cores, tmp_path, monkeypatch, capsys, began, here
):
    class Stop(Exception):
        pass

    def save_then_stop(path, content):
        save(path, content)
        raise Stop

    cores(began)
    expected = training().run(tmp_path / "whole")
    save = trainer.save_checkpoint
    monkeypatch.setattr(trainer, "save_checkpoint", save_then_stop)
    with pytest.raises(Stop):
        training().run(tmp_path / "cut")
    monkeypatch.setattr(trainer, "save_checkpoint", save)
    cores(here)
    capsys.readouterr()
    got = training().run(tmp_path / "cut")
    assert got.facts == expected.facts
    assert got.facts["threads"] == began
    weights = got.network.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in expected.network.state_dict().items())
    words = f"{began} thread{'s' * (began > 1)} as where it began (a training that began here would take {here})"
    assert words in " ".join(capsys.readouterr().err.split())


def test_the_later_trainings_of_a_step_have_the_cores_of_the_first(cores, tmp_path):
    cores(4)
    assert Trainer(training(tmp_path), tmp_path / "first").threads == 4
    cores(1)
    assert Trainer(training(tmp_path), tmp_path / "second").threads == 4
    assert Trainer(training(), tmp_path / "alone").threads == 1


def test_a_damaged_record_of_the_cores_is_named(tmp_path):
    assert cores_of(tmp_path) == torch_limit()
    (tmp_path / CORES).write_text('{"cores": "many"}')
    with pytest.raises(GkdError, match=r"cores\.json does not say how many cores"):
        cores_of(tmp_path)


def test_the_user_says_how_many_and_reads_when_they_are_too_many(cores, tmp_path, monkeypatch):
    cores(1)
    one, two = (Trainer(training(threads=number), tmp_path) for number in (None, 2))
    assert (one.threads, two.threads) == (1, 2)
    assert one.fingerprint != two.fingerprint
    monkeypatch.setattr(trainer, "usable_cores", lambda: 2)
    assert "more than the 2 cores" in Trainer(training(threads=64)).recipe
    assert "cores" not in Trainer(training(threads=2)).recipe
    data = gkd.load_data("digits", train_images=40)
    result = gkd.train(gkd.create_model("resnet8", data=data), data, epochs=1, device="cpu", threads=2)
    assert result.facts["threads"] == result.facts["training"]["threads"] == 2


def test_another_number_of_threads_is_another_configuration_and_none_is_none():
    plain, null, two = (
        parse_params({"train": given}).digest("train") for given in ({}, {"threads": None}, {"threads": 2})
    )
    assert plain == null != two
    assert "threads" in parse_params({"teacher": {"train": {"threads": 3}}}).teacher.train.model_dump_json()


def test_counting_leaves_the_network_and_the_random_numbers_as_they_were():
    counted = network("resnet8", 0).train()
    counted.classifier.get_submodule(counted.classifier.head_layers[0]).eval()
    modes = [module.training for module in counted.modules()]
    weights = {name: value.clone() for name, value in counted.state_dict().items()}
    state = torch.get_rng_state()
    multiply_accumulates(counted, 1, 8)
    assert [module.training for module in counted.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(weights[name], value) for name, value in counted.state_dict().items())
