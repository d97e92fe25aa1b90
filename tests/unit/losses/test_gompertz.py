import pytest
import torch
from torch.nn import functional

from gkd_core.errors import GkdError
from gkd_core.losses.feature_maps import ChannelRemap
from gkd_core.losses.gompertz import PRESETS, Gompertz
from gkd_core.losses.gradient import gradient_loss, head_gradient
from gkd_core.losses.soft_labels import kd_loss, soft_label_kl
from gkd_core.losses.wasserstein import wasserstein_loss
from gkd_core.methods import check_hyperparameters, hyperparameters

TERMS = {"ce", "wasserstein", "gradient", "kd"}
# Where head and channels and grids differ between student and teacher.
PAIRS = {
    "same": ({}, {}),
    "channels": ({"channels": 4}, {"channels": 6}),
    "grids": ({"stride": 2}, {"stride": 1}),
    "heads": ({"kind": "flattened", "channels": 4, "stride": 2}, {"channels": 6}),
    "flattened": ({"channels": 6}, {"kind": "flattened", "channels": 4, "stride": 2}),
}


@pytest.fixture
def pair_of(make_network, make_pair):
    """A pair by its name in PAIRS."""

    def make(name="channels"):
        student, teacher = PAIRS[name]
        return make_pair(make_network(**student, seed=1), make_network(**teacher, seed=2))

    return make


@pytest.mark.parametrize("name", PAIRS)
def test_paper_is_equation_7_literally(pair_of, make_batch, name):
    pair = pair_of(name)
    batch = make_batch(pair)
    loss = Gompertz(*pair, preset="paper")
    terms = loss(*batch)
    assert set(terms) == TERMS
    student, teacher = batch.student.stages[-1], batch.teacher.stages[-1]
    adapted = student if loss.adapter is None else loss.adapter(student)
    remap = ChannelRemap(teacher.shape[1], student.shape[1], seed=0)
    student_gradient = head_gradient(pair.student, batch.student, batch.labels, differentiable=True)
    teacher_gradient = remap(head_gradient(pair.teacher, batch.teacher, batch.labels, differentiable=False))
    assert torch.equal(terms["ce"], functional.cross_entropy(batch.student.logits, batch.labels))
    assert torch.equal(terms["wasserstein"], wasserstein_loss(adapted, teacher))
    assert torch.equal(terms["gradient"], gradient_loss(student_gradient, teacher_gradient, r=0.5))
    assert torch.equal(terms["kd"], soft_label_kl(batch.student.logits, batch.teacher.logits, 4.0))


def test_tuned_is_scale_free_and_has_tau_squared(pair_of, make_batch):
    pair = pair_of("same")
    batch = make_batch(pair)
    terms = Gompertz(*pair, preset="tuned")(*batch)
    student, teacher = batch.student.stages[-1], batch.teacher.stages[-1]
    assert torch.equal(terms["wasserstein"], wasserstein_loss(student, teacher, normalise="teacher_rms"))
    assert torch.equal(terms["kd"], kd_loss(batch.student.logits, batch.teacher.logits, 4.0))


def test_every_option_belongs_to_both_presets_and_replaces_its_value(pair_of):
    options = {name: parameter.default for name, parameter in hyperparameters("gompertz").items()}
    assert options.pop("preset") == "tuned"
    assert set(options.values()) == {None}
    assert set(options) == set(PRESETS["paper"]) == set(PRESETS["tuned"])
    given = {
        "solver": "sinkhorn",
        "epsilon": 0.5,
        "iterations": 7,
        "position_weight": 0.25,
        "normalise": "teacher_rms",
        "r": 0.0,
        "temperature": 2.0,
        "scale_tau2": True,
        "weight_wasserstein": 0.5,
        "weight_gradient": 0.0,
        "weight_kd": 3.0,
    }
    sliced = {"solver": "sliced", "projections": 9}
    assert set(given) | set(sliced) == set(options)
    for preset in ("paper", "tuned"):
        for some in (given, sliced):
            loss = Gompertz(*pair_of(), preset=preset, **check_hyperparameters("gompertz", some))
            assert {name: getattr(loss, name) for name in some} == some
        untouched = Gompertz(*pair_of(), preset=preset)
        assert {name: getattr(untouched, name) for name in options} == PRESETS[preset]


