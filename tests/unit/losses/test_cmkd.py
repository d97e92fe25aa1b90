import math

import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from torch.nn import functional

from gkd_core.losses.cmkd import CorrelationMatching, cmkd_loss, difficulty, soft_rank
from gkd_core.losses.dist import pearson_correlation
from gkd_core.losses.logit_standardisation import standardise
from tests.unit.losses.draws import logits


def by_rank(student, teacher, smoothness):
    student, teacher = standardise(student), standardise(teacher)
    return pearson_correlation(soft_rank(student, smoothness), soft_rank(teacher, smoothness))


class TestSoftRank:
    def test_by_hand(self):
        # Two values 1 apart at s = 1: 1 + sigmoid(∓1).
        ranks = soft_rank(torch.tensor([[0.0, 1.0]]), 1.0)
        assert ranks.flatten().tolist() == pytest.approx([1.268941, 1.731059], abs=1e-6)

    def test_exact_for_small_smoothness_and_shared_by_ties(self):
        assert soft_rank(torch.tensor([[0.3, -1.0, 5.0, 0.3]]), 1e-4).tolist() == [[2.5, 1.0, 4.0, 2.5]]

    def test_no_affine_copy_of_the_values(self):
        """A soft rank that is a·z + b would make the Spearman term a second Pearson term."""
        z = standardise(logits(20, 10))
        assert pearson_correlation(soft_rank(z, 0.1), z).max() < 0.9999


class TestAgainstScipy:
    def test_spearman_at_small_smoothness(self):
        student, teacher = logits(20, 10), logits(20, 10, seed=1)
        expected = [spearmanr(a, b).statistic for a, b in zip(student.numpy(), teacher.numpy(), strict=True)]
        assert by_rank(student, teacher, 0.001).tolist() == pytest.approx(expected, abs=0.02)
        assert (by_rank(student, teacher, 0.001) - torch.tensor(expected)).abs().mean() < 2e-3
        assert (by_rank(student, teacher, 0.1) - torch.tensor(expected)).abs().mean() < 0.06

    def test_the_whole_loss(self):
        student, teacher = logits(6, 10), logits(6, 10, seed=1)
        expected = []
        for s, t in zip(student.numpy(), teacher.numpy(), strict=True):
            h = torch.distributions.Categorical(logits=torch.from_numpy(t)).entropy().item() / math.log(10)
            expected.append((1 - h) * (1 - pearsonr(s, t).statistic) + h * (1 - spearmanr(s, t).statistic))
        assert cmkd_loss(student, teacher, 1e-5).item() == pytest.approx(sum(expected) / 6, rel=1e-4)


def test_a_teacher_that_does_not_know_finds_it_hard_and_one_that_is_sure_does_not():
    values = difficulty(torch.tensor([[1.0, 1.0, 1.0], [200.0, 0.0, 0.0], [50.0, 50.0, -200.0]]))
    assert values.tolist() == pytest.approx([1.0, 0.0, math.log(2) / math.log(3)], abs=1e-6)


def test_value_by_hand():
    # The order reversed: both correlations are −1, so every share gives 2.
    student, teacher = torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([[1.0, 2.0, 3.0]])
    assert cmkd_loss(student, teacher).item() == pytest.approx(2.0, rel=1e-6)
    # (0, 0, 1) against (0, 1, 1): Pearson ½. Ranks at s → 0 are (1½, 1½, 3) and (1, 2½, 2½): Spearman ½ as well.
    student, teacher = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.0, 1.0, 1.0]])
    assert cmkd_loss(student, teacher, 1e-4).item() == pytest.approx(0.5, rel=1e-6)


def test_the_two_parts_differ_and_direction_exchanges_their_weights():
    student, teacher = logits(8, 6), logits(8, 6, seed=1)
    value = 1 - pearson_correlation(standardise(student), standardise(teacher))
    rank = 1 - by_rank(student, teacher, 0.1)
    assert (value - rank).abs().min() > 1e-4
    h = difficulty(teacher)
    torch.testing.assert_close(cmkd_loss(student, teacher), ((1 - h) * value + h * rank).mean())
    other = cmkd_loss(student, teacher, direction="hard_by_value")
    torch.testing.assert_close(other, (h * value + (1 - h) * rank).mean())
    torch.testing.assert_close(cmkd_loss(student, teacher) + other, (value + rank).mean())


def test_the_method(make_network, make_pair, make_batch):
    pair = make_pair(make_network(seed=1), make_network(seed=2))
    batch = make_batch(pair)
    terms = CorrelationMatching(*pair, weight=3.0, smoothness=0.2, direction="hard_by_value")(*batch)
    expected = 3 * cmkd_loss(batch.student.logits, batch.teacher.logits, 0.2, "hard_by_value")
    assert terms["ce"].item() == functional.cross_entropy(batch.student.logits, batch.labels).item()
    assert terms["correlation"].item() == pytest.approx(expected.item())
