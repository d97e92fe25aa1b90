"""The loop does what its formula says, leaves modes and gradients as they must be, and resumes to the bit."""

import copy
import dataclasses
import itertools
import math
import signal

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel

from gkd_core.config import TrainingConfig
from gkd_core.data.loader import Loader
from gkd_core.data.shards import Shards
from gkd_core.errors import GkdError
from gkd_core.losses.base import Loss
from gkd_core.losses.cross_entropy import CrossEntropy
from gkd_core.models.network import Network
from gkd_core.schemes import DistillationSpec
from gkd_core.training import trainer
from gkd_core.training.learner import Learner
from gkd_core.training.optimizer import create_optimizer
from gkd_core.training.result import Result
from gkd_core.training.trainer import StopTraining, Trainer, Training
from tests.unit.stripes import network, stripes, stripes_data

CPU = torch.device("cpu")
PHOTOS = {"auto": "rand", "color_jitter": 0.4, "erasing": 0.5, "mixup": 0.2, "cutmix": 1.0}


def run_of(work, loss=None, *, teacher=None, count=50, weight=lambda t: 0.5, mixup=0.0, network_=None, **config):
    """A trainer with its parts at hand; with a loss of its own, in place of the method's."""
    settings = {"epochs": 3, "batch_size": 16, "device": "cpu", "augment": {"mixup": mixup}, **config}
    training = Training(
        network("resnet8", 0) if network_ is None else network_,
        stripes_data(count, validation=30),
        TrainingConfig.model_validate(settings),
        DistillationSpec("ce" if teacher is None else "kd"),
        () if teacher is None else (teacher,),
        title="student",
    )
    run = Trainer(training, work)
    run.weight = weight
    if loss is not None:
        run.learner = Learner(run.network, loss)
        run.optimizer = create_optimizer(run.learner, name="sgd", learning_rate=run.config.learning_rate)
        run.peak_rates = [run.config.learning_rate] * len(run.optimizer.param_groups)
    return run


def weights(net: Network) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in net.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_it_learns_and_logs_every_step_and_epoch(tmp_path):
    result = run_of(tmp_path, epochs=4, count=100).run()
    assert len(result.history) == result.facts["epochs"] == 4
    assert result.steps.shape == (28, 2)  # 100 images in batches of 16: seven steps, the last of 4
    assert result.facts["validation_top1"] == result.history[-1]["validation_top1"] > 0.8
    assert result.steps[0].tolist() == [0.05, 0.5]
    assert result.steps[14, 0] == pytest.approx(0.025)
    assert result.facts["selected_epoch"] == 4
    assert result.checkpoint == tmp_path / "checkpoint.pt"


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_of(None, epochs=1).run().checkpoint is None
    assert not list(tmp_path.rglob("*"))


def test_the_total_is_cross_entropy_plus_beta_times_the_rest():
    terms = {"ce": torch.tensor(2.0), "a": torch.tensor(3.0), "b": torch.tensor(5.0)}
    assert trainer._total(terms, 0.25).item() == 2.0 + 0.25 * 8.0
    assert trainer._total({"ce": torch.tensor(2.0)}, 0.25).item() == 2.0


@pytest.mark.parametrize("count", [16, 10])
def test_one_step_is_the_step_written_out_by_hand(tmp_path, count):
    """One batch, one epoch, no augmentation: compare with plain torch. A short batch counts by its own size."""
    run = run_of(tmp_path, epochs=1, count=count)
    run.loader = Loader(stripes(count, 1), batch_size=16, device=CPU, augmentation=None, shuffle=False, num_classes=4)
    reference = copy.deepcopy(run.network).train()
    batch = next(iter(run.loader.epoch(0)))
    functional.cross_entropy(reference(batch.images).logits, batch.labels).backward()
    expected = [p.detach() - 0.05 * (p.grad + 5e-4 * p.detach()) for p in reference.parameters()]
    run.run()
    for got, wanted in zip(run.network.parameters(), expected, strict=True):
        torch.testing.assert_close(got.detach(), wanted)


