import numpy as np
import ot
import pytest
import torch
from scipy.stats import entropy, pearsonr, wasserstein_distance
from torch.nn import functional

from gkd_core.errors import GkdError
from gkd_core.losses.dkd import dkd_loss
from gkd_core.losses.feature_maps import ChannelRemap
from gkd_core.losses.gompertz import PRESETS, Gompertz
from gkd_core.losses.gradient import gradient_loss, head_gradient
from gkd_core.losses.soft_labels import kd_loss, soft_label_kl
from gkd_core.losses.wasserstein import wasserstein_loss
from gkd_core.methods import check_hyperparameters, hyperparameters
from gkd_core.models.classifier import Output
from tests.unit.losses.draws import logits, normal

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


# Three stages, the first with an odd grid.
SHAPES = ((4, 3, 5), (4, 4, 4), (4, 2, 2))


class Bare:
    """A network of which only shapes are known, and outputs in float64 that it might have given."""

    name = "bare"
    num_classes = 4

    def __init__(self, *shapes, tokens=None):
        self.shapes, self.tokens = shapes, tokens

    def stage_shapes(self):
        return self.shapes

    def last_stage_shape(self):
        return self.tokens or self.shapes[-1]

    def output(self, size=5, seed=0):
        stages = tuple(normal(size, *shape, seed=10 * seed + i).requires_grad_() for i, shape in enumerate(self.shapes))
        tokens = None if self.tokens is None else normal(size, *self.tokens, seed=10 * seed + 9).requires_grad_()
        return Output(logits(size, 4, seed=seed).requires_grad_(), stages, normal(size, 1), tokens)


LABELS = torch.tensor([0, 3, 1, 2, 2])


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
        "stages": "all",
        "solver": "sinkhorn",
        "epsilon": 0.5,
        "iterations": 7,
        "position_weight": 0.25,
        "normalise": "teacher_rms",
        "r": 0.0,
        "soft_labels": "decoupled",
        "temperature": 2.0,
        "scale_tau2": True,
        "weight_non_target": 0.5,
        "weight_wasserstein": 0.5,
        "weight_gradient": 0.0,
        "weight_kd": 3.0,
    }
    sliced = {"solver": "sliced", "projections": 9, "stages": [1], "term_scale": "running_mean"}
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


def w1(solver, student, teacher):
    """Mean over the batch of W1 between maps [B, C, H, W] or tokens [B, C, N], by scipy or POT."""
    student, teacher = (features.detach().flatten(2).numpy() for features in (student, teacher))
    if solver == "quantile":
        samples = zip(student, teacher, strict=True)
        return np.mean([[wasserstein_distance(*channel) for channel in zip(*both, strict=True)] for both in samples])
    uniform = [np.full(features.shape[2], 1 / features.shape[2]) for features in (student, teacher)]
    return np.mean([ot.emd2(*uniform, ot.dist(x.T, y.T, "euclidean")) for x, y in zip(student, teacher, strict=True)])


def rms(features):
    return features.detach().square().flatten(2).sum(1).mean().sqrt().item()


