"""What holds for every method of the registry, in a loop of one's own over networks of one's own.

A new method joins by being in METHODS; nothing is to be added here.
"""

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
    ("gompertz", {"solver": "quantile", "stages": "all", "soft_labels": "standardised"}),
    ("gompertz", {"stages": [1], "soft_labels": "decoupled"}),
    ("gompertz", {"soft_labels": "dist"}),
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

    def last_stage_shape(self) -> tuple[int, ...]:
        return self.stage_shapes()[-1] if self.stages else ()

    def embedding_size(self) -> int:
        return self.linear.in_features

    def pooled_linear_weight(self) -> tuple[Tensor, Tensor | None] | None:
        return (self.linear.weight, self.linear.bias) if self.pooled else None


class Given:
    """Two networks, a loss, and a batch of images with labels and places in the training split."""

    def __init__(self, name: str, options: dict, **networks: bool) -> None:
        self.student = Own(4, seed=1, **networks)
        self.teacher = Own(6, seed=2, **{"pooled": False} | networks).eval().requires_grad_(False)
        self.loss = self.create(name, options)
        self.images = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(3))
        self.labels = TRAIN_LABELS[INDICES]

    def create(self, name: str, options: dict, **facts: int) -> Loss:
        return create_loss(
            name, self.student, self.teacher if METHODS[name].teacher else None, options, **FACTS | facts
        )

    def outputs(self) -> tuple[Output, Output]:
        with torch.no_grad():
            taught = self.teacher(self.images)
        return self.student(self.images), taught

    def terms(self, labels: Tensor | None = None) -> dict[str, Tensor]:
        labels = self.labels if labels is None else labels
        return self.loss(*self.outputs(), labels, epoch=0.5, indices=INDICES)


