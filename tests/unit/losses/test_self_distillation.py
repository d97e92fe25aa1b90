import math

import pytest
import torch
from torch.nn import functional

from gkd_core.errors import GkdError
from gkd_core.losses.self_distillation import AuxiliaryHead, SelfDistillation, feature_distance
from gkd_core.losses.soft_labels import kd_loss, soft_label_kl
from gkd_core.models.classifier import Output


def vectors(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


class TestFeatureDistance:
    def test_value_by_hand(self):
        # 3² + 4² and 0, over two samples.
        assert feature_distance(torch.tensor([[3.0, 4.0], [1.0, 1.0]]), torch.tensor([[0.0, 0], [1, 1]])).item() == 12.5

    def test_no_gradient_into_the_target(self):
        features, target = vectors(3, 4).requires_grad_(), vectors(3, 4, seed=1).requires_grad_()
        feature_distance(features, target).backward()
        assert target.grad is None
        assert torch.autograd.gradcheck(lambda f: feature_distance(f, target), vectors(3, 4).requires_grad_())

    def test_refuses_what_does_not_fit(self):
        with pytest.raises(ValueError, match="differ in shape"):
            feature_distance(vectors(2, 3), vectors(2, 4))


class TestHead:
    def test_it_comes_to_the_deepest_stage_by_a_quarter_of_its_channels(self):
        head = AuxiliaryHead((16, 8, 8), (64, 2, 2), classes=10)
        convolutions = [m for m in head.bottleneck if isinstance(m, torch.nn.Conv2d)]
        assert [tuple(c.weight.shape) for c in convolutions] == [(16, 16, 1, 1), (16, 16, 4, 4), (64, 16, 1, 1)]
        logits, features = head(vectors(3, 16, 8, 8, dtype=torch.float32))
        assert (logits.shape, features.shape) == ((3, 10), (3, 64))
        assert features.min() >= 0

    def test_sides_that_do_not_divide(self):
        for grid in ((7, 5), (3, 3), (1, 1)):
            head = AuxiliaryHead((4, *grid), (8, 2, 2), classes=3)
            assert head(vectors(3, 4, *grid, dtype=torch.float32))[0].shape == (3, 3)

    def test_half_types_and_autocast_are_computed_in_float32(self):
        head, stage = AuxiliaryHead((4, 2, 2), (8, 1, 1), classes=3).eval(), vectors(3, 4, 2, 2, dtype=torch.bfloat16)
        with torch.autocast("cpu", torch.bfloat16):
            logits, _ = head(stage)
        assert logits.dtype == torch.float32
        assert torch.equal(logits, head(stage.float())[0])


class TestMethod:
    def test_terms(self, make_staged, make_pair, make_batch):
        pair = make_pair(make_staged(), None)
        batch, loss = make_batch(pair), SelfDistillation(*pair)
        assert len(loss.heads) == 2
        terms = loss(*batch)
        assert set(terms) == {"ce", "kd", "features"}
        heads = [head(stage) for head, stage in zip(loss.heads, batch.student.stages[:2], strict=True)]
        final = batch.student.logits
        labels = sum(functional.cross_entropy(logits, batch.labels) for logits, _ in heads)
        assert torch.allclose(terms["ce"], functional.cross_entropy(final, batch.labels) + 0.7 * labels)
        assert torch.allclose(terms["kd"], 0.3 * sum(soft_label_kl(logits, final, 3.0) for logits, _ in heads))
        deepest = batch.student.stages[2].mean((2, 3))
        distances = sum((features - deepest).square().sum(1).mean() for _, features in heads)
        assert torch.allclose(terms["features"], 0.03 * distances)

    def test_by_hand(self, make_staged, make_pair):
        """Two classes of four are likely, heads and end disagree: every number worked out on paper, weights ¼ and ½."""
        pair = make_pair(make_staged(), None)
        loss = SelfDistillation(*pair, weight=0.25, weight_features=0.5, temperature=1.0)
        count = 2
        deepest = torch.zeros(count, 64, 2, 2)
        # σ of the end: (3, 1, 1, 1) / 6; of the first head uniform, of the second as the end.
        end = torch.tensor([[math.log(3.0), 0.0, 0.0, 0.0]]).repeat(count, 1)
        loss.heads[0] = Echo(torch.zeros(count, 4), torch.full((count, 64), 0.25))  # ‖f − 0‖² = 64 / 16 = 4
        loss.heads[1] = Echo(end.clone(), torch.zeros(count, 64))
        labels = torch.tensor([0, 1])
        output = Output(
            end, (torch.zeros(count, 16, 8, 8), torch.zeros(count, 32, 4, 4), deepest), torch.zeros(count, 64)
        )
        terms = loss(output, None, labels)
        own = (math.log(2) + math.log(6)) / 2  # −log ½ and −log ⅙
        assert terms["ce"].item() == pytest.approx(own + 0.75 * (math.log(4) + own), rel=1e-6)
        # KL((½, ⅙, ⅙, ⅙) ‖ ¼) = ½·log 2 + ½·log ⅔
        kl = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
        assert terms["kd"].item() == pytest.approx(0.25 * kl, rel=1e-5)
        assert terms["features"].item() == pytest.approx(0.5 * 4)

    def test_a_schedule_weighs_nothing_that_is_learnt_from_labels(self, make_staged, make_pair, make_batch):
        """With β = 0 the heads still learn from the labels, and the network with them."""
        pair = make_pair(make_staged(), None)
        loss = SelfDistillation(*pair)
        terms = loss(*make_batch(pair))
        terms["ce"].backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in loss.heads[0].linear.parameters())

    def test_tau_squared_is_an_option(self, make_staged, make_pair, make_batch):
        pair = make_pair(make_staged(), None)
        batch = make_batch(pair)
        plain = SelfDistillation(*pair, temperature=2.0)(*batch)["kd"]
        assert torch.allclose(SelfDistillation(*pair, temperature=2.0, scale_tau2=True)(*batch)["kd"], 4 * plain)
        assert kd_loss(batch.student.logits, batch.student.logits, 2.0).item() == pytest.approx(0, abs=1e-6)

    def test_heads_agreeing_with_the_end_leave_labels_only(self, make_staged, make_pair, make_batch):
        pair = make_pair(make_staged(), None)
        batch, loss = make_batch(pair), SelfDistillation(*pair)
        deepest = batch.student.stages[2].mean((2, 3))
        for i in range(2):
            loss.heads[i] = Echo(batch.student.logits, deepest)
        terms = loss(*batch)
        assert terms["kd"].item() == pytest.approx(0, abs=1e-6)
        assert terms["features"].item() == 0
        labels = functional.cross_entropy(batch.student.logits, batch.labels)
        assert torch.allclose(terms["ce"], (1 + 2 * 0.7) * labels)

    @pytest.mark.parametrize("term", ["kd", "features"])
    def test_the_end_is_a_constant_for_the_heads(self, make_staged, make_pair, make_batch, term):
        pair = make_pair(make_staged(), None)
        loss = SelfDistillation(*pair)
        loss(*make_batch(pair))[term].backward()
        assert pair.student.classifier.fc.weight.grad is None
        assert pair.student.classifier.layer3[0].conv1.weight.grad is None
        assert pair.student.classifier.layer2[0].conv1.weight.grad.abs().sum() > 0
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in loss.parameters())

    def test_only_the_heads_belong_to_it(self, make_staged, make_pair):
        pair = make_pair(make_staged(), make_staged(seed=1))
        loss = SelfDistillation(*pair)
        assert {name.split(".")[0] for name in loss.state_dict()} == {"heads"}
        (group,) = loss.parameter_groups()
        assert len(group["params"]) == len(list(loss.heads.parameters()))

    def test_seeded_without_touching_the_global_generator(self, make_staged):
        student = make_staged()
        before = torch.get_rng_state()
        one, same, other = (SelfDistillation(student, seed=s).state_dict() for s in (0, 0, 1))
        assert torch.equal(torch.get_rng_state(), before)
        assert all(torch.equal(one[name], same[name]) for name in one)
        assert not torch.equal(one["heads.0.linear.weight"], other["heads.0.linear.weight"])

    def test_refusals(self, make_network, make_pair):
        with pytest.raises(
            GkdError, match=r"self-distillation compares feature maps, and the student no-maps has none"
        ):
            SelfDistillation(*make_pair(make_network("no-maps"), None))
        with pytest.raises(GkdError, match=r"the student pooled has a single stage"):
            SelfDistillation(*make_pair(make_network(), None))


class Echo(torch.nn.Module):
    def __init__(self, logits, features):
        super().__init__()
        self.answer = logits, features

    def forward(self, stage):
        return self.answer
