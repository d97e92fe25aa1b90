import pytest
import torch
from torch.nn import functional

from gkd_core.errors import GkdError
from gkd_core.losses.channels import ChannelRemap
from gkd_core.losses.gompertz import PRESETS, Gompertz
from gkd_core.losses.gradient import gradient_loss
from gkd_core.losses.head_gradient import head_gradient
from gkd_core.losses.soft_labels import kd_loss, soft_label_kl
from gkd_core.losses.wasserstein import SOLVERS, wasserstein_loss
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
def make_pair(make_network, make_context):
    def make(pair="channels", seed=0):
        student, teacher = PAIRS[pair]
        return make_context(make_network(**student, seed=1), make_network(**teacher, seed=2), seed)

    return make


@pytest.mark.parametrize("pair", PAIRS)
def test_paper_is_equation_7_literally(make_pair, make_step, pair):
    context = make_pair(pair)
    step = make_step(context)
    loss = Gompertz(context)
    terms = loss(step)
    assert set(terms) == TERMS
    student, teacher = step.student.stages[-1], step.teacher.stages[-1]
    adapted = student if loss.adapter is None else loss.adapter(student)
    remap = ChannelRemap(teacher.shape[1], student.shape[1], seed=context.seed)
    student_gradient = head_gradient(context.student, step.student, step.labels, differentiable=True)
    teacher_gradient = remap(head_gradient(context.teacher, step.teacher, step.labels, differentiable=False))
    assert torch.equal(terms["ce"], functional.cross_entropy(step.student.logits, step.labels))
    assert torch.equal(terms["wasserstein"], wasserstein_loss(adapted, teacher))
    assert torch.equal(terms["gradient"], gradient_loss(student_gradient, teacher_gradient, r=0.5))
    assert torch.equal(terms["kd"], soft_label_kl(step.student.logits, step.teacher.logits, 4.0))


def test_tuned_is_scale_free_and_has_tau_squared(make_pair, make_step):
    context = make_pair("same")
    step = make_step(context)
    terms = Gompertz(context, preset="tuned")(step)
    student, teacher = step.student.stages[-1], step.teacher.stages[-1]
    assert torch.equal(terms["wasserstein"], wasserstein_loss(student, teacher, normalise="teacher_rms"))
    assert torch.equal(terms["kd"], kd_loss(step.student.logits, step.teacher.logits, 4.0))


def test_every_option_belongs_to_both_presets_and_replaces_its_value(make_pair):
    options = {name: parameter.default for name, parameter in hyperparameters("gompertz").items()}
    assert options.pop("preset") == "paper"
    assert set(options.values()) == {None}
    assert set(options) == set(PRESETS["paper"]) == set(PRESETS["tuned"])
    given = {
        "solver": "exact",
        "epsilon": 0.5,
        "iterations": 7,
        "projections": 9,
        "position_weight": 0.25,
        "normalise": "teacher_rms",
        "r": 0.0,
        "temperature": 2.0,
        "scale_tau2": True,
        "weight_wasserstein": 0.5,
        "weight_gradient": 0.0,
        "weight_kd": 3.0,
    }
    assert set(given) == set(options)
    for preset in ("paper", "tuned"):
        loss = Gompertz(make_pair(), preset=preset, **check_hyperparameters("gompertz", given))
        assert {name: getattr(loss, name) for name in given} == given
        untouched = Gompertz(make_pair(), preset=preset)
        assert {name: getattr(untouched, name) for name in options} == PRESETS[preset]


def test_options_reach_the_terms(make_pair, make_step):
    context = make_pair("same")
    step = make_step(context)
    student, teacher = step.student.stages[-1], step.teacher.stages[-1]
    arguments = {"epsilon": 0.3, "iterations": 5, "position_weight": 2.0}
    value = Gompertz(context, solver="sinkhorn", **arguments)(step)["wasserstein"]
    assert torch.equal(value, wasserstein_loss(student, teacher, **arguments))
    value = Gompertz(context, temperature=2.0, scale_tau2=True, weight_kd=0.25)(step)["kd"]
    assert torch.equal(value, 0.25 * kd_loss(step.student.logits, step.teacher.logits, 2.0))
    base = Gompertz(context)(step)
    weighted = Gompertz(context, weight_wasserstein=3.0, weight_gradient=0.5)(step)
    assert torch.equal(weighted["wasserstein"], 3 * base["wasserstein"])
    assert torch.equal(weighted["gradient"], 0.5 * base["gradient"])
    assert not torch.equal(Gompertz(context, r=1.0)(step)["gradient"], base["gradient"])