class _Spy(Loss):
    """Notes modes at every step."""

    def __init__(self, student: Network, teacher: Network) -> None:
        super().__init__()
        object.__setattr__(self, "networks", (student, teacher))
        self.seen: list[tuple[bool, bool, bool]] = []

    def forward(self, student, teacher, labels, *, epoch=0.0, indices=None):
        modes = (net.classifier.training for net in self.networks)
        self.seen.append((*modes, teacher.logits.requires_grad))
        return {"ce": self.cross_entropy(student.logits, labels), "kd": student.logits.square().mean()}


def test_student_trains_and_teacher_never_does(tmp_path):
    """The student goes back to train mode after each validation; the teacher stays in eval mode, without gradient."""
    student, teacher = network("resnet8", 0), network("resnet8", 7)
    before = weights(teacher)
    spy = _Spy(student, teacher)
    run_of(tmp_path, spy, teacher=teacher, network_=student).run()
    assert spy.seen == [(True, False, False)] * 12
    assert same(before, weights(teacher)), "batch-norm statistics or weights of the teacher moved"
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize("augment", [{}, PHOTOS])
def test_the_teacher_answers_for_the_augmented_images_of_the_step(tmp_path, augment):
    teacher = network("resnet8", 7)
    run = run_of(tmp_path, teacher=teacher, epochs=1, augment=augment)
    asked, learner = [], run.learner.forward

    def watched(batch, labels, teacher_output, epoch):
        with torch.no_grad():
            asked.append(torch.equal(teacher_output.logits, teacher(batch.images).logits))
        return learner(batch, labels, teacher_output, epoch)

    run.learner.forward = watched
    run.run()
    assert asked == [True] * 4


def test_the_seed_decides_everything_and_something(tmp_path):
    """Same seed, same bits, whatever the process did before; another order of images, other bits."""
    results = []
    for i, seed in enumerate((3, 3, 4)):
        torch.manual_seed(1000 + i)
        results.append(weights(run_of(tmp_path / str(i), epochs=1, seed=seed).run().network))
    assert same(results[0], results[1])
    assert not same(results[0], results[2])


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_a_method_that_needs_plain_labels_refuses_what_mixes_them_by_name(name):
    spec, teachers = DistillationSpec("dkd"), (network("resnet8", 7),)
    config = TrainingConfig.model_validate({"epochs": 1, "device": "cpu", "augment": {name: 0.5}})
    with pytest.raises(
        GkdError, match=rf"method dkd needs plain labels, and train\.augment\.{name} mixes them: set it to 0"
    ):
        Trainer(Training(network("resnet8", 0), stripes_data(20), config, spec, teachers))


class _Keeper(CrossEntropy):
    def __init__(self, teacher: Network) -> None:
        super().__init__(None, None)
        self.teacher = teacher


def test_a_loss_that_swallows_a_network_is_refused():
    with pytest.raises(TypeError, match="_Keeper holds a network"):
        Learner(network("resnet8", 0), _Keeper(network("resnet8", 7)))


def test_means_count_a_short_last_batch_by_its_size():
    meter = trainer._Meter("x", 0, 2, CPU)
    meter.add(Shards((16,)), {"ce": torch.tensor(1.0)}, torch.tensor(8))
    meter.add(Shards((4,)), {"ce": torch.tensor(6.0)}, torch.tensor(2))
    assert meter.means() == {"train_ce": 2.0, "train_top1": 0.5}


@pytest.mark.parametrize(
    ("interrupted_after", "extras"),
    [
        (1, {}),
        (2, {"ema_decay": 0.9, "clip_norm": 1.0}),
        (1, {"select": "best", "mixup": 0.4}),
        (2, {"augment": PHOTOS}),
    ],
)
def test_interrupted_and_resumed_is_the_same_to_the_bit(tmp_path, monkeypatch, interrupted_after, extras):
    teacher = network("resnet8", 7)
    extras = extras | {"weight": lambda t: 0.2 + 0.3 * t}  # a schedule that begins anew is another training
    expected = run_of(tmp_path / "whole", teacher=teacher, **extras).run()

    class Stop(Exception):
        pass

    saves = []

    def save_then_stop(path, content):
        real_save(path, content)
        saves.append(path)
        if len(saves) == interrupted_after:
            raise Stop

    real_save = trainer.save_checkpoint
    monkeypatch.setattr(trainer, "save_checkpoint", save_then_stop)
    with pytest.raises(Stop):
        run_of(tmp_path / "cut", teacher=teacher, **extras).run()
    torch.manual_seed(99)  # whatever the new process starts with
    got = run_of(tmp_path / "cut", teacher=teacher, **extras).run()
    assert len(saves) == 3
    assert same(weights(got.network), weights(expected.network))
    assert got.history.rows == expected.history.rows
    assert torch.equal(got.steps, expected.steps)
    assert got.facts == expected.facts


