"""Every method of the registry in the real training loop: two epochs, interrupted and resumed to the bit.

A new method joins by being in METHODS; nothing is to be added here.
"""

import inspect

import numpy as np
import pytest
import torch
from torch import Tensor

from gkd_core.data.augment import Augmentation
from gkd_core.data.loader import Loader
from gkd_core.data.prepared import Split
from gkd_core.errors import GkdError
from gkd_core.losses.base import Context, Loss, Step
from gkd_core.methods import METHODS, check_hyperparameters, hyperparameters
from gkd_core.models.network import Network, NetworkSpec
from gkd_core.training import loop
from gkd_core.training.learning_rate import learning_rate_factor
from gkd_core.training.optimizer import create_optimizer
from gkd_core.training.teacher import OnlineTeacher

CPU = torch.device("cpu")
EPOCHS = 2
COUNT = 50  # three batches of 16 and one of 2
TAUGHT = [name for name, method in METHODS.items() if method.teacher]

# Choices that lead through other code than the defaults.
VARIANTS = [
    *((name, {}) for name in METHODS),
    ("dynamickd", {"per_sample": True}),
    ("cmkd", {"direction": "hard_by_value"}),
    ("crd", {"mode": "relaxed"}),
    ("crd", {"shared_negatives": True, "negatives": 20}),
]
IDS = [" ".join([name, *(f"{k}={v}" for k, v in options.items())]) for name, options in VARIANTS]
every_method = pytest.mark.parametrize(("name", "options"), VARIANTS, ids=IDS)