def test_a_term_of_weight_zero_is_left_out_with_its_adapter(make_pair, make_step):
    context = make_pair("channels")
    loss = Gompertz(context, weight_wasserstein=0.0, weight_gradient=0.0)
    assert set(loss(make_step(context))) == {"ce", "kd"}
    assert loss.parameter_groups() == []


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("kind", ["pooled", "flattened"])
def test_a_student_like_its_teacher_has_nothing_to_learn_from_it(make_network, make_context, make_step, preset, kind):
    student, teacher = make_network(kind, seed=1).double().eval(), make_network(kind, seed=1).double()
    context = make_context(student, teacher)
    terms = Gompertz(context, preset=preset)(make_step(context))
    terms.pop("ce")
    for name, term in terms.items():
        assert term.item() == pytest.approx(0, abs=1e-13), name
    sum(terms.values()).backward()
    assert all(p.grad.abs().max() < 1e-12 for p in student.parameters() if p.grad is not None)


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_gradients_flow_into_student_and_adapter_and_never_into_the_teacher(make_pair, make_step, pair, solver):
    context = make_pair(pair)
    context.teacher.requires_grad_(True)
    loss = Gompertz(context, solver=solver)
    terms = loss(make_step(context))
    for name, term in terms.items():
        used = [context.student.classifier.convolution.weight]
        (gradient,) = torch.autograd.grad(term, used, retain_graph=True)
        assert gradient.isfinite().all(), name
        assert gradient.abs().sum() > 0, name
    sum(terms.values()).backward()
    assert all(p.grad is None for p in context.teacher.parameters())
    assert all(p.grad.abs().sum() > 0 for p in loss.parameters())


class TestAdapter:
    def test_is_the_only_thing_the_loss_trains_and_keeps_beside_its_remap(self, make_pair):
        loss = Gompertz(make_pair("channels"))
        (group,) = loss.parameter_groups()
        assert [p.shape for p in group["params"]] == [(6, 4, 1, 1)]
        assert set(loss.state_dict()) == {"adapter.weight", "remap.weight"}
        assert [name for name, _ in loss.named_modules()] == ["", "adapter", "remap"]

    def test_is_not_there_when_channels_agree(self, make_pair):
        loss = Gompertz(make_pair("same"))
        assert loss.parameter_groups() == []
        assert loss.state_dict() == {}

    def test_is_not_shared_between_losses(self, make_pair):
        first, second = Gompertz(make_pair()), Gompertz(make_pair())
        assert torch.equal(first.adapter.weight, second.adapter.weight)
        with torch.no_grad():
            first.adapter.weight.zero_()
        assert second.adapter.weight.abs().sum() > 0

    def test_comes_from_the_seed_alone(self, make_pair):
        context, other = make_pair(), make_pair(seed=7)
        state = torch.get_rng_state()
        loss = Gompertz(context)
        assert torch.equal(torch.get_rng_state(), state)
        assert not torch.equal(loss.adapter.weight, Gompertz(other).adapter.weight)
        assert not torch.equal(loss.remap.weight, Gompertz(other).remap.weight)

    def test_comes_back_from_a_checkpoint(self, make_pair, make_step):
        context = make_pair()
        trained, fresh = Gompertz(context), Gompertz(make_pair(seed=7))
        fresh._networks = trained._networks
        with torch.no_grad():
            trained.adapter.weight.add_(0.5)
        fresh.load_state_dict(trained.state_dict())
        step = make_step(context)
        assert {k: v.item() for k, v in fresh(step).items()} == {k: v.item() for k, v in trained(step).items()}


