"""Fine-tuning: what is frozen stays to the bit, what is not has its own rate, and all of it resumes to the bit."""

import copy
import itertools
import signal

import pytest
import torch
from torch import nn

from gkd_core.config import TrainingConfig
from gkd_core.errors import GkdError
from gkd_core.methods import METHODS
from gkd_core.models.create import wrap
from gkd_core.schemes import DistillationSpec, get
from gkd_core.training import trainer
from gkd_core.training.learning_rate import thawing_factor
from gkd_core.training.trainer import Trainer, Training
from tests.unit.stripes import CLASSES, network, stripes_data

HEAD = "classifier.fc."
PARTS = (("c", "a"), ("b", "c", "d"))
SETTINGS = {
    "epochs": 3, "batch_size": 16, "device": "cpu", "learning_rate": 0.01, "freeze_epochs": 0,
    "freeze_batch_norm": False,
}  # fmt: skip


def run_of(work, spec=None, *, count=40, student=None, **config) -> Trainer:
    spec = spec or DistillationSpec()
    teachers = get(spec.scheme).teachers
    if student is None:
        student = network("resnet8", 1)
        student.pretrained = True
    taught_by = {"none": 0, "one": 1, "several": 2}[teachers] if METHODS[spec.method].teacher else 0
    parts = PARTS if spec.scheme == "amalgamation" else (CLASSES, CLASSES)
    return Trainer(
        Training(
            student,
            stripes_data(count),
            TrainingConfig.model_validate(SETTINGS | config),
            spec,
            tuple(network("wrn_16_2", 2 + i, parts[i]) for i in range(taught_by)),
        ),
        work,
    )


def state_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(before, after) -> set[str]:
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def after_each_epoch(run: Trainer, monkeypatch, what=None) -> list[dict[str, torch.Tensor]]:
    """Train, and note at the end of each epoch what the network holds."""
    seen = []
    monkeypatch.setattr(trainer, "save_checkpoint", lambda path, content: seen.append(state_of(what or run.network)))
    run.run()
    return seen


def test_the_backbone_and_its_statistics_stay_to_the_bit_while_the_head_is_trained(tmp_path, monkeypatch):
    run = run_of(tmp_path, freeze_epochs=2)
    start = state_of(run.network)
    first, second, third = after_each_epoch(run, monkeypatch)
    assert changed(start, first) == changed(first, second) == {f"{HEAD}weight", f"{HEAD}bias"}
    assert changed(second, third) == {*start}
    assert all(parameter.requires_grad for parameter in run.network.parameters())


def test_no_gradient_is_computed_below_the_head_while_it_is_frozen(tmp_path):
    run, seen = run_of(tmp_path, freeze_epochs=1, epochs=2), []
    step = run.optimizer.step
    run.optimizer.step = lambda: (
        seen.append({name for name, p in run.network.named_parameters() if p.grad is not None}),
        step(),
    )
    run.run()
    everything = {name for name, _ in run.network.named_parameters()}
    per_epoch = run.loader.steps_per_epoch
    assert seen == [{f"{HEAD}weight", f"{HEAD}bias"}] * per_epoch + [everything] * per_epoch


def test_statistics_of_batch_norms_stay_in_the_whole_training_on_request(tmp_path):
    run = run_of(tmp_path, freeze_batch_norm=True)
    start = state_of(run.network)
    run.run()
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    assert changed(start, state_of(run.network)) == {name for name in start if not name.endswith(statistics)}


def test_frozen_statistics_are_what_is_normalised_by(tmp_path):
    run = run_of(tmp_path, freeze_batch_norm=True, epochs=1)
    reference, batch = copy.deepcopy(run.network).eval(), next(iter(run.loader.epoch(0)))
    seen = []
    run.learner.register_forward_hook(lambda module, given, output: seen.append((given[0].images, output[1])))
    run.run()
    images, logits = seen[0]
    assert torch.equal(images, batch.images)
    assert torch.equal(logits, reference(images).logits)


def test_a_norm_in_the_head_learns_with_the_head(tmp_path, monkeypatch):
    class Normed(nn.Sequential):
        """Its head has statistics of its own."""

        def __init__(self) -> None:
            trunk = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            super().__init__(trunk, nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 4)))

    torch.manual_seed(0)
    run = run_of(
        tmp_path, freeze_epochs=1, epochs=2, student=wrap(Normed(), head="1", classes=list(CLASSES), image_size=8)
    )
    start = state_of(run.network)
    first, _ = after_each_epoch(run, monkeypatch)
    assert changed(start, first) == {name for name in start if name.startswith("classifier.network.1.")}


