import copy
import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from gkd_core.errors import GkdError
from gkd_core.losses.crd import ClassSampler, ContrastiveRepresentation, contrastive_loss
from gkd_core.models.classifier import Output

LABELS = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, 0, 0, 1, 3])
INF = math.inf


class Indexed(NamedTuple):
    """A batch whose samples are known by their positions in the training split."""

    student: Output
    teacher: Output
    indices: Tensor

    @property
    def labels(self) -> Tensor:
        return LABELS[self.indices]

    def through(self, loss: ContrastiveRepresentation) -> Tensor:
        return loss(self.student, self.teacher, self.labels, indices=self.indices)["contrast"]


@pytest.fixture
def pair(make_network, make_pair):
    return make_pair(make_network(channels=5, seed=1), make_network(channels=7, seed=2))


@pytest.fixture
def batch(pair, make_batch):
    """Six images of the training split, with their labels."""
    return Indexed(*make_batch(pair)[:2], torch.tensor([3, 0, 9, 6, 5, 11]))


def crd(pair, **options):
    return ContrastiveRepresentation(*pair, **({"train_labels": LABELS, "negatives": 5, "dimensions": 8} | options))


def fix_negatives(loss, negatives):
    loss.sampler.other_classes = lambda labels, draws: negatives


def by_the_authors(anchor, memory, positives, negatives, images, temperature, z=None):
    """Their memory.py and criterion.py, one number after the other. Returns the loss and Z."""
    scores = []
    for i, row in enumerate(anchor.tolist()):
        places = [int(positives[i]), *negatives[i].tolist()]
        others = [memory[p].tolist() for p in places]
        scores.append([math.exp(sum(a * b for a, b in zip(row, o, strict=True)) / temperature) for o in others])
    flat = [s for row in scores for s in row]
    z = sum(flat) / len(flat) * images if z is None else z
    total = 0.0
    for row in scores:
        m = len(row) - 1
        noise = m / images
        total -= math.log(row[0] / z / (row[0] / z + noise + 1e-7))
        for other in row[1:]:
            total -= math.log(noise / (other / z + noise + 1e-7))
    return total / len(scores), z


UNEQUAL = torch.tensor([2, 0, 1, 2, 2, 0, 4, 2, 1, 4])  # classes of unequal size, none of class 3


