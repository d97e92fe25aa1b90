"""The loop does what its formula says, leaves modes and gradients as they must be, and resumes to the bit."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel

from gkd_core.data.augment import Augmentation
from gkd_core.data.loader import Loader
from gkd_core.data.shards import Shards
from gkd_core.errors import GkdError
from gkd_core.losses.base import Loss
from gkd_core.losses.cross_entropy import CrossEntropy
from gkd_core.losses.kd import KnowledgeDistillation
from gkd_core.models.classifier import Output
from gkd_core.models.network import Network, NetworkSpec
from gkd_core.training import loop
from gkd_core.training.learning_rate import learning_rate_factor
from gkd_core.training.optimizer import create_optimizer
from gkd_core.training.teacher import OnlineTeacher

CPU = torch.device("cpu")
CLASSES = ("a", "b", "c")


class Split:
    """A tiny prepared split: three kinds of noisy stripes that a small network can learn."""

    def __init__(self, count: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.labels = rng.integers(0, 3, count)
        images = rng.integers(0, 80, (count, 8, 8, 1))
        for i, label in enumerate(self.labels):
            images[i, label * 3 : label * 3 + 2] += 150
        self.images = images.astype(np.uint8)
        self.mean = (0.2,)
        self.topology = None

    def __len__(self) -> int:
        return len(self.labels)


def network(seed: int = 0) -> Network:
    torch.manual_seed(seed)
    return Network(NetworkSpec("resnet8", "auto", CLASSES, 1, 8, (0.2,), (0.3,)))


class Run:
    """One training with its parts at hand."""

    def __init__(self, tmp_path, loss_class=CrossEntropy, *, teacher=None, epochs=3, count=50, lr=0.05, **arguments):
        self.network = network()
        self.teacher = None if teacher is None else OnlineTeacher(teacher, device=CPU, autocast=False)
        self.loss = loss_class(self.network, teacher)
        self.optimizer = create_optimizer(
            self.network, self.loss, name="sgd", learning_rate=lr, weight_decay=5e-4, momentum=0.9
        )
        augmentation = Augmentation(crop_padding=1, flip=False, cutout=0, mixup=arguments.pop("mixup", 0.0))
        loader = {"batch_size": 16, "device": CPU, "num_classes": 3}
        self.arguments = {
            "name": "student resnet8",
            "loader": Loader(Split(count, 1), seed=0, augmentation=augmentation, shuffle=True, **loader),
            "validation": Loader(Split(30, 2), augmentation=None, shuffle=False, **loader),
            "teacher": self.teacher,
            "learning_rate": learning_rate_factor("cosine", epochs=epochs),
            "weight": lambda t: 0.5,
            "epochs": epochs,
            "checkpoint": tmp_path / "checkpoint.pt",
            "fingerprint": "f",
            **arguments,
        }

    def go(self, **changes) -> loop.Trained:
        return loop.train(self.network, self.loss, optimizer=self.optimizer, **(self.arguments | changes))


def weights(net: Network) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in net.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_it_learns_and_logs_every_step_and_epoch(tmp_path):
    trained = Run(tmp_path, epochs=4).go()
    assert len(trained.history) == 4
    assert trained.steps.shape == (16, 2)  # 50 images in batches of 16: four steps, the last of 2
    assert trained.history[-1]["validation_top1"] > 0.8
    assert trained.steps[0].tolist() == [0.05, 0.5]
    assert trained.steps[8, 0] == pytest.approx(0.025)
    assert trained.selected_epoch == 4


def test_the_total_is_cross_entropy_plus_beta_times_the_rest():
    terms = {"ce": torch.tensor(2.0), "a": torch.tensor(3.0), "b": torch.tensor(5.0)}
    assert loop._total(terms, 0.25).item() == 2.0 + 0.25 * 8.0
    assert loop._total({"ce": torch.tensor(2.0)}, 0.25).item() == 2.0


@pytest.mark.parametrize("count", [16, 10])
def test_one_step_is_the_step_written_out_by_hand(tmp_path, count):
    """One batch, one epoch, no augmentation: compare with plain torch. A short batch counts by its own size."""
    run = Run(tmp_path, epochs=1, count=count, weight=lambda t: 0.0)
    run.arguments["loader"] = plain = Loader(
        Split(count, 1), batch_size=16, device=CPU, augmentation=None, shuffle=False, num_classes=3
    )
    reference = copy.deepcopy(run.network).train()
    batch = next(iter(plain.epoch(0)))
    functional.cross_entropy(reference(batch.images).logits, batch.labels).backward()
    expected = [p.detach() - 0.05 * (p.grad + 5e-4 * p.detach()) for p in reference.parameters()]
    run.go()
    for got, wanted in zip(run.network.parameters(), expected, strict=True):
        torch.testing.assert_close(got.detach(), wanted)


class _Spy(Loss):
    """Notes modes at every step."""

    def __init__(self, student: Network, teacher: Network) -> None:
        super().__init__()
        self.networks = (student, teacher)
        self.seen: list[tuple[bool, bool, bool]] = []
        self.same_images: list[bool] = []

    def look(self, images: Tensor) -> None:
        self.images = images

    def forward(self, student: Output, teacher: Output, labels: Tensor, **unused: object) -> dict[str, Tensor]:
        modes = [network.classifier.training for network in self.networks]
        self.seen.append((*modes, teacher.logits.requires_grad))
        with torch.no_grad():
            self.same_images.append(torch.equal(teacher.logits, self.networks[1](self.images).logits))
        return {"ce": self.cross_entropy(student.logits, labels), "kd": student.logits.square().mean()}


def test_student_trains_and_teacher_never_does(tmp_path):
    """The student goes back to train mode after each validation; the teacher stays in eval mode, without gradient."""
    teacher = network(7)
    before = weights(teacher)
    run = Run(tmp_path, _Spy, teacher=teacher, epochs=3)
    run.go()
    assert run.loss.seen == [(True, False, False)] * 12
    assert all(run.loss.same_images), "the teacher answered for another augmentation than the student saw"
    assert same(before, weights(teacher)), "batch-norm statistics or weights of the teacher moved"
    assert all(p.grad is None for p in teacher.parameters())


def test_the_seed_decides_everything_and_something(tmp_path):
    """Same seed, same bits, whatever the process did before; another order of images, other bits."""
    results = []
    for i, seed in enumerate((3, 3, 4)):
        torch.manual_seed(1000 + i)
        run = Run(tmp_path / str(i), epochs=1)
        run.arguments["loader"].seed = seed
        run.go()
        results.append(weights(run.network))
    assert same(results[0], results[1])
    assert not same(results[0], results[2])


class _Keeper(Loss):
    def __init__(self, student: Network, teacher: Network) -> None:
        super().__init__()
        self.teacher = teacher

    def forward(self, student: Output, teacher: Output | None, labels: Tensor, **unused: object) -> dict[str, Tensor]:
        return {"ce": self.cross_entropy(student.logits, labels)}


def test_a_loss_that_swallows_the_teacher_is_refused(tmp_path):
    with pytest.raises(TypeError, match="_Keeper holds a network"):
        Run(tmp_path, _Keeper, teacher=network(7)).go()


def test_means_count_a_short_last_batch_by_its_size():
    meter = loop._Meter("x", 0, 2, CPU)
    meter.add(Shards((16,)), {"ce": torch.tensor(1.0)}, torch.tensor(8))
    meter.add(Shards((4,)), {"ce": torch.tensor(6.0)}, torch.tensor(2))
    assert meter.means() == {"train_ce": 2.0, "train_top1": 0.5}


@pytest.mark.parametrize("interrupted_after", [1, 2])
@pytest.mark.parametrize("extras", [{}, {"ema_decay": 0.9, "clip_norm": 1.0}, {"select": "best", "mixup": 0.4}])
def test_interrupted_and_resumed_is_the_same_to_the_bit(tmp_path, monkeypatch, interrupted_after, extras):
    teacher = network(7)
    extras = extras | {"weight": lambda t: 0.2 + 0.3 * t}  # a schedule that begins anew is another training
    whole = Run(tmp_path / "whole", KnowledgeDistillation, teacher=teacher, **extras)
    expected = whole.go()

    class Stop(Exception):
        pass

    saves = []

    def save_then_stop(path, content):
        real_save(path, content)
        saves.append(path)
        if len(saves) == interrupted_after:
            raise Stop

    real_save = loop.save_checkpoint
    monkeypatch.setattr(loop, "save_checkpoint", save_then_stop)
    with pytest.raises(Stop):
        Run(tmp_path / "cut", KnowledgeDistillation, teacher=teacher, **extras).go()
    torch.manual_seed(99)  # whatever the new process starts with
    resumed = Run(tmp_path / "cut", KnowledgeDistillation, teacher=teacher, **extras)
    got = resumed.go()
    assert len(saves) == 3
    assert same(weights(resumed.network), weights(whole.network))
    assert got.history == expected.history
    assert torch.equal(got.steps, expected.steps)
    assert got.selected_epoch == expected.selected_epoch


def test_the_moving_average_is_what_is_returned(tmp_path):
    run = Run(tmp_path, epochs=1, ema_decay=0.5)
    raw = Run(tmp_path / "raw", epochs=1)
    start = weights(run.network)
    kept: list[dict[str, Tensor]] = []
    raw_step = raw.optimizer.step
    raw.optimizer.step = lambda: (raw_step(), kept.append(weights(raw.network)))
    raw.go()
    run.go()
    name = "classifier.fc.weight" if "classifier.fc.weight" in start else next(k for k in start if k.endswith("weight"))
    expected = kept[0][name]  # torch's AveragedModel starts from the weights after the first step
    for later in kept[1:]:
        expected = 0.5 * expected + 0.5 * later[name]
    torch.testing.assert_close(run.network.state_dict()[name], expected)


def test_best_keeps_the_epoch_that_validation_likes_best(tmp_path, monkeypatch):
    scores = iter([(0.5, 1.0), (0.9, 1.0), (0.7, 1.0)])
    monkeypatch.setattr(loop, "validate", lambda *a, **k: next(scores))
    run = Run(tmp_path, select="best")
    at_epoch: list[dict[str, Tensor]] = []
    save = loop.save_checkpoint
    monkeypatch.setattr(loop, "save_checkpoint", lambda p, c: (save(p, c), at_epoch.append(weights(run.network))))
    trained = run.go()
    assert trained.selected_epoch == 2
    assert same(weights(run.network), at_epoch[1])


class _Poisoned(Loss):
    """Its term is not a number from the sixth step on."""

    def __init__(self, student: Network, teacher: Network | None) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, student: Output, teacher: Output | None, labels: Tensor, **unused: object) -> dict[str, Tensor]:
        self.calls += 1
        ce = self.cross_entropy(student.logits, labels)
        return {"ce": ce, "kd": ce * (math.nan if self.calls >= 6 else 1.0)}


@pytest.mark.parametrize("reads", [1, 50])
def test_a_loss_that_is_not_finite_stops_with_step_and_term_named(tmp_path, monkeypatch, reads):
    """Also where the device is read only now and then: the first bad step is the one that is named."""
    monkeypatch.setitem(loop.STEPS_BETWEEN_READS, "cpu", reads)
    run = Run(tmp_path, _Poisoned)
    with pytest.raises(GkdError, match=r"student resnet8: at epoch 2, step 2 of 4, kd, gradient_norm are not finite"):
        run.go()
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert saved["epoch"] == 1
    assert all(torch.isfinite(v).all() for v in saved["network"].values())


class Watched:
    """A loader after whose batches nothing may be read back, until the next is asked for."""

    def __init__(self, loader: Loader, watch) -> None:
        self._loader, self._watch = loader, watch
        self.batches = 0

    def __getattr__(self, name: str):
        return getattr(self._loader, name)

    def epoch(self, n: int):
        for batch in self._loader.epoch(n):
            self.batches += 1
            self._watch.watching = True
            yield batch
            self._watch.watching = False


@pytest.mark.parametrize(
    "extras", [{}, {"ema_decay": 0.9, "clip_norm": 1.0, "label_smoothing": 0.1, "mixup": 0.4, "autocast": True}]
)
def test_nothing_in_a_step_waits_for_the_device(tmp_path, monkeypatch, nothing_read_back, extras):
    """From one batch to the next: teacher, both passes, optimiser, averages, counting and progress.

    Terms are read every so many steps and when the epoch is over, validation's sums at its end.
    """
    monkeypatch.setitem(loop.STEPS_BETWEEN_READS, "cpu", 50)
    run = Run(tmp_path, KnowledgeDistillation, teacher=network(7), epochs=2, **extras)
    watch = nothing_read_back()
    watch.watching = False
    average = AveragedModel.update_parameters

    def host_counter(self, model):
        # It asks its own counter whether this is the first time, which is on the host wherever the network is.
        watch.watching = False
        average(self, model)
        watch.watching = True

    assert AveragedModel(nn.Linear(1, 1, device="meta")).n_averaged.device == CPU
    monkeypatch.setattr(AveragedModel, "update_parameters", host_counter)
    loaders = {name: Watched(run.arguments[name], watch) for name in ("loader", "validation")}
    with watch:
        run.go(**loaders)
    assert {name: watched.batches for name, watched in loaders.items()} == {"loader": 8, "validation": 4}


class _Reading(Loss):
    """Reads its own term at every step."""

    def __init__(self, student: Network, teacher: Network | None) -> None:
        super().__init__()

    def forward(self, student: Output, teacher: Output | None, labels: Tensor, **unused: object) -> dict[str, Tensor]:
        ce = self.cross_entropy(student.logits, labels)
        return {"ce": ce * (1.0 if ce.item() > 0 else 2.0)}


def test_the_watch_sees_a_loss_that_reads_and_a_loop_that_reads_each_step(tmp_path, monkeypatch, nothing_read_back):
    for loss_class, between in ((_Reading, 50), (CrossEntropy, 1)):
        monkeypatch.setitem(loop.STEPS_BETWEEN_READS, "cpu", between)
        run = Run(tmp_path / loss_class.__name__, loss_class, epochs=1)
        watch = nothing_read_back()
        watch.watching = False
        with watch, pytest.raises(AssertionError, match="waits for the device"):
            run.go(loader=Watched(run.arguments["loader"], watch))


def test_bf16_autocast_comes_near_float32(tmp_path):
    full = Run(tmp_path / "a", epochs=2).go().history[-1]["train_loss"]
    half = Run(tmp_path / "b", epochs=2, autocast=True).go().history[-1]["train_loss"]
    assert half == pytest.approx(full, rel=0.1)


class _Precise(Loss):
    """Asks for the cross-entropy of float64 logits a hair apart."""

    def __init__(self, student: Network, teacher: Network | None) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, student: Output, teacher: Output | None, labels: Tensor, **unused: object) -> dict[str, Tensor]:
        logits = torch.zeros(len(labels), 3, dtype=torch.float64)
        self.seen.append(self.cross_entropy(logits + torch.tensor([1e-12, 0.0, 0.0], dtype=torch.float64), labels))
        self.seen.append(self.cross_entropy(logits.bfloat16(), labels))
        return {"ce": self.cross_entropy(student.logits, labels)}


def test_cross_entropy_is_computed_in_at_least_float32(tmp_path):
    """float64 is kept: log 3 ± 1e-12 would be one number in float32."""
    run = Run(tmp_path, _Precise, epochs=1, count=8)
    labels = torch.from_numpy(Split(8, 1).labels)
    run.go()
    precise, half = run.loss.seen
    assert (precise.dtype, half.dtype) == (torch.float64, torch.float32)
    expected = math.log(3) + 1e-12 / 3 - 1e-12 * (labels == 0).double().mean().item()
    assert precise.item() == pytest.approx(expected, abs=1e-15)
    assert half.item() == pytest.approx(math.log(3), rel=1e-6)


def test_clipping_limits_the_step(tmp_path):
    run = Run(tmp_path, epochs=1, clip_norm=1e-9, lr=1.0)
    run.optimizer.param_groups[0]["weight_decay"] = 0.0
    before = weights(run.network)
    run.go()
    moved = [(run.network.state_dict()[k] - before[k]).abs().max() for k, _ in run.network.named_parameters()]
    assert max(moved) < 1e-7


class _Peer(Loss):
    """A second network that learns along, with gradients a thousand times the student's."""

    def __init__(self, student: Network, teacher: Network | None) -> None:
        super().__init__()
        self.peer = network(11)
        self.modes: list[tuple[bool, bool]] = []

    def look(self, images: Tensor) -> None:
        self.images = images

    def forward(self, student: Output, teacher: Output | None, labels: Tensor, **unused: object) -> dict[str, Tensor]:
        self.modes.append((self.training, self.peer.classifier.training))
        peers = self.cross_entropy(self.peer(self.images).logits, labels)
        return {"ce": self.cross_entropy(student.logits, labels) + 1000 * peers}

    def companions(self) -> dict[str, Network]:
        return {"peer2": self.peer}