class Cut(Exception):
    """The power went."""


def at_call(number: int, act):
    """A β(t) that does something at its n-th call, counted from 1: in the n-th step of the whole training."""
    calls = itertools.count(1)

    def weight(t: float) -> float:
        if next(calls) == number:
            act()
        return 0.2 + 0.3 * t

    return weight


def terminate() -> None:
    signal.raise_signal(signal.SIGTERM)


def end_by_power_cut() -> None:
    raise Cut


def goes_on_as_if_nothing_had_been(folder, expected, **settings) -> None:
    """Started again, all is as in `expected`."""
    torch.manual_seed(99)  # whatever the new process starts with
    got = run_of(folder, weight=lambda t: 0.2 + 0.3 * t, **settings).run()
    assert same(weights(got.network), weights(expected.network))
    assert got.history.rows == expected.history.rows
    assert torch.equal(got.steps, expected.steps)
    assert got.facts == expected.facts


LARGE = {"teacher": network("resnet8", 7), "ema_decay": 0.9, "clip_norm": 1.0, "select": "best"}


@pytest.fixture(scope="module")
def never_stopped(tmp_path_factory) -> Result:
    return run_of(tmp_path_factory.mktemp("whole"), weight=lambda t: 0.2 + 0.3 * t, **LARGE).run()


@pytest.mark.parametrize("step", [1, 4, 6, 12])  # of three epochs of four
def test_sigterm_in_any_step_keeps_that_step_and_resumes_to_the_bit(step, tmp_path, capsys, never_stopped):
    """Its own epoch's metrics too: they are sums over all of its steps."""
    before = signal.getsignal(signal.SIGTERM)
    cut = run_of(tmp_path, weight=at_call(step, terminate), **LARGE)
    with pytest.raises(SystemExit) as ended:
        cut.run()
    assert ended.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert len(cut.state.steps) == step
    epoch, within = divmod(step - 1, 4)
    assert f"SIGTERM: ends after step {within + 1} of epoch {epoch + 1}, which is in the checkpoint" in (
        capsys.readouterr().err
    )
    goes_on_as_if_nothing_had_been(tmp_path, never_stopped, **LARGE)


@pytest.mark.parametrize("extras", [{"mixup": 0.4}, {"augment": PHOTOS}])
def test_what_is_drawn_at_random_goes_on_within_the_epoch(extras, tmp_path):
    settings = {"teacher": network("resnet8", 7), **extras}
    expected = run_of(tmp_path / "whole", weight=lambda t: 0.2 + 0.3 * t, **settings).run()
    with pytest.raises(SystemExit):
        run_of(tmp_path / "cut", weight=at_call(6, terminate), **settings).run()
    goes_on_as_if_nothing_had_been(tmp_path / "cut", expected, **settings)


