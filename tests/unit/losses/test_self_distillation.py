import math

import pytest
import torch

from gkd_core.errors import GkdError
from gkd_core.losses.self_distillation import AuxiliaryHead, SelfDistillation, feature_distance
from gkd_core.models.classifier import Output
from tests.unit.losses.draws import normal


def test_feature_distance_by_hand():
    # √(3² + 4² + 12²) over two samples.
    assert feature_distance(torch.tensor([[3.0, 4.0], [1.0, 13.0]]), torch.tensor([[0.0, 0], [1, 1]])).item() == 13


def test_no_gradient_where_features_are_the_target():
    features = torch.ones(2, 3, requires_grad=True)
    feature_distance(features, torch.ones(2, 3)).backward()
    assert torch.equal(features.grad, torch.zeros(2, 3))


class TestHead:
    def test_it_comes_to_the_deepest_stage_by_a_quarter_of_its_channels(self):
        head = AuxiliaryHead((16, 8, 8), (64, 2, 2), classes=10)
        convolutions = [m for m in head.bottleneck if isinstance(m, torch.nn.Conv2d)]
        assert [tuple(c.weight.shape) for c in convolutions] == [(16, 16, 1, 1), (16, 16, 4, 4), (64, 16, 1, 1)]
        logits, features = head(normal(3, 16, 8, 8, dtype=torch.float32))
        assert (logits.shape, features.shape) == ((3, 10), (3, 64))
        assert features.min() >= 0

    def test_sides_that_do_not_divide(self):
        for grid in ((7, 5), (3, 3), (1, 1)):
            head = AuxiliaryHead((4, *grid), (8, 2, 2), classes=3)
            assert head(normal(3, 4, *grid, dtype=torch.float32))[0].shape == (3, 3)


class TestMethod:
    def test_by_hand(self, make_staged, make_pair):
        """Two classes of four are likely, heads and end disagree: every number worked out on paper, weights ¼ and ½."""
        pair = make_pair(make_staged(), None)
        loss = SelfDistillation(*pair, weight=0.25, weight_features=0.5, temperature=1.0)
        count = 2
        deepest = torch.zeros(count, 64, 2, 2)
        # σ of the end: (3, 1, 1, 1) / 6; of the first head uniform, of the second as the end.
        end = torch.tensor([[math.log(3.0), 0.0, 0.0, 0.0]]).repeat(count, 1)
        loss.heads[0] = Echo(torch.zeros(count, 4), torch.full((count, 64), 0.25))  # ‖f − 0‖² = 2·64 / 16 = 8
        loss.heads[1] = Echo(end.clone(), torch.zeros(count, 64))
        for adapter in loss.adapters:
            torch.nn.init.eye_(adapter.weight).data.mul_(3)  # the map stands between features and target
            torch.nn.init.zeros_(adapter.bias)
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
        assert terms["features"].item() == pytest.approx(0.5 * 3 * math.sqrt(8))

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

    @pytest.mark.parametrize("term", ["kd", "features"])
    def test_the_end_is_a_constant_for_the_heads(self, make_staged, make_pair, make_batch, term):
        pair = make_pair(make_staged(), None)
        loss = SelfDistillation(*pair)
        loss(*make_batch(pair))[term].backward()
        assert pair.student.classifier.fc.weight.grad is None
        assert pair.student.classifier.layer3[0].conv1.weight.grad is None
        assert pair.student.classifier.layer2[0].conv1.weight.grad.abs().sum() > 0
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in loss.parameters())

    def test_a_single_stage_has_no_shallow_ones(self, make_network, make_pair):
        with pytest.raises(GkdError, match=r"the student pooled has a single stage"):
            SelfDistillation(*make_pair(make_network(), None))


class Echo(torch.nn.Module):
    def __init__(self, logits, features):
        super().__init__()
        self.answer = logits, features

    def forward(self, stage):
        return self.answer
