"""Images without a label: the teacher's answers teach on them, the labels' terms leave them out."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from gkd_core.data.shards import Shards, sharing
from gkd_core.losses.base import mean_over_labelled
from gkd_core.methods import METHODS
from tests.unit.losses.test_every_method import INDICES, Given

OF_LABELS = ("ce", "gradient")  # terms that labels enter
WITHOUT = torch.tensor([False, True, False, True, True, False])
ABLE = [name for name, method in METHODS.items() if method.load().unlabelled]


def part(given: Given, rows: Tensor) -> dict[str, Tensor]:
    """The terms of some rows of the batch alone."""
    student, teacher = (
        output._replace(
            logits=output.logits[rows],
            stages=tuple(stage[rows] for stage in output.stages),
            embedding=output.embedding[rows],
        )
        for output in given.outputs()
    )
    return given.loss(student, teacher, given.labels[rows], epoch=0.5, indices=INDICES[rows])


def test_methods_that_need_every_label_say_so():
    assert set(METHODS) - set(ABLE) == {"ce", "crd", "dkd"}


@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize("name", ABLE)
def test_labels_teach_on_labelled_images_and_the_teacher_on_all(name, pooled, nothing_read_back):
    given = Given(name, {}, pooled=pooled)
    given.loss.eval().label_smoothing = 0.1  # batch norms would see other statistics in a part of the batch
    some = torch.where(WITHOUT, -1, given.labels)
    with nothing_read_back():
        terms = given.terms(some)
        sum(terms.values()).backward()
    assert all(p.grad.isfinite().all() for p in given.student.parameters())
    of_labelled, of_all = part(given, ~WITHOUT), given.terms()
    for term, value in terms.items():
        torch.testing.assert_close(value, (of_labelled if term in OF_LABELS else of_all)[term], msg=term)


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("name", ["kd", "gompertz"])
def test_processes_with_unlike_shares_come_to_the_loss_of_the_whole_batch(name, mixed):
    given = Given(name, {"weight_wasserstein": 0.0} if name == "gompertz" else {})
    given.loss.label_smoothing = 0.1
    some = torch.where(WITHOUT, -1, given.labels)
    if mixed:  # of two images, as mixup makes them; of an image without a label nothing is known
        one_hot = functional.one_hot(given.labels, 4).float()
        some = torch.where(WITHOUT[:, None], 0.0, 0.7 * one_hot + 0.3 * one_hot.flip(1))
    whole = Shards((6,), 0, labelled=3)
    with sharing(whole):
        expected = given.terms(some)
    student, teacher = given.outputs()
    combined = dict.fromkeys(expected, 0.0)
    for rank, rows in enumerate((slice(0, 4), slice(4, 5), slice(5, 6))):  # the second has no label at all
        shards = Shards((4, 1, 1), rank, labelled=3)
        outputs = [
            output._replace(
                logits=output.logits[rows],
                stages=tuple(stage[rows] for stage in output.stages),
                embedding=output.embedding[rows],
            )
            for output in (student, teacher)
        ]
        with sharing(shards):
            for term, value in given.loss(*outputs, some[rows], epoch=0.5).items():
                combined[term] = combined[term] + shards.weight * value / 3
    for term, value in expected.items():
        torch.testing.assert_close(combined[term], value, msg=term)


def test_with_every_label_known_the_mean_is_the_plain_one_to_the_bit():
    each = torch.rand(7, requires_grad=True)
    labels = torch.arange(7)
    mean = mean_over_labelled(each, labels)
    assert torch.equal(mean, each.mean())
    (gradient,) = torch.autograd.grad(mean, each)
    assert torch.equal(gradient, torch.autograd.grad(each.mean(), each)[0])
    assert mean_over_labelled(each, torch.full((7,), -1)) == 0