@pytest.mark.parametrize("pair", ["channels", "heads"])
def test_mean_over_the_batch_whatever_its_size_and_order(make_pair, make_step, pair):
    context = make_pair(pair)
    context.student.double().eval()
    context.teacher.double()
    loss = Gompertz(context).double()
    step = make_step(context, batch=5)

    def part(indices):
        def pick(output):
            return output._replace(logits=output.logits[indices], stages=(output.stages[-1][indices],))

        labels = step.labels[indices]
        return loss(
            type(step)(
                student=pick(step.student),
                teacher=pick(step.teacher),
                images=step.images[indices],
                labels=labels,
                targets=None,
                indices=step.indices[indices],
                epoch=step.epoch,
                cross_entropy=lambda logits: functional.cross_entropy(logits, labels),
            )
        )

    whole, singles = loss(step), [part(torch.tensor([i])) for i in range(5)]
    shuffled = part(torch.tensor([4, 2, 0, 1, 3]))
    for name in TERMS:
        assert torch.allclose(whole[name], torch.stack([terms[name] for terms in singles]).mean(), atol=1e-12), name
        assert torch.allclose(whole[name], shuffled[name], atol=1e-12), name


def test_mixtures_of_labels_reach_the_gradient_term(make_pair, make_step):
    context = make_pair()
    step, loss = make_step(context), Gompertz(context)
    as_mixture = type(step)(**{**vars(step), "targets": functional.one_hot(step.labels, 4).float()})
    mixed = type(step)(**{**vars(step), "targets": torch.full((6, 4), 0.25)})
    assert torch.equal(loss(as_mixture)["gradient"], loss(step)["gradient"])
    assert not torch.allclose(loss(mixed)["gradient"], loss(step)["gradient"])


def test_sliced_draws_anew_at_each_step_and_the_same_again_at_the_same(make_pair, make_step):
    context = make_pair()
    first, again = Gompertz(context, solver="sliced"), Gompertz(context, solver="sliced")
    early, late = make_step(context, epoch=0.5), make_step(context, epoch=0.75)
    value = first(early)["wasserstein"]
    assert first(late)["wasserstein"] != value
    assert again(early)["wasserstein"] == value


@pytest.mark.parametrize("pair", PAIRS)
def test_bf16_is_near_float32(make_pair, make_step, pair):
    context = make_pair(pair)
    context.student.eval()
    loss = Gompertz(context)
    full = loss(make_step(context))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = loss(make_step(context))
    for name in TERMS:
        assert low[name].dtype == torch.float32
        assert low[name].item() == pytest.approx(full[name].item(), rel=0.05, abs=0.01), name


def test_the_students_mode_is_left_as_it_was(make_pair, make_step):
    context = make_pair("heads")
    context.student.train()
    Gompertz(context)(make_step(context))
    assert all(module.training for module in context.student.modules())
    assert not any(module.training for module in context.teacher.modules())


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("solver", ["sinkhorn", "sliced", "quantile"])
def test_nothing_waits_for_the_device(make_pair, make_step, pair, solver):
    """Meta tensors have no values: `.item()`, a branch on a tensor or `torch.equal` raises."""
    context = make_pair(pair)
    context.student.to("meta")
    context.teacher.to("meta")
    loss = Gompertz(context, preset="tuned", solver=solver).to("meta")
    step = make_step(context)
    sum(loss(step).values()).backward()
    with pytest.raises(RuntimeError):
        step.student.logits.sum().item()


class TestRefuses:
    @pytest.mark.parametrize("role", ["student", "teacher"])
    def test_networks_without_feature_maps(self, make_network, make_context, role):
        networks = {"student": make_network(), "teacher": make_network(), role: make_network("no-maps")}
        with pytest.raises(GkdError, match=f"the {role} no-maps has none"):
            Gompertz(make_context(networks["student"], networks["teacher"]))

    def test_no_teacher(self, make_network, make_context):
        with pytest.raises(GkdError, match="given none"):
            Gompertz(make_context(make_network(), None))

    @pytest.mark.parametrize("solver", ["sliced", "quantile"])
    def test_positions_without_a_ground_cost(self, make_pair, solver):
        with pytest.raises(GkdError, match=f"position_weight is 0.5 but solver {solver}"):
            Gompertz(make_pair(), solver=solver, position_weight=0.5)

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
