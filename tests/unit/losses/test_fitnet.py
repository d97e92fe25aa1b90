import pytest
import torch
from torch.nn import functional

from gkd_core.errors import GkdError
from gkd_core.losses.fitnet import FitNet, Regressor, hint_loss


def maps(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def test_value_by_hand():
    student = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    # Squares 1, 4, 9, 16 over four elements.
    assert hint_loss(student, torch.zeros(1, 1, 2, 2)).item() == 7.5
    # On a 1 × 1 grid the student is its mean, 2.5.
    assert hint_loss(student, torch.ones(1, 1, 1, 1)).item() == 2.25
    # Each direction goes to the smaller side: rows (1.5, 3.5) against columns (1, 2) meet at 2.5 and 1.5.
    assert hint_loss(torch.tensor([[[[1.5], [3.5]]]]), torch.tensor([[[[1.0, 2.0]]]])).item() == 1.0


def test_zero_loss_and_gradient_at_equality():
    student = maps(3, 4, 2, 2).requires_grad_()
    value = hint_loss(student, student.detach().clone())
    value.backward()
    assert value.item() == 0
    assert student.grad.abs().max() == 0


def test_no_gradient_into_the_teacher():
    student, teacher = maps(2, 3, 4, 4).requires_grad_(), maps(2, 3, 2, 2, seed=1).requires_grad_()
    hint_loss(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


def test_gradcheck():
    teacher = maps(2, 3, 2, 3, seed=1)
    assert torch.autograd.gradcheck(lambda s: hint_loss(s, teacher), maps(2, 3, 3, 2).requires_grad_())


def test_half_types_are_computed_in_float32():
    student, teacher = maps(4, 6, 4, 4, dtype=torch.float32), maps(4, 6, 2, 2, seed=1, dtype=torch.float32)
    low = hint_loss(student.bfloat16(), teacher.bfloat16())
    assert low.dtype == torch.float32
    assert low.item() == pytest.approx(hint_loss(student, teacher).item(), rel=0.01)
    assert hint_loss(student.double(), teacher).dtype == torch.float64


def test_mean_over_the_batch_whatever_its_size_and_order():
    student, teacher = maps(5, 3, 2, 2), maps(5, 3, 2, 2, seed=1)
    samples = [hint_loss(student[i : i + 1], teacher[i : i + 1]) for i in range(5)]
    assert torch.allclose(hint_loss(student, teacher), torch.stack(samples).mean(), atol=1e-14)
    order = torch.tensor([3, 0, 4, 1, 2])
    assert torch.allclose(hint_loss(student[order], teacher[order]), hint_loss(student, teacher), atol=1e-14)


def test_refuses_maps_that_do_not_fit():
    with pytest.raises(ValueError, match="batch or channels"):
        hint_loss(maps(2, 3, 2, 2), maps(2, 4, 2, 2))


def test_the_regressor_is_seeded_trains_and_stays_in_float32():
    before = torch.get_rng_state()
    regressor, same, other = Regressor(3, 5, seed=0), Regressor(3, 5, seed=0), Regressor(3, 5, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(regressor.adapter.weight, same.adapter.weight)
    assert not torch.equal(regressor.adapter.weight, other.adapter.weight)
    with torch.autocast("cpu", torch.bfloat16):
        out = regressor(maps(4, 3, 2, 2, dtype=torch.bfloat16))
    assert (out.shape, out.dtype) == ((4, 5, 2, 2), torch.float32)
    assert out.min() == 0


class TestMethod:
    def test_terms(self, make_staged, make_context, make_step):
        context = make_context(make_staged(), make_staged("resnet8x4", seed=1))
        step = make_step(context)
        loss = FitNet(context)
        terms = loss(step)
        assert set(terms) == {"ce", "hint"}
        assert torch.equal(terms["ce"], functional.cross_entropy(step.student.logits, step.labels))
        guided = Regressor(32, 128, context.seed)(step.student.stages[1])
        assert torch.allclose(terms["hint"], 100 * functional.mse_loss(guided, step.teacher.stages[1]))

    def test_only_the_regressor_belongs_to_it_and_both_learn(self, make_staged, make_context, make_step):
        context = make_context(make_staged(), make_staged("resnet8x4", seed=1))
        loss = FitNet(context)
        assert {name.split(".")[0] for name in loss.state_dict()} == {"regressor"}
        loss(make_step(context))["hint"].backward()
        assert all(p.grad is not None for p in loss.parameters())
        assert context.student.classifier.conv1.weight.grad.abs().sum() > 0
        assert context.student.classifier.layer3[0].conv1.weight.grad is None
        assert all(p.grad is None for p in context.teacher.parameters())
        (group,) = loss.parameter_groups()
        assert len(group["params"]) == 3

    def test_stages_of_different_depth_and_grid(self, make_staged, make_context, make_step):
        context = make_context(make_staged(), make_staged("vgg8", seed=1))
        loss = FitNet(context, stage=3, teacher_stage=1)
        step = make_step(context)
        assert step.student.stages[2].shape[2:] != step.teacher.stages[0].shape[2:]
        assert loss(step)["hint"].isfinite()

    def test_refusals(self, make_staged, make_network, make_context):
        with pytest.raises(GkdError, match=r"fitnet learns from a teacher.*--teacher"):
            FitNet(make_context(make_staged(), None))
        with pytest.raises(GkdError, match=r"the teacher no-maps has none: choose"):
            FitNet(make_context(make_staged(), make_network("no-maps")))
        with pytest.raises(GkdError, match=r"options\.fitnet\.stage is 4, but the student has 3 stages"):
            FitNet(make_context(make_staged(), make_staged()), stage=4)
        with pytest.raises(GkdError, match=r"options\.fitnet\.teacher_stage is 2, but the teacher has 1 stage"):
            FitNet(make_context(make_staged(), make_network()))

    def test_a_step_without_a_teacher_is_refused(self, make_staged, make_context, make_step):
        loss = FitNet(make_context(make_staged(), make_staged()))
        with pytest.raises(ValueError, match="no teacher output"):
            loss(make_step(make_context(make_staged(), None)))