def test_what_the_loss_trains_goes_back_to_train_mode_after_every_validation(tmp_path):
    run = Run(tmp_path, _Peer, epochs=3, count=16)
    run.go()
    assert run.loss.modes == [(True, True)] * 3


def test_a_companion_is_clipped_by_itself(tmp_path):
    """Peers are trainings side by side: the large gradient of one must not shorten the other's step."""
    run = Run(tmp_path, _Peer, epochs=1, count=16, clip_norm=1e-2, lr=1.0)
    for group in run.optimizer.param_groups:
        group["weight_decay"] = 0.0
    before = [[p.detach().clone() for p in net.parameters()] for net in (run.network, run.loss.peer)]
    row = run.go().history[0]
    for net, start in zip((run.network, run.loss.peer), before, strict=True):
        moved = torch.stack([(p.detach() - b).square().sum() for p, b in zip(net.parameters(), start, strict=True)])
        assert moved.sum().sqrt().item() == pytest.approx(1e-2, rel=1e-3)
    assert row["train_gradient_norm"] > 100  # before clipping, over both


def test_validation_by_hand():
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.zeros(1))

        def forward(self, images, topology):
            logits = torch.tensor([[0.0, math.log(3.0), 0.0]]).repeat(len(images), 1)
            return type("O", (), {"logits": logits})

    split = Split(4, 0)
    split.labels = np.array([1, 1, 0, 1])
    loader = Loader(split, batch_size=3, device=CPU, augmentation=None, shuffle=False, num_classes=3)
    top1, nll = loop.validate(Fixed(), loader)
    assert top1 == 0.75
    assert nll == pytest.approx((3 * math.log(5 / 3) + math.log(5)) / 4)
