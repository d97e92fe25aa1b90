"""Every method of the registry in the real trainer: two epochs, interrupted twice and resumed to the bit.

A new method joins by being in METHODS; nothing is to be added here. The schemes that change what the loss is given or
have a loss of their own are here too.
"""

import math
import signal

import numpy as np
import pytest
import torch
from torch import Tensor

from gkd_core import schemes
from gkd_core.config import TrainingConfig
from gkd_core.methods import METHODS, SCHEDULES, hyperparameters
from gkd_core.models.classifier import Output
from gkd_core.schemes import DistillationSpec
from gkd_core.training import trainer
from gkd_core.training.result import Result
from gkd_core.training.trainer import Trainer, Training
from tests.unit.stripes import network, stripes_data

EPOCHS = 2
COUNT = 34  # two batches of 16 and one of 2

# Choices that lead through other code than the defaults.
VARIANTS = [
    *((name, {}, "single") for name in METHODS),
    ("dynamickd", {"per_sample": True}, "single"),
    ("cmkd", {"direction": "hard_by_value"}, "single"),
    ("crd", {"mode": "relaxed"}, "single"),
    ("crd", {"shared_negatives": True, "negatives": 20}, "single"),
    ("gompertz", {"solver": "quantile", "stages": "all", "term_scale": "running_mean"}, "single"),
]
# Where the scheme brings another teacher or its own loss.
ARRANGED = [
    ("kd", {}, "mutual"),
    ("ce", {}, "mutual"),
    ("kd", {}, "amalgamation"),
    ("kd", {}, "ensemble"),
    ("cmkd", {}, "ensemble"),
]
SETTINGS = {"mutual": {"peers": 3}, "ensemble": {"weighting": "confidence"}}
PARTS = (("c", "a"), ("b", "c", "d"))


def _ids(variants):
    return [
        " ".join([name, *(f"{k}={v}" for k, v in options.items()), *([where] if where != "single" else [])])
        for name, options, where in variants
    ]


def over(variants):
    return pytest.mark.parametrize(("name", "options", "where"), variants, ids=_ids(variants))


every_method = over([*VARIANTS, ("kd", {}, "mutual"), ("kd", {}, "amalgamation")])


class Run:
    """One training, everything in it made anew, as a new process does."""

    def __init__(self, folder, name: str, options: dict, where: str = "single", *, count: int = COUNT, **how) -> None:
        spec = DistillationSpec(
            name, options, how.get("schedule"), how.get("curve", {}), where, SETTINGS.get(where, {})
        )
        self.student = network("resnet8", 1)
        # Wider than the student, so that whatever adapts channels has work to do.
        match schemes.get(where).teachers, where:
            case "none", _:
                teachers = []
            case "several", "amalgamation":
                teachers = [network("wrn_16_2", 2 + i, part) for i, part in enumerate(PARTS)]
            case "several", _:
                teachers = [network("wrn_16_2", 2), network("resnet8", 4)]
            case _:
                teachers = [network("wrn_16_2", 2)]
        config = TrainingConfig(epochs=EPOCHS, batch_size=16, device="cpu", learning_rate=0.01)
        self.trainer = Trainer(Training(self.student, stripes_data(count), config, spec, tuple(teachers)), folder)
        if not how:
            self.trainer.weight = lambda t: 0.7
        self.teacher, self.learner, self.optimizer = (
            self.trainer.teacher, self.trainer.learner, self.trainer.optimizer
        )  # fmt: skip

    def go(self) -> Result:
        return self.trainer.run()

    def state(self) -> dict[str, Tensor]:
        """All that learns or remembers, by name."""
        state = dict(self.learner.state_dict())
        for i, slots in self.optimizer.state_dict()["state"].items():
            state |= {f"optimizer.{i}.{key}": value for key, value in slots.items() if isinstance(value, Tensor)}
        return {name: value.clone() for name, value in state.items()}

    @property
    def batch(self):
        return next(iter(self.trainer.loader.epoch(0)))

    def answer(self) -> Output | None:
        batch = self.batch
        return self.teacher(batch.images, batch.indices, batch.labels) if self.teacher else None

    def terms(self, answer: Output | None = None, epoch: float = 0.5) -> dict[str, Tensor]:
        """Of the first batch, as the trainer calls the learner."""
        return self.learner(self.batch, self.batch.labels, answer or self.answer(), epoch)[0]


class Interrupted(Exception):
    """The power went."""


