"""What holds for every method of the registry, in a loop of one's own over networks of one's own.

A new method joins by being in METHODS; nothing is to be added here.
"""

import copy
import inspect

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import mobilenet_v3_small, resnet18

import gkd_core as gkd
from gkd_core import losses
from gkd_core.data import shards
from gkd_core.errors import GkdError
from gkd_core.losses.base import Loss
from gkd_core.methods import (
    METHODS,
    RUN_FACTS,
    check_hyperparameters,
    create_loss,
    hyperparameters,
)
from gkd_core.models.classifier import Output
from gkd_core.models.network import Network

TAUGHT = [name for name, method in METHODS.items() if method.teacher]
CLASSES = 4
TRAIN_LABELS = torch.arange(40) % CLASSES
FACTS = {"seed": 0, "epochs": 2, "train_labels": TRAIN_LABELS}
INDICES = torch.tensor([3, 17, 4, 25, 32, 39])

# Choices that lead through other code than the defaults. `exact` transport is computed on the host: left out.
VARIANTS = [
    *((name, {}) for name in METHODS),
    ("dynamickd", {"per_sample": True}),
    ("cmkd", {"direction": "hard_by_value"}),
    ("crd", {"mode": "relaxed"}),
    ("crd", {"shared_negatives": True, "negatives": 20}),
    ("gompertz", {"preset": "paper"}),
    ("gompertz", {"solver": "sliced"}),
    ("gompertz", {"solver": "quantile"}),
]
every_variant = pytest.mark.parametrize(
    ("name", "options"), VARIANTS, ids=[" ".join([n, *(f"{k}={v}" for k, v in o.items())]) for n, o in VARIANTS]
)


