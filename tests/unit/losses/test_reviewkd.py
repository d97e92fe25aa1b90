from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from gkd_core.errors import GkdError
from gkd_core.losses.reviewkd import Fusion, ReviewKD, hierarchical_context_loss


def maps(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


class TestHierarchicalContext:
    def test_value_by_hand(self):
        zeros = torch.zeros(1, 1, 2, 2)
        # A difference of 3 everywhere is 9 on every level.
        assert hierarchical_context_loss(zeros + 3, zeros).item() == pytest.approx(9.0)
        assert hierarchical_context_loss(torch.full((2, 3, 8, 8), 3.0), torch.zeros(2, 3, 8, 8)).item() == 9.0
        # ±1 in a chequerboard vanishes in the mean: 1 of weight 1, 0 of weight ½.
        board = torch.tensor([[[[1.0, -1.0], [-1.0, 1.0]]]])
        assert hierarchical_context_loss(board, zeros).item() == pytest.approx(1 / 1.5)
        # One 16 on a 4 × 4 grid: 256/16 in full, a quarter of it as 4 on 2 × 2, 1 in the mean. The grid is no level.
        peak = torch.zeros(1, 1, 4, 4)
        peak[0, 0, 1, 2] = 16.0
        expected = (16 + 4 / 2 + 1 / 4) / 1.75
        assert hierarchical_context_loss(peak, torch.zeros(1, 1, 4, 4)).item() == pytest.approx(expected)
        # On 1 × 1 there are no levels below.
        assert hierarchical_context_loss(zeros[..., :1, :1] + 3, zeros[..., :1, :1]).item() == 9.0

    def test_zero_loss_and_gradient_at_equality(self):
        student = maps(3, 4, 8, 8).requires_grad_()
        value = hierarchical_context_loss(student, student.detach().clone())
        value.backward()
        assert value.item() == 0
        assert student.grad.abs().max() == 0

    def test_no_gradient_into_the_teacher(self):
        student, teacher = maps(2, 3, 4, 4).requires_grad_(), maps(2, 3, 4, 4, seed=1).requires_grad_()
        hierarchical_context_loss(student, teacher).backward()
        assert teacher.grad is None
        assert student.grad.abs().sum() > 0

    def test_gradcheck(self):
        teacher = maps(2, 2, 5, 3, seed=1)
        student = maps(2, 2, 5, 3).requires_grad_()
        assert torch.autograd.gradcheck(lambda s: hierarchical_context_loss(s, teacher), student)

    def test_half_types_are_computed_in_float32(self):
        student, teacher = maps(4, 6, 8, 8, dtype=torch.float32), maps(4, 6, 8, 8, seed=1, dtype=torch.float32)
        low = hierarchical_context_loss(student.bfloat16(), teacher.bfloat16())
        assert low.dtype == torch.float32
        assert low.item() == pytest.approx(hierarchical_context_loss(student, teacher).item(), rel=0.01)
        assert hierarchical_context_loss(student.double(), teacher).dtype == torch.float64

    def test_mean_over_the_batch_whatever_its_size_and_order(self):
        student, teacher = maps(5, 3, 4, 4), maps(5, 3, 4, 4, seed=1)
        samples = [hierarchical_context_loss(student[i : i + 1], teacher[i : i + 1]) for i in range(5)]
        value = hierarchical_context_loss(student, teacher)
        assert torch.allclose(value, torch.stack(samples).mean(), atol=1e-14)
        order = torch.tensor([3, 0, 4, 1, 2])
        assert torch.allclose(hierarchical_context_loss(student[order], teacher[order]), value, atol=1e-14)

    def test_refuses_maps_that_do_not_fit(self):
        with pytest.raises(ValueError, match="differ in shape"):
            hierarchical_context_loss(maps(2, 3, 4, 4), maps(2, 3, 2, 2))


class TestFusion:
    def test_attention_chooses_between_the_stage_and_what_is_deeper(self):
        fusion = Fusion(3, 4, 5, fuse=True).double()
        stage, deeper = maps(2, 3, 4, 4), maps(2, 4, 2, 2, seed=1)
        for bias, expected in (
            ((50.0, -50.0), fusion.enter(stage)),
            ((-50.0, 50.0), deeper.repeat_interleave(2, 2).repeat_interleave(2, 3)),
        ):
            with torch.no_grad():
                fusion.attend[0].bias.copy_(torch.tensor(bias))
            compared, handed_on = fusion(stage, deeper, (4, 4))
            assert torch.allclose(handed_on, expected, atol=1e-15)
            assert torch.allclose(compared, fusion.leave(expected))

    def test_the_teachers_grid_is_taken(self):
        compared, handed_on = Fusion(3, 4, 5, fuse=False).double()(maps(2, 3, 4, 4), None, (8, 2))
        assert compared.shape == (2, 5, 8, 2)
        assert handed_on.shape == (2, 4, 8, 2)

    def test_gradcheck(self):
        fusion = Fusion(2, 3, 2, fuse=True).double()
        arguments = maps(3, 2, 2, 2).requires_grad_(), maps(3, 3, 1, 1, seed=1).requires_grad_()
        assert torch.autograd.gradcheck(lambda s, d: fusion(s, d, (2, 2))[0], arguments)


def late(context, make_step):
    """A step after the warm-up."""
    return make_step(context, epoch=9.0)


class TestMethod:
    def test_value_against_the_steps_written_out(self, make_staged, make_context, make_step):
        context = make_context(make_staged(), make_staged("resnet8x4", seed=1))
        step, loss = late(context, make_step), ReviewKD(context)
        terms = loss(step)
        assert set(terms) == {"ce", "review"}
        assert torch.equal(terms["ce"], functional.cross_entropy(step.student.logits, step.labels))

        # Deepest first, as in the authors' forward: the pooled vector, then stages 3, 2, 1 of 2, 4 and 8 pixels.
        first, second, third, pooled = loss.fusions
        teacher = step.teacher.stages
        out, carry = pooled(step.student.stages[2].mean((2, 3), keepdim=True), None, (1, 1))
        total = functional.mse_loss(out, teacher[2].mean((2, 3), keepdim=True))
        for fusion, stage, target in (
            (third, step.student.stages[2], teacher[2]),
            (second, step.student.stages[1], teacher[1]),
            (first, step.student.stages[0], teacher[0]),
        ):
            out, carry = fusion(stage, carry, tuple(target.shape[2:]))
            total = total + hierarchical_context_loss(out, target)
        assert terms["review"].item() == pytest.approx(5 * total.item(), rel=1e-5)

    def test_widths_are_the_authors(self, make_staged, make_context):
        loss = ReviewKD(make_context(make_staged(), make_staged("resnet8x4", seed=1)))
        assert [f.enter[0].weight.shape[:2] for f in loss.fusions] == [(64, 16), (64, 32), (64, 64), (64, 64)]
        assert [f.leave[0].weight.shape[:2] for f in loss.fusions] == [(64, 64), (128, 64), (256, 64), (256, 64)]
        assert [f.attend is not None for f in loss.fusions] == [True, True, True, False]

    @pytest.mark.parametrize(
        ("epochs", "given", "expected"), [(240, None, 20), (10, None, 2.5), (10, 8.0, 8.0), (10, 0.0, 0.0)]
    )
    def test_warmup(self, make_staged, make_context, make_step, epochs, given, expected):
        context = replace(make_context(make_staged(), make_staged(seed=1)), epochs=epochs)
        loss = ReviewKD(context, warmup_epochs=given)
        assert loss.warmup_epochs == expected
        whole = loss(make_step(context, epoch=1000.0))["review"]
        start = loss(make_step(context, epoch=0.0))["review"]
        assert torch.allclose(start, whole if expected == 0 else torch.zeros(()))
        if expected:
            half = loss(make_step(context, epoch=expected / 2))["review"]
            assert half.item() == pytest.approx(whole.item() / 2, rel=1e-5)

    def test_only_the_fusions_belong_to_it_and_both_learn(self, make_staged, make_context, make_step):
        context = make_context(make_staged(), make_staged(seed=1))
        loss = ReviewKD(context)
        assert {name.split(".")[0] for name in loss.state_dict()} == {"fusions"}
        loss(late(context, make_step))["review"].backward()
        assert all(p.grad is not None for p in loss.parameters())
        assert context.student.classifier.conv1.weight.grad.abs().sum() > 0
        assert all(p.grad is None for p in context.teacher.parameters())

    def test_seeded_without_touching_the_global_generator(self, make_staged, make_context):
        before = torch.get_rng_state()
        student, teacher = make_staged(), make_staged(seed=1)
        torch.set_rng_state(before)
        one, same, other = (ReviewKD(make_context(student, teacher, seed=s)).state_dict() for s in (0, 0, 1))
        assert torch.equal(torch.get_rng_state(), before)
        assert all(torch.equal(one[name], same[name]) for name in one)
        assert not torch.equal(one["fusions.0.enter.0.weight"], other["fusions.0.enter.0.weight"])

    def test_half_outputs_and_autocast_are_computed_in_float32(self, make_staged, make_context, make_step):
        context = make_context(make_staged(), make_staged(seed=1))
        step, loss = late(context, make_step), ReviewKD(context).eval()
        half = step.student._replace(stages=tuple(s.bfloat16() for s in step.student.stages))
        step = replace(step, student=half)
        plain = loss(step)["review"]
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(loss(step)["review"], plain)
        assert plain.dtype == torch.float32

    @pytest.mark.parametrize("teacher", ["vgg8", "MobileNetV2", "ShuffleNetV2"])
    def test_other_stages_and_grids(self, make_staged, make_context, make_step, teacher):
        context = make_context(make_staged(), make_staged(teacher, seed=1))
        assert ReviewKD(context)(late(context, make_step))["review"].isfinite()

    def test_refusals(self, make_staged, make_network, make_context, make_step):
        with pytest.raises(GkdError, match="reviewkd learns from a teacher"):
            ReviewKD(make_context(make_staged(), None))
        with pytest.raises(GkdError, match="the teacher no-maps has none"):
            ReviewKD(make_context(make_staged(), make_network("no-maps")))
        loss = ReviewKD(make_context(make_staged(), make_staged()))
        with pytest.raises(ValueError, match="no teacher output"):
            loss(make_step(make_context(make_staged(), None)))
