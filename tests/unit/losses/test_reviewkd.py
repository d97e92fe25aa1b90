import copy

import pytest
import torch
from torch.nn import functional

from gkd_core.losses.reviewkd import Fusion, ReviewKD, hierarchical_context_loss
from tests.unit.losses.draws import normal


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
        # 6 × 6 is 4 × 4 overlapping areas, and from the whole grid again 2 × 2 and the mean.
        odd = normal(2, 3, 6, 6)
        expected = sum(
            w * functional.adaptive_avg_pool2d(odd, size).square().mean()
            for w, size in ((1, 6), (0.5, 4), (0.25, 2), (0.125, 1))
        )
        found = hierarchical_context_loss(odd, torch.zeros_like(odd))
        assert found.item() == pytest.approx(expected.item() / 1.875, rel=1e-12)
        # On 1 × 1 there are no levels below.
        assert hierarchical_context_loss(zeros[..., :1, :1] + 3, zeros[..., :1, :1]).item() == 9.0


class TestFusion:
    def test_attention_chooses_between_the_stage_and_what_is_deeper(self):
        fusion = Fusion(3, 4, 5, fuse=True).double()
        stage, deeper = normal(2, 3, 4, 4), normal(2, 4, 2, 2, seed=1)
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
        compared, handed_on = Fusion(3, 4, 5, fuse=False).double()(normal(2, 3, 4, 4), None, (8, 2))
        assert compared.shape == (2, 5, 8, 2)
        assert handed_on.shape == (2, 4, 8, 2)

    @pytest.mark.parametrize("training", [True, False])
    @pytest.mark.parametrize("deeper_grid", [(4, 6), (2, 3), (2, 1), (1, 1), (3, 5), None])
    @pytest.mark.parametrize("channels", [3, 6])
    def test_is_what_its_layers_give_one_after_the_other(self, training, deeper_grid, channels):
        """Values, all gradients and the norms' statistics, in float64."""
        ours = Fusion(channels, 4, 5, fuse=deeper_grid is not None).double()
        with torch.no_grad():
            for parameter in ours.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
            ours.enter[1].running_mean += 0.1
        ours.train(training)
        layers = copy.deepcopy(ours)
        maps = [normal(2, channels, 4, 6)] + ([] if deeper_grid is None else [normal(2, 4, *deeper_grid, seed=1)])
        found = []
        for fusion in (ours, layers):
            stage, *rest = leaves = [each.clone().requires_grad_() for each in maps]
            if fusion is ours:
                compared, fused = fusion(stage, rest[0] if rest else None, (4, 6))
            else:
                fused = fusion.enter(stage)
                for deeper in rest:
                    deeper = functional.interpolate(deeper, (4, 6), mode="nearest")
                    attention = fusion.attend(torch.cat((fused, deeper), 1))
                    fused = fused * attention[:, :1] + deeper * attention[:, 1:]
                compared = fusion.leave(fused)
            leaves += list(fusion.parameters())
            value = (compared * normal(2, 5, 4, 6, seed=2)).sum() + (fused * normal(2, 4, 4, 6, seed=3)).sum()
            found.append([compared, fused, *torch.autograd.grad(value, leaves), *fusion.buffers()])
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)

    def test_gradcheck(self):
        fusion = Fusion(2, 3, 2, fuse=True).double()
        arguments = normal(3, 2, 2, 2).requires_grad_(), normal(3, 3, 1, 1, seed=1).requires_grad_()
        assert torch.autograd.gradcheck(lambda s, d: fusion(s, d, (2, 2))[0], arguments)


def test_a_batch_of_one_with_one_cell_a_map_is_normalised_by_the_batches_before_it():
    fusion = Fusion(3, 4, 5, fuse=False)
    fusion(normal(8, 3, 1, 1, dtype=torch.float32), None, (1, 1))
    before = {name: value.clone() for name, value in fusion.state_dict().items()}
    one = normal(1, 3, 1, 1, seed=1, dtype=torch.float32)
    compared, _ = fusion(one, None, (1, 1))
    for name, value in fusion.state_dict().items():
        assert torch.equal(value, before[name]), name
    torch.testing.assert_close(compared, fusion.eval()(one, None, (1, 1))[0])


class TestMethod:
    def test_value_against_the_steps_written_out(self, make_staged, make_pair, make_batch):
        pair = make_pair(make_staged(), make_staged("resnet8x4", seed=1))
        batch, loss = make_batch(pair), ReviewKD(*pair, epochs=10)
        terms = loss(*batch, epoch=9.0)  # after the warm-up
        assert set(terms) == {"ce", "review"}
        assert torch.equal(terms["ce"], functional.cross_entropy(batch.student.logits, batch.labels))

        # Deepest first, as in the authors' forward: the pooled vector, then stages 3, 2, 1 of 2, 4 and 8 pixels.
        first, second, third, pooled = loss.fusions
        teacher = batch.teacher.stages
        out, carry = pooled(batch.student.stages[2].mean((2, 3), keepdim=True), None, (1, 1))
        total = functional.mse_loss(out, teacher[2].mean((2, 3), keepdim=True))
        for fusion, stage, target in (
            (third, batch.student.stages[2], teacher[2]),
            (second, batch.student.stages[1], teacher[1]),
            (first, batch.student.stages[0], teacher[0]),
        ):
            out, carry = fusion(stage, carry, tuple(target.shape[2:]))
            total = total + hierarchical_context_loss(out, target)
        assert terms["review"].item() == pytest.approx(5 * total.item(), rel=1e-5)

    def test_widths_are_the_authors(self, make_staged, make_pair):
        loss = ReviewKD(*make_pair(make_staged(), make_staged("resnet8x4", seed=1)), epochs=10)
        assert [f.enter[0].weight.shape[:2] for f in loss.fusions] == [(64, 16), (64, 32), (64, 64), (64, 64)]
        assert [f.leave[0].weight.shape[:2] for f in loss.fusions] == [(64, 64), (128, 64), (256, 64), (256, 64)]
        assert [f.attend is not None for f in loss.fusions] == [True, True, True, False]

    @pytest.mark.parametrize("teacher", ["vgg8", "MobileNetV2", "ShuffleNetV2"])
    def test_other_stages_and_grids(self, make_staged, make_pair, make_batch, teacher):
        pair = make_pair(make_staged(), make_staged(teacher, seed=1))
        assert ReviewKD(*pair, epochs=10)(*make_batch(pair), epoch=9.0)["review"].isfinite()
