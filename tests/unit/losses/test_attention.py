import math

import pytest
import torch
from torch.nn import functional

from gkd_core.losses.attention import AttentionTransfer, attention_loss, attention_map
from tests.unit.losses.draws import normal


def one(*rows):
    return torch.tensor(rows, dtype=torch.float64)[None]


def test_map_by_hand():
    # Channels (3, 0) and (0, −2) on a 1 × 2 grid: mean squares (4.5, 2), scaled to unit length.
    features = one([[3.0, 0.0]], [[0.0, -2.0]])
    length = math.hypot(4.5, 2)
    assert attention_map(features).tolist() == [pytest.approx([4.5 / length, 2 / length])]
    # p = 1: mean absolute values (1.5, 1).
    length = math.hypot(1.5, 1)
    assert attention_map(features, 1.0).tolist() == [pytest.approx([1.5 / length, 1 / length])]
    assert attention_map(features, 3.0).isfinite().all()


def test_value_by_hand():
    # Attention (1, 0) against (0, 1): two squared differences of 1 over two positions.
    assert attention_loss(one([[2.0, 0.0]]), one([[0.0, 5.0]])).item() == pytest.approx(1.0)
    # (1, 0) against (3, 4)/5 with p = 1: (0.4² + 0.8²)/2.
    assert attention_loss(one([[7.0, 0.0]]), one([[3.0, 4.0]]), p=1.0).item() == pytest.approx(0.4)
    # On a 1 × 1 grid every attention map is 1.
    assert attention_loss(normal(3, 4, 2, 2), normal(3, 2, 1, 1, seed=1)).item() == pytest.approx(0, abs=1e-15)


def test_features_are_averaged_to_the_smaller_grid_before_the_power():
    fine = one([[1.0, -1.0, 2.0, 2.0]])  # averages 0 and 2
    assert attention_loss(fine, one([[0.0, 9.0]])).item() == pytest.approx(0, abs=1e-15)
    assert attention_loss(one([[0.0, 9.0]]), fine).item() == pytest.approx(0, abs=1e-15)


class TestMethod:
    def test_terms(self, make_staged, make_pair, make_batch):
        pair = make_pair(make_staged(), make_staged("resnet8x4", seed=1))
        batch = make_batch(pair)
        terms = AttentionTransfer(*pair)(*batch)
        assert set(terms) == {"ce", "attention"}
        assert torch.equal(terms["ce"], functional.cross_entropy(batch.student.logits, batch.labels))
        each = [attention_loss(s, t) for s, t in zip(batch.student.stages, batch.teacher.stages, strict=True)]
        assert torch.allclose(terms["attention"], 1000 * sum(each))

    def test_stages_are_paired_from_the_deepest(self, make_staged, make_network, make_pair, make_batch):
        pair = make_pair(make_staged(), make_network(stride=2))
        batch = make_batch(pair)
        assert (len(batch.student.stages), len(batch.teacher.stages)) == (3, 1)
        expected = 2 * attention_loss(batch.student.stages[-1], batch.teacher.stages[-1], 3.0)
        assert torch.allclose(AttentionTransfer(*pair, weight=2.0, p=3.0)(*batch)["attention"], expected)