def stripes(count: int, seed: int) -> Split:
    """Four kinds of noisy stripes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, count)
    images = rng.integers(0, 80, (count, 8, 8, 1))
    for i, label in enumerate(labels):
        images[i, label * 2 : label * 2 + 2] += 150
    return Split(images.astype(np.uint8), labels, (0.2,))


def network(name: str, seed: int) -> Network:
    torch.manual_seed(seed)
    return Network(NetworkSpec(name, "auto", ("a", "b", "c", "d"), 1, 8, (0.2,), (0.3,)))


class Run:
    """One training, everything in it made anew, as a new process does."""

    def __init__(self, folder, name: str, options: dict, *, weight: float = 0.7) -> None:
        self.student = network("resnet8", 1)
        # Wider than the student, so that whatever adapts channels has work to do.
        teacher = network("wrn_16_2", 2) if METHODS[name].teacher else None
        self.teacher = None if teacher is None else OnlineTeacher(teacher, device=CPU, autocast=False)
        split = stripes(COUNT, 1)
        torch.manual_seed(3)
        context = Context(self.student, teacher, torch.from_numpy(split.labels), EPOCHS, 0)
        self.loss: Loss = METHODS[name].load()(context, **check_hyperparameters(name, options))
        self.optimizer = create_optimizer(
            self.student, self.loss, name="sgd", learning_rate=0.01, weight_decay=5e-4, momentum=0.9
        )
        augmentation = Augmentation(crop_padding=1, flip=False, cutout=0, mixup=0.0)
        self.arguments = {
            "name": f"student ({name})",
            "loader": Loader(
                split, batch_size=16, device=CPU, seed=0, augmentation=augmentation, shuffle=True, num_classes=4
            ),
            "validation": Loader(
                stripes(16, 2), batch_size=16, device=CPU, augmentation=None, shuffle=False, num_classes=4
            ),
            "teacher": self.teacher,
            "learning_rate": learning_rate_factor("cosine", epochs=EPOCHS),
            "weight": lambda t: weight,
            "epochs": EPOCHS,
            "checkpoint": folder / "checkpoint.pt",
            "fingerprint": "f",
        }

    def go(self) -> loop.Trained:
        return loop.train(self.student, self.loss, optimizer=self.optimizer, **self.arguments)

    def state(self) -> dict[str, Tensor]:
        """All that learns or remembers, by name."""
        parts = {"student": self.student.state_dict(), "loss": self.loss.state_dict()}
        state = {f"{part}.{key}": value for part, values in parts.items() for key, value in values.items()}
        for i, slots in self.optimizer.state_dict()["state"].items():
            state |= {f"optimizer.{i}.{key}": value for key, value in slots.items() if isinstance(value, Tensor)}
        return {name: value.clone() for name, value in state.items()}

    def step(self) -> Step:
        """The first batch, as the loop hands it to the loss."""
        batch = next(iter(self.arguments["loader"].epoch(0)))
        taught = self.teacher(batch.images, batch.indices) if self.teacher else None
        return Step(
            self.student(batch.images),
            taught,
            batch.images,
            batch.labels,
            None,
            batch.indices,
            0.5,
            lambda logits: torch.nn.functional.cross_entropy(logits.float(), batch.labels),
        )


class Interrupted(Exception):
    """The power went."""


@every_method
def test_two_epochs_interrupted_and_resumed_end_with_the_same_bits(name, options, tmp_path, monkeypatch):
    whole = Run(tmp_path / "whole", name, options)
    before = whole.state()
    teacher_before = (
        {} if whole.teacher is None else {k: v.clone() for k, v in whole.teacher.network.state_dict().items()}
    )
    expected = whole.go()

    # It trained: finite, every trained parameter of the loss moved, and the teacher as it was.
    assert len(expected.history) == EPOCHS
    assert all(np.isfinite(value) for row in expected.history for value in row.values())
    after = whole.state()
    for key, parameter in whole.loss.named_parameters():
        assert not parameter.requires_grad or not torch.equal(before[f"loss.{key}"], after[f"loss.{key}"]), key
    if whole.teacher is not None:
        assert not any(module.training for module in whole.teacher.network.modules())
        now = whole.teacher.network.state_dict()
        assert all(torch.equal(now[k], v) for k, v in teacher_before.items())
        assert all(p.grad is None for p in whole.teacher.network.parameters())

    save = loop.save_checkpoint

    def save_then_stop(path, content):
        save(path, content)
        raise Interrupted

    cut = Run(tmp_path / "cut", name, options)
    monkeypatch.setattr(loop, "save_checkpoint", save_then_stop)
    with pytest.raises(Interrupted):
        cut.go()
    monkeypatch.undo()
    resumed = Run(tmp_path / "cut", name, options)
    torch.manual_seed(99)  # whatever the new process starts with
    got = resumed.go()
    assert got.history == expected.history
    state = resumed.state()
    assert state.keys() == after.keys()
    assert [key for key in after if not torch.equal(state[key], after[key])] == []


@every_method
class TestOneStep:
    def test_terms_are_finite_scalars_and_one_is_cross_entropy(self, name, options, tmp_path):
        run = Run(tmp_path, name, options)
        terms = run.loss(run.step())
        assert "ce" in terms
        assert all(term.shape == () and term.isfinite() for term in terms.values())
        assert (set(terms) == {"ce"}) == (name == "ce")

    def test_the_student_learns_from_every_term(self, name, options, tmp_path):
        run = Run(tmp_path, name, options)
        for term, value in run.loss(run.step()).items():
            gradients = torch.autograd.grad(value, list(run.student.parameters()), retain_graph=True, allow_unused=True)
            assert sum(g.abs().sum() for g in gradients if g is not None) > 0, term

    def test_no_gradient_into_the_teacher(self, name, options, tmp_path):
        if METHODS[name].teacher:
            run = Run(tmp_path, name, options)
            step = run.step()
            outputs = [step.teacher.logits, step.teacher.embedding, *step.teacher.stages]
            for output in outputs:
                output.requires_grad_()
            sum(run.loss(step).values()).backward()
            assert all(output.grad is None for output in outputs)
            assert all(p.grad is None for p in run.teacher.network.parameters())

    def test_nothing_is_read_from_the_device(self, name, options, tmp_path, monkeypatch):
        """A number read every step makes an accelerator wait: the classic slow loop."""
        run = Run(tmp_path, name, options)
        step = run.step()
        reads: list[str] = []
        for reader in ("item", "tolist", "numpy", "cpu", "nonzero", "__bool__", "__int__", "__float__", "__index__"):
            real = getattr(Tensor, reader)

            def read(tensor, *args, reader=reader, real=real, **kwargs):
                reads.append(reader)
                return real(tensor, *args, **kwargs)

            monkeypatch.setattr(Tensor, reader, read)
        run.loss(step)
        monkeypatch.undo()
        assert reads == []

    def test_two_instances_share_no_state(self, name, options, tmp_path):
        """Counters and hooks on the class are shared by all: the second instance must start where the first did."""
        first, second = Run(tmp_path, name, options), Run(tmp_path, name, options)
        attributes = dict(vars(type(first.loss)))
        torch.manual_seed(0)
        expected = {k: v.item() for k, v in first.loss(first.step()).items()}
        torch.manual_seed(0)
        first.loss(first.step())
        torch.manual_seed(0)
        assert {k: v.item() for k, v in second.loss(second.step()).items()} == expected
        assert dict(vars(type(first.loss))) == attributes


@pytest.mark.parametrize("name", METHODS)
class TestEntry:
    def test_the_defaults_are_within_their_own_limits(self, name):
        defaults = {key: parameter.default for key, parameter in hyperparameters(name).items()}
        assert inspect.Parameter.empty not in defaults.values()
        assert check_hyperparameters(name, defaults) == defaults

    def test_every_hyperparameter_is_documented(self, name):
        text = inspect.getdoc(METHODS[name].load())
        assert text
        missing = [key for key in hyperparameters(name) if key not in text]
        assert missing == []

    def test_a_reconstruction_says_so(self, name):
        text = inspect.getdoc(METHODS[name].load())
        assert METHODS[name].published or ("reconstruction" in text and "ssumed" in text)


@pytest.mark.parametrize("name", TAUGHT)
def test_a_method_that_learns_from_a_teacher_refuses_to_do_without(name, tmp_path):
    student = network("resnet8", 1)
    with pytest.raises(GkdError, match=rf"distill\.method {name} learns from a teacher"):
        METHODS[name].load()(Context(student, None, torch.arange(COUNT) % 4, EPOCHS, 0))
    run = Run(tmp_path, name, {})
    with pytest.raises(ValueError, match="no teacher output"):
        run.loss(Step(**{**vars(run.step()), "teacher": None}))