@every_method
def test_two_epochs_interrupted_and_resumed_end_with_the_same_bits(name, options, where, tmp_path, monkeypatch):
    whole = Run(tmp_path / "whole", name, options, where)
    before = whole.state()
    teachers = whole.teacher.networks if whole.teacher else ()
    teachers_before = [{k: v.clone() for k, v in teacher.state_dict().items()} for teacher in teachers]
    expected = whole.go()

    # It trained: finite, every trained parameter of the loss moved, and the teacher as it was.
    assert len(expected.history) == EPOCHS
    assert all(np.isfinite(value) for row in expected.history for value in row.values())
    after = whole.state()
    for key, parameter in whole.learner.named_parameters():
        assert not parameter.requires_grad or not torch.equal(before[key], after[key]), key
    for teacher, teacher_before in zip(teachers, teachers_before, strict=True):
        assert not any(module.training for module in teacher.modules())
        now = teacher.state_dict()
        assert all(torch.equal(now[k], v) for k, v in teacher_before.items())
        assert all(p.grad is None for p in teacher.parameters())

    save = trainer.save_checkpoint

    def save_then_stop(path, content):
        save(path, content)
        raise Interrupted

    cut = Run(tmp_path / "cut", name, options, where)
    monkeypatch.setattr(trainer, "save_checkpoint", save_then_stop)
    with pytest.raises(Interrupted):
        cut.go()
    monkeypatch.undo()
    # Then once more, within the second epoch: what a loss remembers is in that checkpoint too.
    again = Run(tmp_path / "cut", name, options, where)
    torch.manual_seed(98)  # whatever the new process starts with
    again.trainer.weight = lambda t: (t >= 1.3 and signal.raise_signal(signal.SIGTERM), 0.7)[1]
    with pytest.raises(SystemExit):
        again.go()
    assert len(again.trainer.state.steps) == 5
    resumed = Run(tmp_path / "cut", name, options, where)
    torch.manual_seed(99)
    got = resumed.go()
    assert got.history.rows == expected.history.rows
    state = resumed.state()
    assert state.keys() == after.keys()
    assert [key for key in after if not torch.equal(state[key], after[key])] == []


@over(ARRANGED)
def test_one_step_of_a_scheme(name, options, where, tmp_path, nothing_read_back):
    """The student learns from every term, the teacher from none, and nothing waits for the device."""
    run = Run(tmp_path, name, options, where)
    with nothing_read_back():
        sum(run.terms().values()).backward()
    answer = run.answer()
    outputs = [] if answer is None else [answer.logits, answer.embedding, *answer.stages]
    assert not any(output.requires_grad for output in outputs)
    for output in outputs:
        output.requires_grad_()
    terms = run.terms(answer)
    assert (set(terms) == {"ce"}) == (name == "ce")
    for term, value in terms.items():
        assert value.shape == ()
        assert value.isfinite()
        gradients = torch.autograd.grad(value, list(run.student.parameters()), retain_graph=True, allow_unused=True)
        assert sum(g.abs().sum() for g in gradients if g is not None) > 0, term
    sum(terms.values()).backward()
    teachers = run.teacher.networks if run.teacher else ()
    assert all(tensor.grad is None for tensor in [*outputs, *(p for each in teachers for p in each.parameters())])


@over([("kd", {}, "single"), *ARRANGED])
def test_a_teacher_answers_for_the_very_images_it_is_shown(name, options, where, tmp_path):
    """An answer kept from another augmentation of the same image would be another teacher's."""
    run, fresh = Run(tmp_path, name, options, where), Run(tmp_path, name, options, where)
    if run.teacher is None:
        return
    first, second = (next(iter(run.trainer.loader.epoch(n))) for n in (0, 1))
    run.teacher(first.images, first.indices, first.labels)
    other = first.images.flip(2)
    answer = run.teacher(other, first.indices, first.labels).logits
    assert torch.equal(answer, fresh.teacher(other, first.indices, first.labels).logits)
    again = run.teacher(second.images, second.indices, second.labels).logits
    assert torch.equal(again, fresh.teacher(second.images, second.indices, second.labels).logits)


RISE = 0.35 * math.exp(-math.exp(2.0))  # of Gompertz's curve at its beginning, from .25 to .6
# A method each whose own schedule it is not, and β at the first step by the schedule's formula.
SCHEDULED = {
    "gompertz": ("kd", 0.25 + RISE),
    "adaptive-gompertz": ("reviewkd", 0.25 + RISE),
    "reversed-gompertz": ("crd", 0.25 + 0.35 * math.exp(-math.exp(2.0 - 7.0))),
    "linear": ("dkd", 0.25),
    "cosine": ("self-distillation", 0.25),
    "constant": ("gompertz", 0.6),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_any_schedule_weighs_any_method(schedule, tmp_path):
    """One step of the loop against the step written out: CE + β·others."""
    name, beta = SCHEDULED[schedule]
    options = {"warmup_epochs": 0.0} if "warmup_epochs" in hyperparameters(name) else {}
    how = {"schedule": schedule, "curve": {"beta_min": 0.25, "beta_max": 0.6}}

    by_hand = Run(tmp_path, name, options, count=16, **how)
    by_hand.learner.train()
    torch.manual_seed(7)
    terms = by_hand.terms(epoch=0.0)
    others = torch.stack([value for key, value in terms.items() if key != "ce"]).sum()
    assert others.abs() > 1e-3
    (terms["ce"] + beta * others).backward()
    by_hand.optimizer.step()

    run = Run(tmp_path, name, options, count=16, **how)
    run.trainer.config = run.trainer.config.model_copy(update={"epochs": 1})
    run.trainer.learning_rate = lambda t: 1.0
    torch.manual_seed(7)
    trained = run.go()
    assert trained.steps[:, 1].tolist() == pytest.approx([beta], rel=1e-6)
    assert trained.history[0]["train_loss"] == pytest.approx((terms["ce"] + beta * others).item(), rel=1e-5)
    weights = dict(by_hand.student.named_parameters())
    for key, weight in run.student.named_parameters():
        torch.testing.assert_close(weight, weights[key], rtol=1e-5, atol=1e-6)
