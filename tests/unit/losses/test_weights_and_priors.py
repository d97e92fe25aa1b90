"""`class_weights` and `log_priors`: what every method does with them, and what cannot.

A new method joins by being in METHODS; nothing is to be added here.
"""

import copy

import pytest
import torch
from torch.nn import functional

from gkd_core.losses.soft_labels import kd_loss
from gkd_core.methods import METHODS
from gkd_core.models.classifier import Output
from gkd_core.schemes.amalgamation import AmalgamationLoss
from gkd_core.schemes.mutual import mutual_loss
from tests.unit.losses.test_every_method import CLASSES, VARIANTS, Given, numbers

RELATIONS = {"dist", "rkd"}  # between the samples of a batch
NORMS = {("self-distillation", "features")}  # over the batch: the squares of the parts are summed
WEIGHTS = torch.tensor([0.5, 2.0, 1.0, 0.25])
WEIGHED = [(name, options) for name, options in VARIANTS if METHODS[name].load().traits(options).weighs_samples]
every_weighed = pytest.mark.parametrize(("name", "options"), WEIGHED, ids=[f"{n} {o or ''}" for n, o in WEIGHED])


def test_methods_that_compare_samples_with_each_other_and_no_others_refuse_weights():
    assert {name for name, method in METHODS.items() if not method.load().weighs_samples} == RELATIONS


def terms(given: Given, weights: torch.Tensor | None) -> dict[str, float]:
    """With the same random draws and the same memories, whatever the weights."""
    loss, given.loss = given.loss, copy.deepcopy(given.loss)
    given.loss.class_weights = weights
    torch.manual_seed(4)
    found = numbers(given.terms())
    given.loss = loss
    return found


@every_weighed
def test_every_term_is_the_sum_of_the_classes_parts_times_their_weights(name, options):
    given = Given(name, options)
    parts = [terms(given, functional.one_hot(torch.tensor(one), CLASSES).float()) for one in range(CLASSES)]
    weighted = terms(given, WEIGHTS)
    for term, value in terms(given, None).items():
        power = 2 if (name, term) in NORMS else 1
        assert sum(part[term] ** power for part in parts) == pytest.approx(value**power, rel=1e-5)
        expected = sum(weight.item() * part[term] ** power for weight, part in zip(WEIGHTS, parts, strict=True))
        assert weighted[term] ** power == pytest.approx(expected, rel=1e-5), term
        assert weighted[term] != pytest.approx(value, rel=1e-3), f"{term} does not know the weights"


# Left out is what looks at the whole batch in another way: batch norms, the memory's constants, the teacher's RMS.
ALONE = [("kd", {}), ("ctkd", {}), ("dkd", {}), ("cmkd", {}), ("logit-standardisation", {}), ("at", {}),
         ("dynamickd", {}), ("gompertz", {"preset": "paper"})]  # fmt: skip


@pytest.mark.parametrize(("name", "options"), ALONE, ids=[name for name, _ in ALONE])
def test_a_class_of_weight_one_among_zeros_counts_as_its_images_do_alone(name, options):
    given = Given(name, options)
    given.student.eval()
    student, teacher = given.outputs()
    rows = given.labels == 1

    def only(output: Output) -> Output:
        return Output(output.logits[rows], tuple(s[rows] for s in output.stages), output.embedding[rows])

    alone = given.loss(only(student), only(teacher), given.labels[rows], epoch=0.5)
    given.loss.class_weights = torch.tensor([0.0, 1.0, 0.0, 0.0])
    among = given.loss(student, teacher, given.labels, epoch=0.5)
    share = rows.float().mean().item()
    assert 0 < share < 1
    for term, value in numbers(among).items():
        assert value == pytest.approx(share * alone[term].item(), rel=1e-4), term