class TestClassSampler:
    @pytest.fixture
    def sampler(self):
        return ClassSampler(UNEQUAL, 5)

    def test_every_image_of_another_class_once_and_none_of_the_own(self, sampler):
        """Exhaustive: all positions there are, for every class, also one without images."""
        for own in range(5):
            others = [i for i, label in enumerate(UNEQUAL.tolist()) if label != own]
            got = sampler.other_class(torch.arange(len(others))[None], torch.tensor([own]))[0]
            assert sorted(got.tolist()) == others

    def test_every_number_below_its_limit_is_as_likely(self, sampler, monkeypatch):
        """The last of 2⁶³ evenly spaced draws included."""
        drawn = torch.arange(70)[None] * (2**63 // 70) + 2**63 % 70 + 2**63 // 70 - 1
        assert drawn.max() == 2**63 - 1
        monkeypatch.setattr(torch.Tensor, "random_", lambda self: self.copy_(drawn))
        for limit in (1, 2, 7, 10):
            counts = torch.bincount(sampler._below(torch.tensor([[limit]]), 1, 70)[0])
            assert len(counts) == limit
            assert (counts - 70 / limit).abs().max() <= 1

    def test_draws_are_uniform_over_the_other_classes(self, sampler):
        labels = torch.tensor([0, 1, 2, 4])
        draws = sampler.other_classes(labels, 40_000)
        assert draws.shape == (4, 40_000)
        for own, row in zip(labels.tolist(), draws, strict=True):
            count = torch.bincount(row, minlength=10)
            others = own != UNEQUAL
            assert count[~others].sum() == 0
            expected = 40_000 / others.sum()
            assert ((count[others] - expected).abs() < 5 * expected.sqrt()).all()

    def test_same_class_is_uniform_over_the_own(self, sampler):
        draws = sampler.same_class(torch.full((40_000,), 2))
        count = torch.bincount(draws, minlength=10)
        assert count[UNEQUAL != 2].sum() == 0
        assert (count[UNEQUAL == 2] / 10_000 - 1).abs().max() < 0.05


class TestContrastiveLoss:
    def test_by_hand(self):
        # N = 2 and one negative: m/N = ½. h(positive) = 1.5 / 2 = ¾; 1 − h(negative) = .5 / 1 = ½. Z = 2.
        scores = torch.tensor([[3.0, 1.0]]).log()
        value = contrastive_loss(scores, torch.tensor(2.0).log(), 2)
        assert value.item() == pytest.approx(-math.log(0.75) - math.log(0.5), rel=1e-6)

    def test_places_marked_empty_are_as_if_not_there(self):
        full = torch.tensor([[1.0, 0.3, -0.2]])
        marked = torch.tensor([[1.0, -INF, 0.3, -INF, -0.2]], requires_grad=True)
        value = contrastive_loss(marked, torch.tensor(0.7), 9)
        assert value.item() == pytest.approx(contrastive_loss(full, torch.tensor(0.7), 9).item())
        value.backward()
        assert marked.grad[0, [1, 3]].tolist() == [0.0, 0.0]
        assert contrastive_loss(torch.tensor([[1.0, -INF]]), torch.tensor(0.7), 9).isfinite()

    def test_gradcheck(self):
        scores = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
        z = torch.tensor(0.3, dtype=torch.float64)
        assert torch.autograd.gradcheck(lambda s: contrastive_loss(s, z, 12), scores)

    def test_mean_over_the_batch_whatever_its_size_and_order(self):
        scores, z = torch.randn(5, 4, dtype=torch.float64), torch.tensor(0.3)
        samples = [contrastive_loss(scores[i : i + 1], z, 12) for i in range(5)]
        assert torch.allclose(contrastive_loss(scores, z, 12), torch.stack(samples).mean())
        order = torch.tensor([3, 0, 4, 1, 2])
        assert torch.allclose(contrastive_loss(scores[order], z, 12), contrastive_loss(scores, z, 12))


class TestAgainstTheAuthorsFormula:
    @pytest.mark.parametrize("mode", ["exact", "relaxed"])
    def test_two_steps(self, pair, batch, make_batch, mode):
        loss = crd(pair, mode=mode)
        constants = (None, None)
        for turn in range(2):
            now = batch if turn == 0 else Indexed(*make_batch(pair, seed=5)[:2], torch.tensor([1, 2, 3, 4, 8, 7]))
            negatives = loss.sampler.other_classes(now.labels, 5)
            fix_negatives(loss, negatives)
            positives = now.indices if mode == "exact" else loss.sampler.same_class(now.labels)
            loss.sampler.same_class = lambda labels, p=positives: p
            student, teacher = loss.student_head(now.student.embedding), loss.teacher_head(now.teacher.embedding)
            of_student, of_teacher = loss.memory_student.clone(), loss.memory_teacher.clone()
            value = now.through(loss).item()
            l_s, z_s = by_the_authors(student, of_teacher, positives, negatives, 12, 0.07, constants[0])
            l_t, z_t = by_the_authors(teacher, of_student, positives, negatives, 12, 0.07, constants[1])
            assert value == pytest.approx(0.8 * (l_s + l_t), rel=1e-4)
            constants = (z_s, z_t)
            assert loss.log_normaliser_student.item() == pytest.approx(math.log(z_s), rel=1e-5)
            assert loss.log_normaliser_teacher.item() == pytest.approx(math.log(z_t), rel=1e-5)
            del loss.sampler.other_classes, loss.sampler.same_class

    def test_shared_negatives_leave_the_own_class_out(self, pair, batch, monkeypatch):
        loss = crd(pair, shared_negatives=True)
        drawn = torch.tensor([0, 1, 2, 10, 3])
        monkeypatch.setattr(torch, "randint", lambda *a, **k: drawn)
        student, memory = loss.student_head(batch.student.embedding), loss.memory_teacher.clone()
        teacher, other = loss.teacher_head(batch.teacher.embedding), loss.memory_student.clone()
        allowed = [drawn[LABELS[drawn] != label] for label in batch.labels]
        assert {len(a) for a in allowed} == {3, 4}
        value = batch.through(loss).item()
        total = 0.0
        for i, places in enumerate(allowed):
            for anchor, bank, z in (
                (student, memory, loss.log_normaliser_student),
                (teacher, other, loss.log_normaliser_teacher),
            ):
                one, _ = by_the_authors(
                    anchor[i : i + 1], bank, batch.indices[i : i + 1], places[None], 12, 0.07, z.exp().item()
                )
                total += one / 6
        assert value == pytest.approx(0.8 * total, rel=1e-4)


@pytest.mark.parametrize("shared", [False, True])
def test_value_and_gradient_are_those_of_the_loss_on_scores_written_out(pair, batch, shared):
    """By autograd, through a cut of the memory for every sample; in float64."""
    loss = crd(pair, shared_negatives=shared, negatives=12).double()
    batch.through(loss)
    loss.eval()
    anchors = loss.student_head(batch.student.embedding.detach().double()).detach().requires_grad_()
    negatives = torch.tensor([0, 1, 2, 10, 3]) if shared else loss.sampler.other_classes(batch.labels, 9)
    memory, log_z = loss.memory_teacher, loss.log_normaliser_student
    values, unchanged = loss._contrast(anchors, memory, batch.labels, batch.indices, negatives, log_z)
    assert torch.equal(unchanged, log_z)

    rows = negatives.expand(6, -1)
    places = torch.cat([batch.indices[:, None], rows], dim=1)
    scores = torch.einsum("bd,bkd->bk", anchors, memory[places]) / 0.07
    own = torch.cat([torch.zeros(6, 1, dtype=torch.bool), LABELS[rows] == batch.labels[:, None]], dim=1)
    assert own.any() == shared
    expected = contrastive_loss(scores.masked_fill(own, -INF), log_z, 12)
    assert values.mean().item() == pytest.approx(expected.item(), rel=1e-12)
    gradients = [torch.autograd.grad(value, anchors)[0] for value in (values.mean(), expected)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


class TestMemory:
    def test_may_change_before_the_backward_pass(self, pair, batch):
        """Two forward passes in a row: the first one's gradient is that of the memory it saw."""
        loss = crd(pair)
        fix_negatives(loss, loss.sampler.other_classes(batch.labels, 5))
        embedding = batch.student.embedding.detach().requires_grad_()
        batch = batch._replace(student=batch.student._replace(embedding=embedding))
        batch.through(loss)
        alone, first = copy.deepcopy(loss), batch.through(loss)
        batch.through(loss)
        gradients = [torch.autograd.grad(value, embedding)[0] for value in (batch.through(alone), first)]
        assert torch.equal(*gradients)

    def test_moves_by_its_momentum_and_stays_on_the_sphere(self, pair, batch):
        loss = crd(pair, dimensions=2, momentum=0.75)
        loss.memory_student[3] = torch.tensor([1.0, 0.0])
        loss.student_head = torch.nn.Identity()
        batch = batch._replace(student=batch.student._replace(embedding=torch.tensor([[0.0, 1.0]] * 6)))
        batch.through(loss)
        # ¾·(1, 0) + ¼·(0, 1), to unit length.
        assert loss.memory_student[3].tolist() == pytest.approx([3 / math.sqrt(10), 1 / math.sqrt(10)])

    def test_only_the_batch_enters(self, pair, batch):
        loss = crd(pair)
        before = loss.memory_teacher.clone()
        batch.through(loss)
        moved = (loss.memory_teacher != before).any(1).nonzero()[:, 0]
        assert moved.tolist() == sorted(batch.indices.tolist())
        expected = functional.normalize(0.5 * before + 0.5 * loss.teacher_head(batch.teacher.embedding).detach()[0])[3]
        torch.testing.assert_close(loss.memory_teacher[3], expected)
        assert not loss.memory_teacher.requires_grad
        torch.testing.assert_close(loss.memory_teacher[moved].norm(dim=1), torch.ones(6))

    def test_evaluation_changes_no_memory(self, pair, batch):
        loss = crd(pair).eval()
        before = loss.memory_student.clone()
        batch.through(loss)
        assert torch.equal(loss.memory_student, before)

    def test_starts_with_rows_of_length_about_one(self, pair):
        loss = crd(pair, train_labels=torch.arange(4000) % 4, dimensions=128)
        for memory in (loss.memory_student, loss.memory_teacher):
            assert memory.abs().max() <= math.sqrt(3 / 128)
            assert memory.norm(dim=1).mean().item() == pytest.approx(1.0, abs=0.02)

    def test_the_constants_come_from_the_first_batch_only(self, pair, batch, make_batch):
        loss = crd(pair)
        batch.through(loss)
        first = loss.log_normaliser_student.clone()
        Indexed(*make_batch(pair, seed=9)[:2], batch.indices).through(loss)
        assert torch.equal(loss.log_normaliser_student, first)

    def test_the_constants_are_those_of_a_state_that_is_loaded(self, pair, batch, make_batch):
        loss, untouched = crd(pair), crd(pair).state_dict()
        batch.through(loss)
        known = copy.deepcopy(loss.state_dict())
        for state, kept in ((untouched, False), (known, True)):
            loss.load_state_dict(state)
            Indexed(*make_batch(pair, seed=9)[:2], batch.indices).through(loss)
            assert loss.log_normaliser_student.isfinite()
            assert torch.equal(loss.log_normaliser_student, known["log_normaliser_student"]) == kept


class TestDraws:
    def seen(self, loss, batch):
        """Positives and negatives as they reach the contrast."""
        calls = []
        contrast = loss._contrast
        loss._contrast = lambda *a: (calls.append((a[3], a[4])), contrast(*a))[1]
        batch.through(loss)
        del loss._contrast
        return calls

    def test_negatives_are_of_other_classes_and_positives_as_the_mode_says(self, pair, batch):
        partners = set()
        for mode in ("exact", "relaxed"):
            loss = crd(pair, negatives=12, mode=mode)
            for _ in range(40):
                (positives, negatives), other_side = self.seen(loss, batch)
                assert all(map(torch.equal, (positives, negatives), other_side)), "both sides see the same draw"
                assert (LABELS[negatives] != batch.labels[:, None]).all()
                if mode == "exact":
                    assert torch.equal(positives, batch.indices)
                else:
                    assert torch.equal(LABELS[positives], batch.labels)
                    partners.add(int(positives[1]))
        assert partners == {0, 4, 8, 9}, "image 0 should meet all of class 0, itself included"

    def test_no_more_negatives_than_images(self, pair, batch):
        loss = crd(pair, negatives=16384)
        assert loss.negatives == 12
        assert batch.through(loss).isfinite()

    def test_one_class_is_refused(self, pair):
        with pytest.raises(GkdError, match="contrasts classes"):
            crd(pair, train_labels=torch.zeros(8, dtype=torch.int64))


def test_gradcheck(pair, batch):
    loss = crd(pair, critic_temperature=0.5).double().eval()
    batch.through(loss)
    fix_negatives(loss, loss.sampler.other_classes(batch.labels, 5))
    batch = batch._replace(student=batch.student._replace(embedding=batch.student.embedding.detach().double()))
    batch = batch._replace(teacher=batch.teacher._replace(embedding=batch.teacher.embedding.double()))

    def contrast(embedding):
        return batch._replace(student=batch.student._replace(embedding=embedding)).through(loss)

    assert contrast(batch.student.embedding).dtype == torch.float64
    assert torch.autograd.gradcheck(contrast, batch.student.embedding.requires_grad_())
