"""Several teachers as the loop sees them."""

import math

import pytest
import torch

from gkd_core.models.network import Network, NetworkSpec
from gkd_core.schemes.ensemble import TeacherEnsemble, confidence_weights
from gkd_core.training.teacher import OnlineTeacher

CPU = torch.device("cpu")
CLASSES = ("a", "b", "c")
IMAGES = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(3))
LABELS = torch.tensor([0, 1, 2, 2, 1, 0])
INDICES = torch.arange(6)


def network(seed: int, classes: tuple[str, ...] = CLASSES) -> Network:
    torch.manual_seed(seed)
    return Network(NetworkSpec("resnet8", "auto", classes, 1, 8, (0.3,), (0.2,)))


def several(**arguments) -> tuple[list[Network], TeacherEnsemble]:
    networks = [network(seed) for seed in range(3)]
    return networks, TeacherEnsemble(networks, classes=CLASSES, device=CPU, autocast=False, **arguments)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_softened_logits_are_the_mean_of_the_softened_probabilities(temperature):
    networks, teacher = several(temperature=temperature)
    expected = sum((net(IMAGES).logits / temperature).softmax(1) for net in networks) / 3
    got = teacher(IMAGES, INDICES)
    torch.testing.assert_close((got.logits / temperature).softmax(1), expected)
    torch.testing.assert_close(got.logits, temperature * expected.log())
    assert got.stages == ()
    assert got.embedding.shape == (6, 0)


def test_confidence_by_hand():
    # CE of the label: −ln .5 and −ln .25, so e^CE = 2 and 4; w = (1 − 2/6, 1 − 4/6) / (2 − 1).
    each = torch.tensor([[[0.5, 0.3, 0.2]], [[0.25, 0.5, 0.25]]]).log()
    weights = confidence_weights(each, torch.tensor([0]))
    torch.testing.assert_close(weights, torch.tensor([[2 / 3], [1 / 3]]))
    # e^CE = 1/p of the label for three: 2, 4, 10, sum 16; w = (14, 12, 6) / 16 / 2.
    each = torch.tensor([[[0.5, 0.5]], [[0.25, 0.75]], [[0.1, 0.9]]]).log()
    expected = torch.tensor([[14.0], [12.0], [6.0]]) / 32
    torch.testing.assert_close(confidence_weights(each, torch.tensor([0])), expected)


def test_confidence_with_mixed_labels_weighs_by_the_mixture():
    each = torch.tensor([[[0.5, 0.5]], [[0.2, 0.8]]]).log()
    errors = [math.log(2), -(0.75 * math.log(0.2) + 0.25 * math.log(0.8))]
    share = math.exp(errors[0]) / (math.exp(errors[0]) + math.exp(errors[1]))
    weights = confidence_weights(each, torch.tensor([[0.75, 0.25]]))
    torch.testing.assert_close(weights[:, 0], torch.tensor([1 - share, share]))


def test_weights_of_whole_labels_and_of_certain_mixtures_agree_and_sum_to_one():
    each = torch.randn(4, 6, 3).log_softmax(2)
    by_label = confidence_weights(each, LABELS)
    torch.testing.assert_close(by_label, confidence_weights(each, torch.nn.functional.one_hot(LABELS, 3).float()))
    torch.testing.assert_close(by_label.sum(0), torch.ones(6))


def test_without_a_label_all_teachers_count_alike():
    each = torch.randn(4, 6, 3).log_softmax(2)
    weights = confidence_weights(each, torch.where(LABELS == 1, -1, LABELS))
    torch.testing.assert_close(weights[:, LABELS == 1], torch.full((4, 2), 0.25))
    assert torch.equal(weights[:, LABELS != 1], confidence_weights(each, LABELS)[:, LABELS != 1])


def test_the_confident_teacher_speaks_louder():
    networks, teacher = several(temperature=2.0, weighting="confidence")
    with torch.no_grad():
        logits = torch.stack([net(IMAGES).logits for net in networks])
    weights = confidence_weights(logits.log_softmax(2), LABELS)  # at τ = 1, whatever τ softens
    expected = (weights[:, :, None] * (logits / 2.0).softmax(2)).sum(0)
    torch.testing.assert_close((teacher(IMAGES, INDICES, LABELS).logits / 2.0).softmax(1), expected)
    with pytest.raises(ValueError, match="labels"):
        teacher(IMAGES, INDICES)


@pytest.mark.parametrize("kind", ["one", "several"])
def test_all_are_frozen_in_eval_mode_and_give_no_gradient(kind):
    networks = [network(0).train(), network(1).train()]
    if kind == "one":
        networks = networks[:1]
        teacher = OnlineTeacher(networks[0], device=CPU, autocast=False)
    else:
        teacher = TeacherEnsemble(networks, classes=CLASSES, device=CPU, autocast=False)
    assert teacher.networks == tuple(networks)
    assert not teacher(IMAGES, INDICES, LABELS).logits.requires_grad
    for net in networks:
        assert not any(module.training for module in net.modules())
        assert not any(p.requires_grad for p in net.parameters())


def test_bf16_comes_near_float32():
    networks, full = several(temperature=4.0, weighting="confidence")
    half = TeacherEnsemble(
        networks, classes=CLASSES, temperature=4.0, weighting="confidence", device=CPU, autocast=True
    )
    a, b = (teacher(IMAGES, INDICES, LABELS).logits.softmax(1) for teacher in (full, half))
    assert b.dtype == torch.float32
    torch.testing.assert_close(a, b, atol=2e-2, rtol=0)