class TestStages:
    """W1 over several stages is the mean of what scipy and POT say of each pair."""

    @pytest.mark.parametrize("solver", ["quantile", "exact"])
    @pytest.mark.parametrize("normalise", ["none", "teacher_rms"])
    def test_all_are_paired_from_the_deepest_and_the_mean_is_taken(self, solver, normalise):
        more, fewer = Bare(*SHAPES), Bare((4, 5, 2), (4, 3, 3))
        for student, teacher in ((more, fewer), (fewer, more), (more, more)):
            ours, theirs = student.output(), teacher.output(seed=1)
            pairs = list(zip(reversed(ours.stages), reversed(theirs.stages)))  # noqa: B905
            each = [w1(solver, s, t) / (rms(t) if normalise == "teacher_rms" else 1) for s, t in pairs]
            loss = Gompertz(student, teacher, stages="all", solver=solver, normalise=normalise, weight_gradient=0.0)
            value = loss(ours, theirs, LABELS)["wasserstein"]
            assert value.item() == pytest.approx(np.mean(each), rel=1e-9)
            value.backward()
            assert [stage.grad is not None for stage in ours.stages][-len(pairs) :] == [True] * len(pairs)
            assert all(stage.grad is None for stage in theirs.stages)

    @pytest.mark.parametrize(("stages", "compared"), [([1], [0]), ([3, 1], [0, 2]), ([2, 3], [1, 2]), ("last", [2])])
    def test_a_list_names_the_student_s(self, stages, compared):
        student, teacher = Bare(*SHAPES), Bare((4, 8, 8), *SHAPES)  # one more, at the shallow end
        ours, theirs = student.output(), teacher.output(seed=1)
        how = {"solver": "quantile", "normalise": "none", "weight_gradient": 0.0, "weight_wasserstein": 2.0}
        loss = Gompertz(student, teacher, stages=stages, **how)
        expected = np.mean([w1("quantile", ours.stages[i], theirs.stages[i + 1]) for i in compared])
        assert loss(ours, theirs, LABELS)["wasserstein"].item() == pytest.approx(2 * expected, rel=1e-9)

    def test_the_last_one_is_what_the_head_sees(self):
        """A transformer's tokens, not its patches."""
        student, teacher = Bare(*SHAPES), Bare(*SHAPES, tokens=(4, 7))
        ours, theirs = student.output(), teacher.output(seed=1)
        loss = Gompertz(student, teacher, stages=[2, 3], solver="exact", normalise="none", weight_gradient=0.0)
        each = [w1("exact", ours.stages[1], theirs.stages[1]), w1("exact", ours.stages[2], theirs.tokens)]
        assert loss(ours, theirs, LABELS)["wasserstein"].item() == pytest.approx(np.mean(each), rel=1e-9)
        alone = Bare(tokens=(4, 7))  # without a grid: all is the last
        assert loss.state_dict() == {}
        Gompertz(alone, teacher, stages="all", weight_gradient=0.0)(alone.output(), theirs, LABELS)

    def test_each_has_an_adapter_where_its_channels_differ_and_the_last_one_keeps_its_own(self):
        student, teacher = Bare((2, 4, 4), (4, 3, 3), (3, 2, 2)), Bare((5, 4, 4), (4, 3, 3), (6, 2, 2))
        ours, theirs = student.output(), teacher.output(seed=1)
        loss = Gompertz(student, teacher, stages="all", solver="quantile", weight_gradient=0.0)
        shapes = {name: tuple(p.shape) for name, p in loss.named_parameters()}
        assert shapes == {"adapter.weight": (6, 3, 1, 1), "adapter_1.weight": (5, 2, 1, 1)}
        assert torch.equal(loss.adapter.weight, Gompertz(student, teacher, solver="quantile").adapter.weight)
        value = loss(ours, theirs, LABELS)["wasserstein"]
        adapted = [loss.adapter_1(ours.stages[0]), ours.stages[1], loss.adapter(ours.stages[2])]
        each = [w1("quantile", s, t) / rms(t) for s, t in zip(adapted, theirs.stages, strict=True)]
        assert value.item() == pytest.approx(np.mean(each), rel=1e-6)
        value.backward()
        assert all(p.grad.abs().sum() > 0 for p in loss.parameters())
        assert list(Gompertz(student, teacher, stages="all", weight_wasserstein=0.0).parameters()) == []

    def test_gradients_are_those_of_finite_differences(self):
        student, teacher = Bare(*SHAPES), Bare(*SHAPES)
        ours, theirs = student.output(2), teacher.output(2, seed=1)
        loss = Gompertz(student, teacher, stages="all", solver="quantile", weight_gradient=0.0, weight_kd=0.0)

        def value(*stages):
            return loss(ours._replace(stages=stages), theirs, LABELS[:2])["wasserstein"]

        assert torch.autograd.gradcheck(value, ours.stages)

    def test_sliced_draws_other_directions_for_each(self):
        """Two stages that are alike are not measured alike."""
        network = Bare(SHAPES[1], SHAPES[1])
        ours, theirs = network.output(), network.output(seed=1)
        ours, theirs = (output._replace(stages=output.stages[:1] * 2) for output in (ours, theirs))
        first, last = (
            Gompertz(network, network, stages=stages, solver="sliced", projections=3, weight_gradient=0.0)
            for stages in ([1], "last")
        )
        assert first(ours, theirs, LABELS)["wasserstein"] != last(ours, theirs, LABELS)["wasserstein"]


def softened(logits, temperature):
    return np.exp(logits / temperature) / np.exp(logits / temperature).sum(1, keepdims=True)


def z_scored(logits):
    return (logits - logits.mean(1, keepdims=True)) / logits.std(1, ddof=1, keepdims=True)