@pytest.fixture
def ctrl_c():
    """What a terminal's Ctrl-C does; a suite that a shell started in the background would have it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda: signal.raise_signal(signal.SIGINT)
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_while_the_epoch_is_validated_keeps_all_of_its_steps(tmp_path, monkeypatch, ctrl_c):
    def in_small_batches(folder) -> Trainer:
        run = run_of(folder, **LARGE)
        run.validation = Loader(stripes(30, 2), batch_size=8, device=CPU, shuffle=False, num_classes=4)
        return run

    def interrupted(*given, **named):
        if len(cut.state.steps) == 8:
            ctrl_c()
        return evaluate(*given, **named)

    expected, cut, evaluate = in_small_batches(tmp_path / "whole").run(), in_small_batches(tmp_path), trainer.validate
    monkeypatch.setattr(trainer, "validate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cut.run()
    assert (cut.state.epoch, len(cut.state.meter["sizes"]), len(cut.state.history)) == (1, 4, 1)
    monkeypatch.undo()
    got = in_small_batches(tmp_path).run()
    assert same(weights(got.network), weights(expected.network))
    assert got.history.rows == expected.history.rows


@pytest.mark.parametrize("step", [3, 6])
def test_a_power_cut_within_a_long_epoch_costs_no_more_than_the_time_between_two_checkpoints(
    step, tmp_path, monkeypatch, never_stopped
):
    monkeypatch.setattr(trainer, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)  # all of them have passed at every step
    with pytest.raises(Cut):
        run_of(tmp_path, weight=at_call(step, end_by_power_cut), **LARGE).run()
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert len(saved["steps"]) == step - 1
    goes_on_as_if_nothing_had_been(tmp_path, never_stopped, **LARGE)


def test_between_two_checkpoints_nothing_is_written_within_an_epoch(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(trainer, "save_checkpoint", lambda path, content: saved.append(content))
    run_of(tmp_path).run()
    assert [content["epoch"] for content in saved] == [1, 2, 3]
    assert all(content["meter"] is None for content in saved)


def test_a_signal_after_the_last_step_is_not_lost(tmp_path, monkeypatch):
    """Nor is the training: started again there is nothing to do."""
    run, keep = run_of(tmp_path), trainer.save_checkpoint
    monkeypatch.setattr(trainer, "save_checkpoint", lambda p, c: (keep(p, c), c["epoch"] == 3 and terminate()))
    with pytest.raises(SystemExit):
        run.run()
    monkeypatch.undo()
    again = run_of(tmp_path, weight=at_call(1, end_by_power_cut)).run()
    assert same(weights(again.network), weights(run.network))


def test_without_a_checkpoint_a_signal_ends_it_in_the_middle_of_the_step(ctrl_c):
    run = run_of(None, weight=at_call(2, ctrl_c))
    with pytest.raises(KeyboardInterrupt):
        run.run()
    assert len(run.state.steps) == 1


def test_a_step_that_came_to_nan_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setitem(trainer.STEPS_BETWEEN_READS, "cpu", 50)
    with pytest.raises(GkdError, match="at epoch 2, step 2 of 4"):
        run_of(tmp_path, _Poisoned(None, None), weight=at_call(6, terminate)).run()
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["meter"] is None


def test_a_checkpoint_of_before_they_were_written_within_an_epoch_is_read(tmp_path, never_stopped):
    run = run_of(tmp_path, weight=at_call(5, end_by_power_cut), **LARGE)
    with pytest.raises(Cut):
        run.run()
    content = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    del content["meter"]
    torch.save(content, tmp_path / "checkpoint.pt")
    goes_on_as_if_nothing_had_been(tmp_path, never_stopped, **LARGE)


def test_a_finished_training_read_from_its_checkpoint_is_the_same(tmp_path):
    first, again = (run_of(tmp_path, select="best").run() for _ in range(2))
    assert same(weights(first.network), weights(again.network))
    assert first.history.rows == again.history.rows


def test_the_moving_average_is_what_is_returned(tmp_path):
    run, raw = run_of(tmp_path, epochs=1, ema_decay=0.5), run_of(tmp_path / "raw", epochs=1)
    start = weights(run.network)
    after: list[dict[str, Tensor]] = []
    raw_step = raw.optimizer.step
    raw.optimizer.step = lambda: (raw_step(), after.append(weights(raw.network)))
    raw.run()
    run.run()
    name = next(k for k in start if k.endswith("weight"))
    expected = after[0][name]  # torch's AveragedModel starts from the weights after the first step
    for later in after[1:]:
        expected = 0.5 * expected + 0.5 * later[name]
    torch.testing.assert_close(run.network.state_dict()[name], expected)


def test_best_keeps_the_epoch_that_validation_likes_best(tmp_path, monkeypatch):
    scores = iter([(0.5, 1.0), (0.9, 1.0), (0.7, 1.0)])
    monkeypatch.setattr(trainer, "validate", lambda *a, **k: next(scores))
    run = run_of(tmp_path, select="best")
    at_epoch: list[dict[str, Tensor]] = []
    save = trainer.save_checkpoint
    monkeypatch.setattr(trainer, "save_checkpoint", lambda p, c: (save(p, c), at_epoch.append(weights(run.network))))
    result = run.run()
    assert result.facts["selected_epoch"] == 2
    assert same(weights(run.network), at_epoch[1])


class _Poisoned(CrossEntropy):
    """Its term is NaN from the sixth step on."""

    calls = 0

    def forward(self, student, teacher, labels, *, epoch=0.0, indices=None):
        self.calls += 1
        ce = self.cross_entropy(student.logits, labels)
        return {"ce": ce, "kd": ce * (math.nan if self.calls >= 6 else 1.0)}


@pytest.mark.parametrize("reads", [1, 50])
def test_a_loss_that_is_nan_stops_with_step_and_term_named(tmp_path, monkeypatch, reads):
    """Also where the device is read only now and then: the first bad step is the one that is named."""
    monkeypatch.setitem(trainer.STEPS_BETWEEN_READS, "cpu", reads)
    run = run_of(tmp_path, _Poisoned(None, None))
    with pytest.raises(GkdError, match=r"student resnet8: at epoch 2, step 2 of 4, kd, gradient_norm are NaN or inf"):
        run.run()
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert saved["epoch"] == 1
    assert all(torch.isfinite(v).all() for v in saved["learner"].values())


class Watched:
    """A loader after whose batches nothing may be read back, until the next is asked for."""

    def __init__(self, loader: Loader, watch) -> None:
        self._loader, self._watch = loader, watch
        self.batches = 0

    def __getattr__(self, name: str):
        return getattr(self._loader, name)

    def epoch(self, n: int, start: int = 0):
        for batch in self._loader.epoch(n, start):
            self.batches += 1
            self._watch.watching = True
            yield batch
            self._watch.watching = False


@pytest.mark.parametrize(
    "extras", [{}, {"ema_decay": 0.9, "clip_norm": 1.0, "label_smoothing": 0.1, "mixup": 0.4, "precision": "bf16"}]
)
def test_nothing_in_a_step_waits_for_the_device(tmp_path, monkeypatch, nothing_read_back, extras):
    """From one batch to the next: teacher, both passes, optimiser, averages, counting and progress.

    Terms are read every so many steps and when the epoch is over, validation's sums at its end.
    """
    monkeypatch.setitem(trainer.STEPS_BETWEEN_READS, "cpu", 50)
    run = run_of(tmp_path, teacher=network("resnet8", 7), epochs=2, **extras)
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
    run.loader, run.validation = Watched(run.loader, watch), Watched(run.validation, watch)
    with watch:
        run.run()
    assert (run.loader.batches, run.validation.batches) == (8, 4 if run.validation.batch_size < 30 else 2)


class _Reading(CrossEntropy):
    """Reads its own term at every step."""

    def forward(self, student, teacher, labels, *, epoch=0.0, indices=None):
        ce = self.cross_entropy(student.logits, labels)
        return {"ce": ce * (1.0 if ce.item() > 0 else 2.0)}


def test_the_watch_sees_a_loss_that_reads_and_a_loop_that_reads_each_step(tmp_path, monkeypatch, nothing_read_back):
    for loss_class, between in ((_Reading, 50), (CrossEntropy, 1)):
        monkeypatch.setitem(trainer.STEPS_BETWEEN_READS, "cpu", between)
        run = run_of(tmp_path / loss_class.__name__, loss_class(None, None), epochs=1)
        watch = nothing_read_back()
        watch.watching = False
        run.loader = Watched(run.loader, watch)
        with watch, pytest.raises(AssertionError, match="waits for the device"):
            run.run()


def test_bf16_autocast_comes_near_float32(tmp_path):
    full = run_of(tmp_path / "a", epochs=2).run().history[-1]["train_loss"]
    half = run_of(tmp_path / "b", epochs=2, precision="bf16").run().history[-1]["train_loss"]
    assert half == pytest.approx(full, rel=0.1)


def test_clipping_limits_the_step(tmp_path):
    run = run_of(tmp_path, epochs=1, clip_norm=1e-9, learning_rate=1.0, weight_decay=0.0)
    before = weights(run.network)
    run.run()
    moved = [(run.network.state_dict()[k] - before[k]).abs().max() for k, _ in run.network.named_parameters()]
    assert max(moved) < 1e-7


class _WithPeer(Learner):
    """A second network that learns along, with gradients a thousand times the student's."""

    def __init__(self, student: Network) -> None:
        super().__init__(student, CrossEntropy(None, None))
        self.peer = network("resnet8", 11)
        self.modes: list[tuple[bool, bool]] = []

    def forward(self, batch, labels, teacher_output, epoch):
        self.modes.append((self.training, self.peer.classifier.training))
        ours, peers = (self.loss.cross_entropy(net(batch.images).logits, labels) for net in (self.network, self.peer))
        return {"ce": ours + 1000 * peers}, torch.zeros(len(labels), 4)

    def networks(self) -> dict[str, Network]:
        return {"": self.network, "peer2": self.peer}