def test_the_rates_of_every_step_by_hand(tmp_path):
    run = run_of(
        tmp_path, count=32, epochs=4, freeze_epochs=2, warmup_epochs=1.0, schedule="constant", learning_rate=0.1,
        backbone_lr_factor=0.5, optimizer="adamw",
    )  # fmt: skip
    seen, step = [], run.optimizer.step
    run.optimizer.step = lambda: (seen.append([group["lr"] for group in run.optimizer.param_groups]), step())
    result = run.run()
    head = [0.0, 0.05, *[0.1] * 6]  # two steps an epoch: it warms up over the first
    backbone = [0.0, 0.0, 0.0, 0.0, 0.0, 0.025, 0.05, 0.05]  # and the rest over the third, which it is free in
    spared = [[h, h, b, b] for h, b in zip(head, backbone, strict=True)]  # each with and without weight decay
    assert seen == [pytest.approx(rates) for rates in spared]
    assert result.steps[:, 0].tolist() == pytest.approx(head)  # the history shows the head's


def test_what_was_frozen_thaws_over_a_second_warm_up():
    factor = thawing_factor(2, 0.5)
    assert [factor(t) for t in (0.0, 2.0, 2.25, 2.5, 9.0)] == [0.0, 0.0, 0.5, 1.0, 1.0]
    assert thawing_factor(0, 5.0)(0.0) == thawing_factor(2, 0.0)(2.0) == 1.0


EXTRAS = [
    {"optimizer": "sgd", "decay_norms": True, "backbone_lr_factor": 1.0, "warmup_epochs": 0.0},
    {"ema_decay": 0.9, "clip_norm": 1.0, "layer_decay": 0.7, "select": "best"},
    {"freeze_batch_norm": True, "augment": {"mixup": 0.4}},
]


@pytest.mark.parametrize("interrupted_after", [1, 2, 3])  # while it is frozen, at the thaw, after it
@pytest.mark.parametrize("extras", EXTRAS)
def test_interrupted_and_resumed_is_the_same_to_the_bit(tmp_path, monkeypatch, interrupted_after, extras):
    spec = DistillationSpec("kd")
    expected = run_of(tmp_path / "whole", spec, epochs=4, freeze_epochs=2, **extras).run()

    class Stop(Exception):
        pass

    real_save, saves = trainer.save_checkpoint, []

    def save_then_stop(path, content):
        real_save(path, content)
        saves.append(path)
        if len(saves) == interrupted_after:
            raise Stop

    monkeypatch.setattr(trainer, "save_checkpoint", save_then_stop)
    cut = run_of(tmp_path / "cut", spec, epochs=4, freeze_epochs=2, **extras)
    with pytest.raises(Stop):
        cut.run()
    assert all(parameter.requires_grad for parameter in cut.network.parameters())
    torch.manual_seed(99)  # whatever the new process starts with
    got = run_of(tmp_path / "cut", spec, epochs=4, freeze_epochs=2, **extras).run()
    assert len(saves) == 4
    assert not changed(state_of(got.network), state_of(expected.network))
    assert got.history.rows == expected.history.rows
    assert torch.equal(got.steps, expected.steps)
    assert got.facts == expected.facts


@pytest.mark.parametrize(
    "step", [2, 7, 8]
)  # while it is frozen, in the first epoch after the thaw, of three steps each
def test_terminated_within_an_epoch_and_resumed_is_the_same_to_the_bit(tmp_path, step):
    settings = {"epochs": 3, "freeze_epochs": 2, "warmup_epochs": 1.0, **EXTRAS[1]}
    expected = run_of(tmp_path / "whole", DistillationSpec("kd"), **settings).run()
    cut = run_of(tmp_path / "cut", DistillationSpec("kd"), **settings)
    beta, weight = itertools.count(1), cut.weight
    cut.weight = lambda t: (next(beta) == step and signal.raise_signal(signal.SIGTERM), weight(t))[1]
    with pytest.raises(SystemExit):
        cut.run()
    assert all(parameter.requires_grad for parameter in cut.network.parameters())
    torch.manual_seed(99)
    got = run_of(tmp_path / "cut", DistillationSpec("kd"), **settings).run()
    assert not changed(state_of(got.network), state_of(expected.network))
    assert got.history.rows == expected.history.rows
    assert torch.equal(got.steps, expected.steps)


SCHEMES = [("kd", "mutual"), ("ce", "mutual"), ("kd", "ensemble"), ("kd", "amalgamation")]