def expected_soft_labels(kind, student, teacher, temperature):
    """Without τ², by numpy and scipy."""
    if kind == "standardised":
        student, teacher = z_scored(student), z_scored(teacher)
    p, q = softened(teacher, temperature), softened(student, temperature)
    rows = range(len(p))
    match kind:
        case "kl" | "standardised":
            return np.mean([entropy(p[i], q[i]) for i in rows])
        case "dist":
            between = np.mean([pearsonr(p[i], q[i]).statistic for i in rows])
            within = np.mean([pearsonr(p[:, c], q[:, c]).statistic for c in range(p.shape[1])])
            return 2 - between - within
    each = []
    for i, y in enumerate(LABELS.tolist()):
        pair = [[x[i, y], 1 - x[i, y]] for x in (p, q)]
        others = [np.delete(x[i], y) for x in (p, q)]  # which entropy() scales to sum to 1
        each.append(entropy(*pair) + 3.0 * entropy(*others))
    return np.mean(each)


class TestSoftLabels:
    @pytest.mark.parametrize("kind", ["kl", "standardised", "dist", "decoupled"])
    @pytest.mark.parametrize(("temperature", "scale_tau2"), [(4.0, False), (4.0, True), (2.0, True)])
    def test_every_kind_reads_the_temperature_and_is_multiplied_by_its_square_where_asked(
        self, kind, temperature, scale_tau2
    ):
        network = Bare(*SHAPES)
        ours, theirs = network.output(), network.output(seed=1)
        given = {"weight_non_target": 3.0} if kind == "decoupled" else {}
        loss = Gompertz(
            network, network, soft_labels=kind, temperature=temperature, scale_tau2=scale_tau2, weight_kd=0.5,
            weight_gradient=0.0, weight_wasserstein=0.0, **given,
        )  # fmt: skip
        value = loss(ours, theirs, LABELS)["kd"]
        student, teacher = (output.logits.detach().numpy() for output in (ours, theirs))
        factor = 0.5 * temperature**2 if scale_tau2 else 0.5
        expected = factor * expected_soft_labels(kind, student, teacher, temperature)
        assert value.item() == pytest.approx(expected, rel=1e-6)
        value.backward()
        assert ours.logits.grad.abs().sum() > 0
        assert theirs.logits.grad is None
        assert torch.autograd.gradcheck(
            lambda logits: loss(ours._replace(logits=logits), theirs, LABELS)["kd"], ours.logits
        )

    def test_decoupled_has_the_weights_of_dkd_unless_told(self):
        network = Bare(*SHAPES)
        ours, theirs = network.output(), network.output(seed=1)
        value = Gompertz(network, network, soft_labels="decoupled", weight_gradient=0.0)(ours, theirs, LABELS)["kd"]
        torch.testing.assert_close(value, dkd_loss(ours.logits, theirs.logits, LABELS))

    def test_mixed_labels_are_refused_by_decoupled_as_by_dkd(self, monkeypatch):
        network = Bare(*SHAPES)
        loss = Gompertz(network, network, soft_labels="decoupled", weight_gradient=0.0)
        with pytest.raises(ValueError, match=r"integer labels \[B\]"):
            loss(network.output(), network.output(seed=1), functional.one_hot(LABELS, 4).double())
        assert (loss.hard_labels, loss.unlabelled, loss.weighs_samples) == (True, False, True)
        monkeypatch.setitem(PRESETS, "tuned", PRESETS["tuned"] | {"soft_labels": "decoupled"})
        assert Gompertz.traits({}).option == "soft_labels decoupled"
        assert Gompertz.traits({"preset": "paper"}) == Gompertz.traits({"soft_labels": "kl"})
        other = Gompertz(network, network, soft_labels="dist", weight_gradient=0.0)
        assert (other.hard_labels, other.unlabelled, other.weighs_samples) == (False, True, False)


@pytest.mark.parametrize("preset", PRESETS)
def test_new_options_at_their_defaults_change_no_bit(pair_of, make_batch, preset):
    pair = pair_of()
    batch = make_batch(pair)
    written = {name: PRESETS[preset][name] for name in ("stages", "soft_labels", "term_scale")}
    left_out, given = Gompertz(*pair, preset=preset), Gompertz(*pair, preset=preset, **written)
    assert given.state_dict().keys() == left_out.state_dict().keys() == {"adapter.weight", "remap.weight"}
    results = []
    for loss in (left_out, given):
        terms = loss(*batch)
        weights = [*pair.student.parameters(), *loss.parameters()]
        gradients = torch.autograd.grad(sum(terms.values()), weights, retain_graph=True)
        results.append([*terms.values(), *gradients])
    assert all(torch.equal(*each) for each in zip(*results, strict=True))