def test_options_reach_the_terms(pair_of, make_batch):
    pair = pair_of("same")
    batch = make_batch(pair)
    student, teacher = batch.student.stages[-1], batch.teacher.stages[-1]
    arguments = {"epsilon": 0.3, "iterations": 5, "position_weight": 2.0}
    value = Gompertz(*pair, normalise="none", **arguments)(*batch)["wasserstein"]
    assert torch.equal(value, wasserstein_loss(student, teacher, **arguments))
    value = Gompertz(*pair, temperature=2.0, weight_kd=0.25)(*batch)["kd"]
    assert torch.equal(value, 0.25 * kd_loss(batch.student.logits, batch.teacher.logits, 2.0))
    base = Gompertz(*pair)(*batch)
    weighted = Gompertz(*pair, weight_wasserstein=3.0, weight_gradient=0.5)(*batch)
    assert torch.equal(weighted["wasserstein"], 3 * base["wasserstein"])
    assert torch.equal(weighted["gradient"], 0.5 * base["gradient"])
    assert not torch.equal(Gompertz(*pair, r=1.0)(*batch)["gradient"], base["gradient"])


def test_a_term_of_weight_zero_is_left_out_with_its_adapter(pair_of, make_batch):
    pair = pair_of("channels")
    loss = Gompertz(*pair, weight_wasserstein=0.0, weight_gradient=0.0)
    assert set(loss(*make_batch(pair))) == {"ce", "kd"}
    assert loss.parameter_groups() == []


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("kind", ["pooled", "flattened"])
def test_a_student_like_its_teacher_has_nothing_to_learn_from_it(make_network, make_pair, make_batch, preset, kind):
    student, teacher = make_network(kind, seed=1).double().eval(), make_network(kind, seed=1).double()
    pair = make_pair(student, teacher)
    terms = Gompertz(*pair, preset=preset)(*make_batch(pair))
    terms.pop("ce")
    for name, term in terms.items():
        assert term.item() == pytest.approx(0, abs=1e-13), name
    sum(terms.values()).backward()
    assert all(p.grad.abs().max() < 1e-12 for p in student.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", PAIRS)
def test_gradients_flow_into_student_and_adapter_and_never_into_the_teacher(pair_of, make_batch, name):
    pair = pair_of(name)
    pair.teacher.requires_grad_(True)
    loss = Gompertz(*pair)
    terms = loss(*make_batch(pair))
    for name, term in terms.items():
        used = [pair.student.classifier.convolution.weight]
        (gradient,) = torch.autograd.grad(term, used, retain_graph=True)
        assert gradient.isfinite().all(), name
        assert gradient.abs().sum() > 0, name
    sum(terms.values()).backward()
    assert all(p.grad is None for p in pair.teacher.parameters())
    assert all(p.grad.abs().sum() > 0 for p in loss.parameters())


class TestAdapter:
    def test_is_the_only_thing_the_loss_trains_and_keeps_beside_its_remap(self, pair_of):
        loss = Gompertz(*pair_of("channels"))
        (group,) = loss.parameter_groups()
        assert [p.shape for p in group["params"]] == [(6, 4, 1, 1)]
        assert set(loss.state_dict()) == {"adapter.weight", "remap.weight"}
        assert [name for name, _ in loss.named_modules()] == ["", "adapter", "remap"]

    def test_is_not_there_when_channels_agree(self, pair_of):
        loss = Gompertz(*pair_of("same"))
        assert loss.parameter_groups() == []
        assert loss.state_dict() == {}


def test_mixtures_of_labels_reach_the_gradient_term(pair_of, make_batch):
    pair = pair_of()
    batch, loss = make_batch(pair), Gompertz(*pair)
    as_mixture = batch._replace(labels=functional.one_hot(batch.labels, 4).float())
    mixed = batch._replace(labels=torch.full((6, 4), 0.25))
    assert torch.equal(loss(*as_mixture)["gradient"], loss(*batch)["gradient"])
    assert not torch.allclose(loss(*mixed)["gradient"], loss(*batch)["gradient"])


def test_sliced_draws_anew_at_each_step_and_the_same_again_at_the_same(pair_of, make_batch):
    pair = pair_of()
    first, again = Gompertz(*pair, solver="sliced"), Gompertz(*pair, solver="sliced")
    batch = make_batch(pair)
    value = first(*batch, epoch=0.5)["wasserstein"]
    assert first(*batch, epoch=0.75)["wasserstein"] != value
    assert again(*batch, epoch=0.5)["wasserstein"] == value


@pytest.mark.parametrize("name", ["channels", "heads"])
def test_paper_is_a_mean_over_the_batch_whatever_its_size_and_order(pair_of, make_batch, name):
    pair = pair_of(name)
    pair.student.double().eval()
    pair.teacher.double()
    loss = Gompertz(*pair, preset="paper").double()
    batch = make_batch(pair, size=5)

    def part(rows):
        def pick(output):
            return output._replace(logits=output.logits[rows], stages=(output.stages[-1][rows],))

        return loss(pick(batch.student), pick(batch.teacher), batch.labels[rows])

    whole, singles = loss(*batch), [part(torch.tensor([i])) for i in range(5)]
    shuffled = part(torch.tensor([4, 2, 0, 1, 3]))
    for term in TERMS:
        assert torch.allclose(whole[term], torch.stack([terms[term] for terms in singles]).mean(), atol=1e-12), term
        assert torch.allclose(whole[term], shuffled[term], atol=1e-12), term


@pytest.mark.parametrize("name", PAIRS)
def test_nothing_waits_for_the_device(pair_of, make_batch, name):
    """Meta tensors have no values: `.item()`, a branch on a tensor or `torch.equal` raises."""
    pair = pair_of(name)
    pair.student.to("meta")
    pair.teacher.to("meta")
    loss = Gompertz(*pair).to("meta")
    batch = make_batch(pair)
    sum(loss(*batch).values()).backward()
    with pytest.raises(RuntimeError):
        batch.student.logits.sum().item()


class TestRefuses:
    @pytest.mark.parametrize("role", ["student", "teacher"])
    def test_networks_without_feature_maps(self, make_network, make_pair, role):
        networks = {"student": make_network(), "teacher": make_network(), role: make_network("no-maps")}
        with pytest.raises(GkdError, match=f"the {role} no-maps has none"):
            Gompertz(*make_pair(networks["student"], networks["teacher"]))

    @pytest.mark.parametrize(
        ("given", "words"),
        [
            ({"solver": "sliced", "position_weight": 0.5}, "position_weight is 0.5 but solver sliced"),
            ({"solver": "quantile", "epsilon": 0.5}, "epsilon is 0.5 but solver quantile"),
            ({"preset": "paper", "projections": 8}, "projections is 8 but solver sinkhorn"),
        ],
    )
    def test_options_of_another_solver(self, pair_of, given, words):
        with pytest.raises(GkdError, match=words):
            Gompertz(*pair_of(), **given)

    @pytest.mark.parametrize(
        ("given", "words"),
        [
            ({"r": 1.5}, r"gompertz\.r is 1\.5"),
            ({"r": -0.1}, r"gompertz\.r is -0\.1"),
            ({"epsilon": 0}, r"gompertz\.epsilon is 0"),
            ({"iterations": 0}, r"gompertz\.iterations is 0"),
            ({"weight_kd": -1}, r"gompertz\.weight_kd is -1"),
            ({"solver": "simplex"}, r"gompertz\.solver is 'simplex'.*'sinkhorn'"),
            ({"preset": "best"}, r"gompertz\.preset is 'best'.*'paper' or 'tuned'"),
            ({"sovler": "exact"}, "gompertz\\.solver'"),
        ],
    )
    def test_options_out_of_range(self, given, words):
        with pytest.raises(GkdError, match=words):
            check_hyperparameters("gompertz", given)