@pytest.mark.parametrize(("method", "scheme"), [*((name, "single") for name in METHODS), *SCHEMES])
def test_every_method_trains_a_head_alone_with_what_it_brings_itself(tmp_path, monkeypatch, method, scheme):
    run = run_of(tmp_path, DistillationSpec(method, scheme=scheme), count=34, epochs=2, freeze_epochs=1)
    start = state_of(run.learner)
    first, second = after_each_epoch(run, monkeypatch, run.learner)
    networks = ("network.", "others.")
    moved = {name for name in changed(start, first) if name.startswith(networks)}
    heads = {name for name, _ in run.learner.named_parameters() if name.startswith(networks) and ".fc." in name}
    assert moved == heads
    assert {name for name, _ in run.learner.named_parameters() if name.startswith(networks)} <= changed(first, second)


def test_what_the_user_has_frozen_stays_frozen(tmp_path):
    student = network("resnet8", 1)
    student.pretrained = True
    student.classifier.conv1.weight.requires_grad_(False)
    before = student.classifier.conv1.weight.clone()
    run_of(tmp_path, student=student, freeze_epochs=1, epochs=2).run()
    assert torch.equal(student.classifier.conv1.weight, before)
    assert [name for name, p in student.named_parameters() if not p.requires_grad] == ["classifier.conv1.weight"]


def test_a_sibling_of_a_learnt_network_has_a_new_head_alone():
    noise = network("resnet8", 1)
    other = noise.sibling(5)
    assert f"{HEAD}weight" in (different := changed(noise.state_dict(), other.state_dict()))
    assert "classifier.conv1.weight" in different
    assert not other.pretrained
    noise.pretrained = True
    other = noise.sibling(5)
    assert changed(noise.state_dict(), other.state_dict()) == {f"{HEAD}weight", f"{HEAD}bias"}
    assert other.pretrained
    assert not changed(other.state_dict(), noise.sibling(5).state_dict())
    assert f"{HEAD}weight" in changed(other.state_dict(), noise.sibling(6).state_dict())


def test_peers_start_from_the_student_s_learnt_weights(tmp_path):
    run = run_of(tmp_path, DistillationSpec("kd", scheme="mutual"), seed=3)
    (peer,) = run.learner.others
    assert changed(run.network.state_dict(), peer.state_dict()) == {f"{HEAD}weight", f"{HEAD}bias"}


def test_the_facts_say_which_recipe_it_was_and_all_it_came_to(tmp_path, capsys):
    facts = run_of(tmp_path, epochs=1, warmup_epochs=0.0, learning_rate=None, freeze_epochs=None).run().facts
    assert (facts["recipe"], facts["training"]["recipe"]) == ("fine-tune", "fine-tune")
    assert "learnt weights" in facts["recipe_reason"]
    assert facts["training"]["learning_rate"] == 1e-3
    assert facts["training"]["epochs"] == facts["epochs"] == 1
    assert None not in (facts["training"]["weight_decay"], facts["training"]["freeze_epochs"])
    said = capsys.readouterr().err
    assert "recipe fine-tune" in said
    assert "40 images" in said


@pytest.mark.parametrize("asked", [{"recipe": "fine-tune"}, {"freeze_epochs": 1}, {"freeze_batch_norm": True}])
def test_a_network_of_noise_has_nothing_to_freeze(tmp_path, asked):
    with pytest.raises(GkdError, match=f"train.{next(iter(asked))} is .*noise"):
        run_of(tmp_path, student=network("resnet8", 1), **asked)


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path):
    run_of(tmp_path, epochs=1).run()
    with pytest.raises(GkdError, match="another configuration"):
        run_of(tmp_path, epochs=1, layer_decay=0.5).run()


def test_every_generation_is_fine_tuned_from_the_same_weights(monkeypatch):
    run = run_of(None, epochs=2, freeze_epochs=1, learning_rate=None)
    starts, train = [], Trainer.run
    monkeypatch.setattr(Trainer, "run", lambda self: (starts.append(state_of(self.network)), train(self))[1])
    spec = DistillationSpec("kd", scheme="born_again", scheme_options={"generations": 1})
    settings = TrainingConfig(epochs=2, batch_size=16, device="cpu", freeze_epochs=1)
    result = Training(run.network, stripes_data(40), settings, spec).in_scheme(run.network.sibling, None)
    first, second = starts
    assert changed(first, second) == {f"{HEAD}weight", f"{HEAD}bias"}
    assert result.facts["recipe"] == "fine-tune"
