"""Training on images without labels: a teacher's answers teach on them; who learns from labels alone leaves them."""

import dataclasses
from typing import Any

import pytest
import torch

import gkd_core as gkd
from gkd_core.config import TrainingConfig
from gkd_core.errors import GkdError
from gkd_core.methods import METHODS
from gkd_core.schemes import DistillationSpec
from gkd_core.training import trainer
from gkd_core.training.result import Result
from gkd_core.training.trainer import Trainer, Training
from tests.unit.stripes import CLASSES, network, stripes_data

SCHEMES = {
    "assistant": DistillationSpec("kd", scheme="assistant"),
    "ensemble": DistillationSpec("kd", scheme="ensemble", scheme_options={"weighting": "confidence"}),
    "mutual": DistillationSpec("kd", scheme="mutual"),
    "amalgamation": DistillationSpec("kd", scheme="amalgamation"),
    "born_again": DistillationSpec("kd", scheme="born_again", scheme_options={"generations": 1}),
}


def training(spec: DistillationSpec, unlabelled: int = 20, **config: Any) -> Training:
    parts = [CLASSES[:2], CLASSES[2:]] if spec.scheme == "amalgamation" else [CLASSES]
    parts = parts * 2 if spec.scheme == "ensemble" else parts
    teachers = tuple(network("resnet14", 5 + i, part) for i, part in enumerate(parts))
    settings = {"epochs": 1, "batch_size": 16, "device": "cpu", **config}
    return Training(
        network("resnet8", 0),
        stripes_data(30, unlabelled=unlabelled),
        TrainingConfig.model_validate(settings),
        spec,
        teachers,
        title="student",
    )


def run(one: Training) -> Result:
    return one.in_scheme(one.network.sibling, None)


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("ce", "dkd", "crd")])
def test_every_method_that_can_learns_from_them(name):
    trained = Trainer(training(DistillationSpec(name)))
    batch = next(iter(trained.loader.epoch(0)))
    assert [len(batch.labels), batch.shards.labelled] == [32, 16]
    result = trained.run()
    assert result.facts["unlabelled_images"] == 20
    assert result.facts["training"]["unlabelled_fraction"] == 0.5
    assert 0 <= result.history[0]["train_top1"] <= 1


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_goes_with_them(scheme):
    facts = run(training(SCHEMES[scheme])).facts
    assert facts["unlabelled_images"] == 20


def test_what_is_learnt_from_labels_alone_is_learnt_as_if_they_were_not_there():
    for method in ("ce", "kd"):
        fraction = {} if method == "ce" else {"unlabelled_fraction": 0.0}
        with_them, without = (
            run(training(DistillationSpec(method), count, **(fraction if count else {}))) for count in (20, 0)
        )
        assert with_them.facts["training"]["unlabelled_fraction"] == 0
        assert "unlabelled_images" not in with_them.facts
        for key, value in with_them.network.state_dict().items():
            assert torch.equal(value, without.network.state_dict()[key]), key


def test_a_student_that_only_sees_them_learns_what_the_teacher_says():
    data = stripes_data(16, validation=60, unlabelled=200)
    data.train = dataclasses.replace(data.train, labels=data.train.labels * 0)  # labels that teach nothing
    teacher = network("resnet14", 5)
    full = stripes_data(300, validation=60)
    settings = {"batch_size": 16, "device": "cpu", "learning_rate": 0.1}
    Training(teacher, full, TrainingConfig.model_validate(settings | {"epochs": 3})).run()
    how = TrainingConfig.model_validate(settings | {"epochs": 10, "unlabelled_fraction": 0.8})
    spec = DistillationSpec("kd", {"weight": 1.0})
    result = Training(network("resnet8", 0), data, how, spec, (teacher,)).run()
    assert result.history[-1]["validation_top1"] > 0.7


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        (DistillationSpec("dkd"), "dkd"),
        (DistillationSpec("crd"), "crd"),
        (DistillationSpec("gompertz", {"soft_labels": "decoupled"}), "gompertz with soft_labels decoupled"),
    ],
)
def test_a_method_that_needs_every_label_is_refused_unless_they_stay_out(spec, named):
    with pytest.raises(GkdError, match=rf"method {named} needs the label of every image.*unlabelled_fraction to 0"):
        run(training(spec))
    run(training(spec, unlabelled_fraction=0.0))


def test_a_fraction_of_images_that_are_not_there_is_refused():
    with pytest.raises(GkdError, match=r"train.unlabelled_fraction is 0.3, but the data has no unlabelled images"):
        run(training(DistillationSpec("kd"), 0, unlabelled_fraction=0.3))


def test_interrupted_and_resumed_is_the_same_to_the_bit(tmp_path, monkeypatch):
    how: dict[str, Any] = {"epochs": 3, "augment": {"mixup": 0.4}, "unlabelled_fraction": 0.4}
    spec = DistillationSpec("gompertz")
    whole = training(spec, **how).run(tmp_path / "whole")
    save, saves = trainer.save_checkpoint, []

    def stop(path, content):
        save(path, content)
        saves.append(path)
        if len(saves) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "save_checkpoint", stop)
    with pytest.raises(KeyboardInterrupt):
        training(spec, **how).run(tmp_path / "again")
    monkeypatch.setattr(trainer, "save_checkpoint", save)
    resumed = training(spec, **how).run(tmp_path / "again")
    assert resumed.history.rows == whole.history.rows
    for key, value in whole.network.state_dict().items():
        assert torch.equal(value, resumed.network.state_dict()[key]), key


def test_in_the_library_a_fraction_wants_a_teacher():
    data = gkd.load_data("digits", train_images=100)
    student = gkd.create_model("resnet8", data=data)
    with pytest.raises(GkdError, match=r"unlabelled_fraction is 0.5, but without a teacher"):
        gkd.train(student, data, epochs=1, device="cpu", unlabelled_fraction=0.5)
    with pytest.raises(GkdError, match=r"unlabelled_fraction is 0.5, but without a teacher"):
        gkd.distill(student, None, data, method="ce", epochs=1, device="cpu", unlabelled_fraction=0.5)
