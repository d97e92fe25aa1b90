import math

import pytest
import torch

from gkd_core.losses.dkd import DecoupledKD, decoupled_kl, dkd_loss
from gkd_core.losses.soft_labels import soft_label_kl
from tests.unit.losses.draws import logits


def labels(count, classes, seed=0):
    return torch.randint(classes, (count,), generator=torch.Generator().manual_seed(seed))


def test_value_by_hand():
    # Teacher (½, ⅜, ⅛), student (⅓, ⅓, ⅓), target 0.
    teacher, student = torch.tensor([[0.5, 0.375, 0.125]]).log(), torch.zeros(1, 3)
    target, others = decoupled_kl(student, teacher, torch.tensor([0]), 1.0)
    assert target.item() == pytest.approx(0.5 * math.log(0.5 * 3) + 0.5 * math.log(0.5 * 3 / 2), abs=1e-6)
    assert others.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), abs=1e-6)
    # α = 2, β = 3; at τ = 2 with logits doubled the divergences are the same and τ² is 4.
    value = dkd_loss(2 * student, 2 * teacher, torch.tensor([0]), 2.0, 3.0, 2.0)
    assert value.item() == pytest.approx(4 * (2 * target.item() + 3 * others.item()), rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_the_parts_make_up_plain_kd(temperature, classes):
    student, teacher, y = logits(7, classes), logits(7, classes, seed=1), labels(7, classes)
    target, others = decoupled_kl(student, teacher, y, temperature)
    p_teacher = (teacher / temperature).softmax(1).gather(1, y[:, None])[:, 0]
    whole = (target + (1 - p_teacher) * others).mean()
    assert whole.item() == pytest.approx(soft_label_kl(student, teacher, temperature).item(), rel=1e-12)


def test_the_authors_formula_with_masks_agrees():
    student, teacher, y = logits(6, 8), logits(6, 8, seed=1), labels(6, 8)
    mask = torch.nn.functional.one_hot(y, 8).double()
    p_s, p_t = (student / 4).softmax(1), (teacher / 4).softmax(1)
    pair_s = torch.stack([(p_s * mask).sum(1), (p_s * (1 - mask)).sum(1)], 1)
    pair_t = torch.stack([(p_t * mask).sum(1), (p_t * (1 - mask)).sum(1)], 1)
    target = (pair_t * (pair_t / pair_s).log()).sum() * 16 / 6
    rest_s, rest_t = (student / 4 - 1000 * mask).log_softmax(1), (teacher / 4 - 1000 * mask).softmax(1)
    others = torch.nn.functional.kl_div(rest_s, rest_t, reduction="sum") * 16 / 6
    assert dkd_loss(student, teacher, y).item() == pytest.approx((target + 8 * others).item(), rel=1e-9)


def test_the_second_part_does_not_see_the_target():
    student, teacher, y = logits(4, 7).requires_grad_(), logits(4, 7, seed=1), labels(4, 7)
    decoupled_kl(student, teacher, y)[1].sum().backward()
    assert student.grad.gather(1, y[:, None]).abs().max() == 0
    assert student.grad.abs().max() > 0


class TestMethod:
    @pytest.fixture
    def pair(self, make_network, make_pair):
        return make_pair(make_network(seed=1), make_network(seed=2))

    def test_the_warm_up_counts_epochs_from_one_and_leaves_cross_entropy_alone(self, pair, make_batch):
        """The authors' min(epoch / 20, 1), epoch = 1 in the first one."""
        loss, batch = DecoupledKD(*pair, epochs=240), make_batch(pair)
        early, late = loss(*batch, epoch=0.0), loss(*batch, epoch=20.0)
        for epoch, share in ((0.0, 0.05), (0.9, 0.05), (4.0, 0.25), (18.5, 0.95), (19.0, 1.0), (100.0, 1.0)):
            assert loss(*batch, epoch=epoch)["dkd"].item() == pytest.approx(share * late["dkd"].item()), epoch
        assert early["ce"].item() == late["ce"].item()

    def test_without_a_warm_up_it_is_whole_from_the_start(self, pair, make_batch):
        batch = make_batch(pair)
        terms = DecoupledKD(
            *pair, epochs=8, warmup_epochs=0.0, weight_target=0.5, weight_non_target=2.0, temperature=3.0
        )(*batch)
        expected = dkd_loss(batch.student.logits, batch.teacher.logits, batch.labels, 0.5, 2.0, 3.0)
        assert terms["dkd"].item() == pytest.approx(expected.item())