def test_running_means_scale_the_terms_before_their_weights(pair_of, make_batch):
    """Every term with a weight of 1 is as large as cross-entropy at the first step; no gradient through the factor."""
    pair = pair_of()
    batch = make_batch(pair)
    weights = {"weight_wasserstein": 0.5, "weight_gradient": 0.0, "weight_kd": 3.0}
    plain = Gompertz(*pair, **weights)(*batch)
    terms = Gompertz(*pair, term_scale="running_mean", **weights)(*batch)
    assert torch.equal(terms["ce"], plain["ce"])
    ce = plain["ce"].item()
    assert terms["wasserstein"].item() == pytest.approx(0.5 * ce, rel=1e-5)
    assert terms["kd"].item() == pytest.approx(3.0 * ce, rel=1e-5)
    without = Gompertz(*pair, term_scale="running_mean", scale_tau2=False, **weights)(*batch)
    assert without["kd"].item() == pytest.approx(terms["kd"].item(), rel=1e-6)  # a constant factor cancels
    parameters = list(pair.student.parameters())
    for name, weight in (("wasserstein", 0.5), ("kd", 3.0)):
        scaled, unscaled = (
            torch.autograd.grad(found[name], parameters[:2], retain_graph=True) for found in (terms, plain)
        )
        factor = weight * ce / plain[name].item()
        for ours, theirs in zip(scaled, unscaled, strict=True):
            torch.testing.assert_close(ours, factor * theirs, rtol=1e-4, atol=1e-7)


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
            ({"weight_non_target": 0.0}, "weight_non_target is 0 but soft_labels kl .* take soft_labels decoupled"),
        ],
    )
    def test_options_that_another_one_leaves_unread(self, pair_of, given, words):
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
            ({"stages": "first"}, r"gompertz\.stages is 'first': take last, all, or a list"),
            ({"stages": []}, r"gompertz\.stages is \[\]: take"),
            ({"stages": [0, 1]}, r"gompertz\.stages is \[0, 1\]: .* counted from 1"),
            ({"stages": [2, 2]}, r"gompertz\.stages is \[2, 2\]: .* different stages"),
            ({"stages": [True]}, r"gompertz\.stages is \[True\]: take"),
            ({"soft_labels": "dkd"}, r"gompertz\.soft_labels is 'dkd'.*'standardised'"),
            ({"term_scale": "mean"}, r"gompertz\.term_scale is 'mean'.*'running_mean'"),
        ],
    )
    def test_options_out_of_range(self, given, words):
        with pytest.raises(GkdError, match=words) as refused:
            check_hyperparameters("gompertz", given)
        assert "\n" not in str(refused.value)

    @pytest.mark.parametrize(
        ("stages", "words"),
        [
            ([2, 4], "names stage 4, but the student has 3: choose from 2 to 3"),
            ([1, 3], "names stage 1 of the student's 3, which has no partner among the teacher's 2.* from 2 to 3"),
        ],
    )
    def test_stages_that_are_not_there_or_have_no_partner(self, stages, words):
        with pytest.raises(GkdError, match=rf"gompertz\.stages {words}"):
            Gompertz(Bare(*SHAPES), Bare(*SHAPES[1:]), stages=stages)

    def test_positions_of_tokens_where_these_are_compared(self):
        teacher = Bare(*SHAPES, tokens=(4, 5))
        with pytest.raises(GkdError, match=r"position_weight is 0\.5 but the teacher bare gives tokens"):
            Gompertz(Bare(*SHAPES), teacher, stages="all", position_weight=0.5)
        Gompertz(Bare(*SHAPES), teacher, stages=[1, 2], position_weight=0.5)

    def test_two_classes_where_logits_are_standardised(self):
        student = Bare(*SHAPES)
        student.num_classes = 2
        with pytest.raises(GkdError, match=r"gompertz\.soft_labels is standardised.* 2 classes: take kl"):
            Gompertz(student, Bare(*SHAPES), soft_labels="standardised")
        Gompertz(student, Bare(*SHAPES), soft_labels="decoupled")