class Own(nn.Module):
    """A module that knows nothing of this project but the form of its output; see `StagedNetwork`."""

    name = "own"
    num_classes = CLASSES

    def __init__(self, channels: int, *, stages: bool = True, pooled: bool = True, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.shallow = nn.Sequential(
            nn.Conv2d(1, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()
        )
        self.deep = nn.Sequential(nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1), nn.ReLU())
        self.linear = nn.Linear(2 * channels, CLASSES)
        self.stages, self.pooled = stages, pooled

    def forward(self, images: Tensor) -> Output:
        shallow = self.shallow(images)
        deep = self.deep(shallow)
        return Output(self.head(deep), (shallow, deep) if self.stages else (), deep.mean((2, 3)))

    def head(self, last_stage: Tensor) -> Tensor:
        return self.linear(last_stage.mean((2, 3)))

    def stage_shapes(self) -> tuple[tuple[int, int, int], ...]:
        channels = self.linear.in_features
        return ((channels // 2, 8, 8), (channels, 4, 4)) if self.stages else ()

    def embedding_size(self) -> int:
        return self.linear.in_features

    def pooled_linear_weight(self) -> tuple[Tensor, Tensor | None] | None:
        return (self.linear.weight, self.linear.bias) if self.pooled else None


class Given:
    """Two networks, a loss, and a batch of images with labels and places in the training split."""

    def __init__(self, name: str, options: dict, **networks: bool) -> None:
        self.student = Own(4, seed=1, **networks)
        self.teacher = Own(6, seed=2, **{"pooled": False} | networks).eval().requires_grad_(False)
        teacher = self.teacher if METHODS[name].teacher else None
        self.loss = create_loss(name, self.student, teacher, options, **FACTS)
        self.images = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(3))
        self.labels = TRAIN_LABELS[INDICES]

    def outputs(self) -> tuple[Output, Output]:
        with torch.no_grad():
            taught = self.teacher(self.images)
        return self.student(self.images), taught

    def terms(self, labels: Tensor | None = None) -> dict[str, Tensor]:
        labels = self.labels if labels is None else labels
        return self.loss(*self.outputs(), labels, epoch=0.5, indices=INDICES)


def state(module: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


@every_variant
def test_two_steps_in_a_loop_of_ones_own(name, options):
    given = Given(name, options)
    before = {module: state(module) for module in (given.student, given.teacher, given.loss)}
    groups = [{"params": list(given.student.parameters())}, *given.loss.parameter_groups()]
    optimizer = torch.optim.SGD(groups, lr=0.01, momentum=0.9)
    for _ in range(2):
        terms = given.terms()
        assert "ce" in terms
        assert all(term.shape == () and term.isfinite() for term in terms.values())
        assert (set(terms) == {"ce"}) == (name == "ce")
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()
    assert not any(torch.equal(p, before[given.student][key]) for key, p in given.student.named_parameters())
    trained = list(given.loss.parameters())
    assert sum(p.grad.abs().sum() for p in trained) > 0 or not trained
    assert all(torch.equal(value, before[given.teacher][key]) for key, value in given.teacher.state_dict().items())
    assert not any(module.training for module in given.teacher.modules())
    assert not {given.student, given.teacher} & set(given.loss.modules()), "a loss holds no network"


@pytest.fixture(scope="module")
def torchvision_networks() -> tuple[Network, Network]:
    """Two networks of torchvision by the names of their layers, as a notebook has them."""
    classes = [str(i) for i in range(CLASSES)]
    torch.manual_seed(0)
    student = mobilenet_v3_small(num_classes=CLASSES)
    student = gkd.wrap(student, ["features.3", "features.12"], "classifier.3", classes=classes, image_size=64)
    teacher = gkd.wrap(resnet18(num_classes=CLASSES), ["layer2", "layer4"], "fc", classes=classes, image_size=64)
    return student, teacher.eval().requires_grad_(False)


@pytest.mark.parametrize("name", METHODS)
def test_two_steps_over_two_networks_of_torchvision(name, torchvision_networks):
    student, teacher = torchvision_networks
    loss = create_loss(name, student, teacher if METHODS[name].teacher else None, {}, **FACTS)
    groups = [{"params": list(student.parameters())}, *loss.parameter_groups()]
    optimizer = torch.optim.SGD(groups, lr=1e-3)
    images, labels = torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(3)), TRAIN_LABELS[INDICES]
    for step in range(2):
        with torch.no_grad():
            taught = teacher(images)
        terms = loss(student(images), taught, labels, epoch=step / 2, indices=INDICES)
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()
        assert all(term.isfinite() for term in terms.values())


@every_variant
class TestOneStep:
    def test_the_student_learns_from_every_term(self, name, options):
        given = Given(name, options)
        for term, value in given.terms().items():
            gradients = torch.autograd.grad(
                value, list(given.student.parameters()), retain_graph=True, allow_unused=True
            )
            assert sum(g.abs().sum() for g in gradients if g is not None) > 0, term

    def test_no_gradient_into_the_teacher(self, name, options):
        given = Given(name, options)
        given.teacher.requires_grad_(True)
        student, teacher = given.student(given.images), given.teacher(given.images)
        for output in (teacher.logits, teacher.embedding, *teacher.stages):
            output.retain_grad()
        sum(given.loss(student, teacher, given.labels, epoch=0.5, indices=INDICES).values()).backward()
        assert all(output.grad is None for output in (teacher.logits, teacher.embedding, *teacher.stages))
        assert all(p.grad is None for p in given.teacher.parameters())

    def test_nothing_is_read_from_the_device(self, name, options, nothing_read_back):
        """A number read every step makes an accelerator wait: the classic slow loop."""
        given = Given(name, options)
        with nothing_read_back():
            sum(given.terms().values()).backward()

    def test_two_instances_share_no_state(self, name, options):
        """Counters and hooks on the class are shared by all: the second instance must start where the first did."""
        first, second = Given(name, options), Given(name, options)
        classes = {cls for module in first.loss.modules() for cls in type(module).__mro__}
        classes = {cls for cls in classes if cls.__module__.startswith("gkd_core")}
        assert {type(first.loss), Loss} <= classes
        before = {cls: kept_by(cls) for cls in classes}
        results = []
        for given in (first, first, second):
            torch.manual_seed(0)
            results.append({key: value.item() for key, value in given.terms().items()})
        assert results[2] == results[0]
        for cls in classes:
            assert same_content(kept_by(cls), before[cls]), f"{cls.__name__} keeps something that all instances share"

    def test_labels_may_be_probabilities_unless_the_method_needs_integers(self, name, options):
        whole = functional.one_hot(TRAIN_LABELS[INDICES], CLASSES).float()
        if METHODS[name].load().hard_labels:
            with pytest.raises(ValueError, match="integer labels"):
                Given(name, options).terms(whole)
            return
        torch.manual_seed(0)
        expected = Given(name, options).terms()
        torch.manual_seed(0)
        got = Given(name, options).terms(whole)
        for key, value in expected.items():
            torch.testing.assert_close(got[key], value, rtol=1e-5, atol=1e-6)

    def test_label_smoothing_is_that_of_whoever_trains(self, name, options):
        """It reaches the cross-entropy, and nothing else."""
        plain, smoothed = Given(name, options), Given(name, options)
        smoothed.loss.label_smoothing = 0.4
        torch.manual_seed(0)
        expected = plain.terms()
        torch.manual_seed(0)
        got = smoothed.terms()
        assert not torch.allclose(got.pop("ce"), expected.pop("ce"))
        assert {key: value.item() for key, value in got.items()} == {k: v.item() for k, v in expected.items()}


def test_cross_entropy_with_smoothing_by_hand():
    loss = losses.CrossEntropy()
    loss.label_smoothing = 0.2
    logits = torch.tensor([[3.0, 1.0]]).log().bfloat16().float()
    # The target (1, 0) becomes (.9, .1).
    expected = -(0.9 * logits.log_softmax(1)[0, 0] + 0.1 * logits.log_softmax(1)[0, 1])
    assert loss.cross_entropy(logits, torch.tensor([0])).item() == pytest.approx(expected.item(), rel=1e-6)
    assert loss.cross_entropy(logits.bfloat16(), torch.tensor([0])).dtype == torch.float32
    assert loss.cross_entropy(logits.double(), torch.tensor([0])).dtype == torch.float64


def kept_by(cls: type) -> dict:
    """A copy of the data in a class's own attributes: what changes later, within a list or a tensor too, shows."""
    return {
        name: copy.deepcopy(value)
        for name, value in vars(cls).items()
        if not (
            name.startswith(("__", "_abc_"))  # Python's own; the second is how abstract classes remember subclasses
            or callable(value)
            or isinstance(value, property | staticmethod | classmethod)
        )
    }


def same_content(first: object, second: object) -> bool:
    """Equality in depth, where tensors are compared by their elements."""
    if type(first) is not type(second):
        return False
    match first:
        case Tensor():
            return torch.equal(first, second)
        case dict():
            return first.keys() == second.keys() and all(same_content(first[k], second[k]) for k in first)
        case list() | tuple():
            return len(first) == len(second) and all(map(same_content, first, second))
    return bool(first == second)


def test_state_in_a_class_is_noticed_however_deep():
    class Counting:
        calls: tuple[dict, ...] = ({"seen": [1], "sum": torch.zeros(2)},)

    before = kept_by(Counting)
    assert same_content(kept_by(Counting), before)
    Counting.calls[0]["seen"].append(2)
    assert not same_content(kept_by(Counting), before)
    Counting.calls[0]["seen"].pop()
    Counting.calls[0]["sum"] += 1
    assert not same_content(kept_by(Counting), before)


LOGITS_ONLY = [name for name, method in METHODS.items() if method.reads == "logits"]


@pytest.mark.parametrize("name", LOGITS_ONLY)
def test_a_method_that_needs_logits_looks_at_nothing_else(name):
    """Its terms and its gradient are the same bits whether or not there are stages and an embedding."""
    results = []
    for strip in (False, True):
        given = Given(name, {})
        outputs = given.outputs()
        if strip:
            outputs = [Output(z, (), z.new_empty(len(z), 0)) for z, _, _ in outputs]
        terms = given.loss(*outputs, given.labels, epoch=0.5, indices=INDICES)
        gradient = torch.autograd.grad(sum(terms.values()), outputs[0].logits)[0]
        results.append(({key: value.item() for key, value in terms.items()}, gradient))
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("name", METHODS)
def test_a_network_without_feature_maps_is_taken_by_all_that_need_none(name):
    """As a vision transformer is: an embedding and no stages. Who compares feature maps says so by name."""
    assert METHODS[name].load().feature_maps == (METHODS[name].reads == "feature maps")
    if METHODS[name].reads == "feature maps":
        with pytest.raises(GkdError, match=rf"{name} compares feature maps, and the student own has none"):
            Given(name, {}, stages=False)
        return
    given = Given(name, {}, stages=False)
    sum(given.terms().values()).backward()
    assert given.student.linear.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("name", TAUGHT)
def test_a_method_that_learns_from_a_teacher_refuses_to_do_without(name):
    """The network at construction, its output at every step."""
    with pytest.raises(GkdError, match=rf"{name} learns from a teacher"):
        create_loss(name, Own(4), None, {}, **FACTS)
    given = Given(name, {})
    with pytest.raises(GkdError, match=rf"{name} learns from a teacher"):
        given.loss(given.student(given.images), None, given.labels, indices=INDICES)


class Shared(shards.Shards):
    """Two processes, the second with copies of two of the first one's rows, seen from the first."""

    def gather(self, rows: Tensor) -> Tensor:
        return torch.cat([rows, rows[:2]])

    def mean(self, value: Tensor) -> Tensor:
        return value.detach() / 2


@pytest.mark.parametrize("name", ["dist", "rkd", "gompertz"])
def test_what_looks_across_samples_asks_the_other_processes(name):
    """Who shares the batch is known around the call: no argument of the loss."""
    given = Given(name, {})
    alone = given.terms()
    with shards.sharing(Shared((6, 2))):
        shared = given.terms()
    assert shared["ce"].item() == alone["ce"].item()
    assert any(shared[key].item() != pytest.approx(alone[key].item(), rel=1e-3) for key in alone)


@pytest.mark.parametrize("name", METHODS)
class TestEntry:
    def test_the_defaults_are_within_their_own_limits(self, name):
        defaults = {key: parameter.default for key, parameter in hyperparameters(name).items()}
        assert inspect.Parameter.empty not in defaults.values()
        assert check_hyperparameters(name, defaults) == defaults

    def test_facts_of_the_training_are_no_hyperparameters(self, name):
        assert not set(hyperparameters(name)) & set(RUN_FACTS)

    def test_every_keyword_is_documented(self, name):
        loss_class = METHODS[name].load()
        keywords = [p.name for p in inspect.signature(loss_class).parameters.values() if p.kind is p.KEYWORD_ONLY]
        assert [key for key in keywords if key not in inspect.getdoc(loss_class)] == []

    def test_a_reconstruction_says_so(self, name):
        text = inspect.getdoc(METHODS[name].load())
        assert METHODS[name].published or ("reconstruction" in text and "ssumed" in text)

    def test_its_loss_is_public(self, name):
        loss_class = METHODS[name].load()
        assert getattr(losses, loss_class.__name__) is loss_class


def test_every_public_name_is_there():
    assert set(dir(losses)) == set(losses.__all__)
    assert all(getattr(losses, name).__name__ == name for name in losses.__all__)
    with pytest.raises(AttributeError, match="nonsense"):
        losses.nonsense  # noqa: B018