def test_a_network_trained_beside_goes_back_to_train_mode_and_is_clipped_by_itself(tmp_path):
    """Peers are trainings side by side: the large gradient of one must not shorten the other's step."""
    run = run_of(tmp_path, epochs=1, count=16, clip_norm=1e-2, learning_rate=1.0)
    run.learner = _WithPeer(run.network)
    run.optimizer = create_optimizer(run.learner, name="sgd", learning_rate=1.0)
    run.peak_rates = [1.0, 1.0]
    before = [[p.detach().clone() for p in net.parameters()] for net in (run.network, run.learner.peer)]
    row = run.run().history[0]
    assert run.learner.modes == [(True, True)]
    for net, start in zip((run.network, run.learner.peer), before, strict=True):
        moved = torch.stack([(p.detach() - b).square().sum() for p, b in zip(net.parameters(), start, strict=True)])
        assert moved.sum().sqrt().item() == pytest.approx(1e-2, rel=1e-3)
    assert row["train_gradient_norm"] > 100  # before clipping, over both
    assert {"validation_top1", "validation_top1_peer2"} <= set(row)


def test_validation_by_hand():
    class Fixed(nn.Module):
        def forward(self, images, topology):
            logits = torch.tensor([[0.0, math.log(3.0), 0.0]]).repeat(len(images), 1)
            return type("O", (), {"logits": logits})

    split = dataclasses.replace(stripes(4, 0), labels=np.array([1, 1, 0, 1]))
    loader = Loader(split, batch_size=3, device=CPU, augmentation=None, shuffle=False, num_classes=4)
    top1, nll = trainer.validate(Fixed(), loader)
    assert top1 == 0.75
    assert nll == pytest.approx((3 * math.log(5 / 3) + math.log(5)) / 4)