def test_cross_entropy_with_weights_and_smoothing_is_what_the_formula_says():
    given = Given("ce", {})
    given.loss.class_weights, given.loss.label_smoothing = WEIGHTS, 0.1
    logits = given.student(given.images).logits
    targets = 0.9 * functional.one_hot(given.labels, CLASSES) + 0.1 / CLASSES
    each = -(targets * logits.log_softmax(1)).sum(1)
    assert given.loss.cross_entropy(logits, given.labels).item() == pytest.approx(
        (WEIGHTS[given.labels] * each).mean().item(), rel=1e-6
    )


def test_a_mixed_sample_has_the_mean_weight_of_its_classes():
    given = Given("ce", {})
    given.loss.class_weights = WEIGHTS
    targets = torch.tensor([[0.25, 0.75, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    assert given.loss.sample_weights(targets).tolist() == [0.25 * 0.5 + 0.75 * 2.0, 0.25]


def test_logit_adjustment_is_in_the_cross_entropy_and_nowhere_else():
    """The formula of Menon et al. 2021, eq. 10, at τ = 1: −log of π_y·e^{z_y} / Σ_c π_c·e^{z_c}."""
    priors = torch.tensor([0.7, 0.2, 0.06, 0.04])
    given = Given("kd", {"weight": 0.5})
    plain = numbers(given.terms())
    given.loss.log_priors = priors.log()
    adjusted = numbers(given.terms())
    odds = priors * given.student(given.images).logits.exp()
    expected = -(odds[torch.arange(6), given.labels] / odds.sum(1)).log().mean()
    assert adjusted["ce"] == pytest.approx(0.5 * expected.item(), rel=1e-5)
    assert adjusted["kd"] == plain["kd"]


@pytest.mark.parametrize("name", METHODS)
def test_equal_frequencies_adjust_nothing(name):
    given = Given(name, {})
    torch.manual_seed(4)
    plain = numbers(given.terms())
    again = Given(name, {})
    again.loss.log_priors = torch.full((CLASSES,), 1 / CLASSES).log()
    torch.manual_seed(4)
    assert numbers(again.terms()) == pytest.approx(plain, rel=1e-5)


def test_the_schemes_own_losses_weigh_their_soft_labels_too():
    student, teacher = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    labels, parts = torch.tensor([1, 0, 3]), [[0, 1], [2, 3, 1]]
    loss = AmalgamationLoss(parts)
    loss.class_weights = WEIGHTS
    given = torch.cat([teacher[:, part] for part in parts], 1)
    found = loss(Output(student, (), student), Output(given, (), given), labels)["kd"]
    rows = [
        sum(kd_loss(student[i : i + 1, part], teacher[i : i + 1, part]) for part in parts) * WEIGHTS[labels[i]]
        for i in range(3)
    ]
    assert found.item() == pytest.approx(torch.stack(rows).mean().item(), rel=1e-5)

    weights = WEIGHTS[labels]
    each = [mutual_loss([student[i : i + 1], teacher[i : i + 1]]) * weights[i] for i in range(3)]
    assert mutual_loss([student, teacher], weights=weights).item() == pytest.approx(
        torch.stack(each).mean().item(), rel=1e-5
    )


def test_an_image_without_a_label_has_weight_one_and_no_part_in_the_cross_entropy():
    given = Given("kd", {"weight": 0.5})
    given.loss.class_weights = WEIGHTS
    labels = torch.where(torch.arange(6) % 2 == 0, -1, given.labels)
    mixed = torch.where((labels >= 0)[:, None], functional.one_hot(given.labels, CLASSES).float(), 0.0)
    student, teacher = given.outputs()
    weights = torch.where(labels >= 0, WEIGHTS[given.labels], 1.0)
    each = functional.cross_entropy(student.logits, given.labels, reduction="none")
    for some in (labels, mixed):
        assert given.loss.sample_weights(some).tolist() == weights.tolist()
        terms = given.loss(student, teacher, some)
        assert terms["ce"].item() == pytest.approx((0.5 * weights * each)[labels >= 0].mean().item(), rel=1e-6)
        expected = 0.5 * kd_loss(student.logits, teacher.logits, weights=weights)
        assert terms["kd"].item() == pytest.approx(expected.item(), rel=1e-6)