def numbers(terms: dict[str, Tensor]) -> dict[str, float]:
    return {name: term.item() for name, term in terms.items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def in_type(output: Output, dtype: torch.dtype) -> Output:
    stages = tuple(stage.to(dtype) for stage in output.stages)
    return output._replace(logits=output.logits.to(dtype), stages=stages, embedding=output.embedding.to(dtype))


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
        """A counter on the class is shared by all: the second instance must start where the first did."""
        first, second = Given(name, options), Given(name, options)
        results = []
        for given in (first, first, second):
            torch.manual_seed(0)
            results.append(numbers(given.terms()))
        assert results[2] == results[0]

    def test_what_it_trains_comes_from_its_seed_alone(self, name, options):
        given = Given(name, options)
        before = torch.get_rng_state()
        again, other = (given.create(name, options, seed=seed).state_dict() for seed in (0, 1))
        assert torch.equal(torch.get_rng_state(), before)
        assert same(again, given.loss.state_dict())
        seeded = "seed" in inspect.signature(METHODS[name].load()).parameters
        assert not again or same(again, other) != seeded

    def test_a_checkpoint_holds_all_that_it_remembers(self, name, options, tmp_path):
        """Nothing but the state dict and the generator is kept: a resumed run must not start from a fresh memory."""
        given = Given(name, options)
        sum(given.terms().values()).backward()
        if groups := given.loss.parameter_groups():
            torch.optim.SGD(groups, lr=0.1).step()
        torch.save(given.loss.state_dict(), tmp_path / "loss.pt")
        fresh = given.create(name, options)
        for value in fresh.state_dict().values():
            value.zero_()
        fresh.load_state_dict(torch.load(tmp_path / "loss.pt", weights_only=True))
        results = []
        for loss in (given.loss, fresh):
            torch.manual_seed(0)
            results.append(numbers(loss(*given.outputs(), given.labels, epoch=0.5, indices=INDICES)))
        assert results[0] == results[1]
        assert same(fresh.state_dict(), given.loss.state_dict())

    def test_half_types_are_computed_in_float32(self, name, options):
        given, results = Given(name, options), []
        student, teacher = given.outputs()
        for dtype in (torch.float32, torch.bfloat16):
            halves = [in_type(output, dtype) for output in (student, teacher)]
            torch.manual_seed(0)
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                terms = given.create(name, options)(*halves, given.labels, epoch=0.5, indices=INDICES)
            assert {term.dtype for term in terms.values()} == {torch.float32}
            results.append(numbers(terms))
        assert results[1] == pytest.approx(results[0], rel=0.1, abs=0.01)

    def test_labels_may_be_probabilities_unless_the_method_needs_integers(self, name, options):
        whole = functional.one_hot(TRAIN_LABELS[INDICES], CLASSES).float()
        if Given(name, options).loss.hard_labels:
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
        expected = numbers(plain.terms())
        torch.manual_seed(0)
        got = numbers(smoothed.terms())
        assert got.pop("ce") != pytest.approx(expected.pop("ce"))
        assert got == expected


def test_cross_entropy_with_smoothing_by_hand():
    loss = losses.CrossEntropy()
    loss.label_smoothing = 0.2
    logits = torch.tensor([[3.0, 1.0]]).log().bfloat16().float()
    # The target (1, 0) becomes (.9, .1).
    expected = -(0.9 * logits.log_softmax(1)[0, 0] + 0.1 * logits.log_softmax(1)[0, 1])
    assert loss.cross_entropy(logits, torch.tensor([0])).item() == pytest.approx(expected.item(), rel=1e-6)
    assert loss.cross_entropy(logits.bfloat16(), torch.tensor([0])).dtype == torch.float32
    assert loss.cross_entropy(logits.double(), torch.tensor([0])).dtype == torch.float64


LOGITS_ONLY = [name for name, method in METHODS.items() if method.reads == "logits"]


@pytest.mark.parametrize("name", LOGITS_ONLY)
def test_a_method_that_needs_logits_looks_at_nothing_else(name):
    """Its terms and its gradient are the same bits whether or not there are stages and an embedding."""
    results = []
    for strip in (False, True):
        given = Given(name, {})
        outputs = given.outputs()
        if strip:
            outputs = [Output(z, (), z.new_empty(len(z), 0)) for z, *_ in outputs]
        terms = given.loss(*outputs, given.labels, epoch=0.5, indices=INDICES)
        gradient = torch.autograd.grad(sum(terms.values()), outputs[0].logits)[0]
        results.append((numbers(terms), gradient))
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("name", METHODS)
def test_a_network_without_feature_maps_is_taken_by_all_that_need_none(name):
    """As a vision transformer is: an embedding and no stages. Who compares feature maps says so by name."""
    assert METHODS[name].load().feature_maps == (METHODS[name].reads == "feature maps")
    if METHODS[name].reads == "feature maps":
        with pytest.raises(GkdError, match=rf"{name} compares feature maps( or tokens)?, and the student own has none"):
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


@pytest.mark.parametrize(
    ("name", "option", "published"),
    [("ctkd", "curriculum_epochs", 10.0), ("dkd", "warmup_epochs", 20.0), ("reviewkd", "warmup_epochs", 20.0)],
)
def test_a_short_training_has_a_short_warm_up_unless_told(name, option, published):
    networks = Own(4), Own(6)
    for epochs, given, expected in ((8, None, 2.0), (8, 9.0, 9.0), (8, 0.0, 0.0), (240, None, published)):
        loss = create_loss(name, *networks, {option: given}, **FACTS | {"epochs": epochs})
        assert getattr(loss, option) == expected


@pytest.mark.parametrize("name", ["cmkd", "logit-standardisation"])
def test_what_standardises_logits_refuses_two_classes(name):
    student = Own(4)
    student.num_classes = 2
    with pytest.raises(GkdError, match=rf"method {name} .* 2 classes: take kd"):
        create_loss(name, student, Own(6), {}, **FACTS)


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


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("ce", {}),
        ("kd", {"weight": 0.9, "temperature": 4.0}),
        ("self-distillation", {"weight": 0.3, "weight_features": 0.03, "temperature": 3.0, "scale_tau2": False}),
    ],
)
def test_defaults_are_the_published_ones(name, published):
    """Those of the other methods are seen in the values of their terms."""
    assert {key: parameter.default for key, parameter in hyperparameters(name).items()} == published


def test_every_public_name_is_there():
    assert set(dir(losses)) == set(losses.__all__)
    assert all(getattr(losses, name).__name__ == name for name in losses.__all__)
    with pytest.raises(AttributeError, match="nonsense"):
        losses.nonsense  # noqa: B018