def test_a_result_shows_its_history_and_fills_a_folder(tmp_path):
    result = run_of(None, epochs=2).run()
    assert isinstance(result, Result)
    assert [row["epoch"] for row in result.history] == [1, 2]
    assert "validation_top1" in repr(result.history)
    axes = result.history.plot().axes
    assert [line.get_label() for line in axes[1].get_lines()] == ["train_top1", "validation_top1"]
    result.save(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {
        "model.safetensors", "model.json", "history.csv", "steps.csv", "training.json", "run.json"
    }  # fmt: skip


class TestWhoIsToldOfEveryEpoch:
    """`on_epoch`, by which a search stops what is not worth its time."""

    def training(self, on_epoch):
        data = stripes_data(50, validation=30)
        config = TrainingConfig.model_validate({"epochs": 3, "batch_size": 16, "device": "cpu"})
        return Training(network("resnet8", 0), data, config, on_epoch=on_epoch)

    def test_hears_the_rows_of_the_history_and_how_many_there_will_be(self):
        told = []
        result = self.training(lambda row, epochs: told.append((row, epochs))).run()
        assert told == [(row, 3) for row in result.history]

    def test_hears_the_same_of_a_training_that_goes_on(self, tmp_path):
        def twice(row, epochs):
            if row["epoch"] == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            self.training(twice).run(tmp_path)
        told = []
        result = self.training(lambda row, epochs: told.append(row)).run(tmp_path)
        assert told == list(result.history)
        assert told == list(self.training(None).run().history)

    def test_ends_it_for_good(self, tmp_path):
        told = []

        def enough(row, epochs):
            told.append(row["epoch"])
            raise StopTraining

        with pytest.raises(StopTraining), trainer.removed_when_stopped(tmp_path):
            self.training(enough).run(tmp_path)
        assert told == [1]
        assert not tmp_path.exists()
