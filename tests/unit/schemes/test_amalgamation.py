"""Teachers that know parts of the label set."""

import math

import pytest
import torch

from gkd_core.models.classifier import Output
from gkd_core.models.network import Network, NetworkSpec
from gkd_core.schemes.amalgamation import AmalgamationLoss, TeacherPanel


def terms(student, teacher, parts, temperature=4.0):
    loss = AmalgamationLoss(parts, temperature=temperature)
    labels = torch.zeros(len(student), dtype=torch.int64)
    return loss(Output(student, (), student), Output(teacher, (), teacher), labels)


def test_slices_by_hand():
    # Student (ln 2, 0, ln 3): over A₁ = (0, 1) it says (2/3, 1/3), over A₂ = (2, 0), in that order, (3/5, 2/5).
    student = torch.tensor([[math.log(2.0), 0.0, math.log(3.0)]], dtype=torch.float64)
    teacher = torch.tensor([[0.0, 0.0, math.log(4.0), 0.0]], dtype=torch.float64)  # (1/2, 1/2) and (4/5, 1/5)
    first = 0.5 * math.log(0.5 / (2 / 3)) + 0.5 * math.log(0.5 / (1 / 3))
    second = 0.8 * math.log(0.8 / 0.6) + 0.2 * math.log(0.2 / 0.4)
    got = terms(student, teacher, [[0, 1], [2, 0]], temperature=1.0)
    assert got["kd"].item() == pytest.approx(first + second, rel=1e-12)
    assert got["ce"].item() == pytest.approx(math.log(6) - math.log(2), rel=1e-12)


def test_temperature_squared():
    student, teacher = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 5, dtype=torch.float64)
    softened = terms(student / 3, teacher / 3, [[0, 1, 2], [2, 3]], temperature=1.0)["kd"]
    got = terms(student, teacher, [[0, 1, 2], [2, 3]], temperature=3.0)["kd"]
    assert got.item() == pytest.approx(9 * softened.item(), rel=1e-12)


def test_a_panel_gives_the_answers_side_by_side_without_gradient():
    networks = []
    for seed, classes in enumerate((("a", "b"), ("b", "c"))):
        torch.manual_seed(seed)
        networks.append(Network(NetworkSpec("resnet8", "auto", classes, 1, 8, (0.3,), (0.2,))))
    images = torch.rand(6, 1, 8, 8)
    teacher = TeacherPanel(networks, device=torch.device("cpu"), autocast=False)
    got = teacher(images, torch.arange(6))
    torch.testing.assert_close(got.logits, torch.cat([net(images).logits for net in networks], 1))
    assert not got.logits.requires_grad
    assert not any(module.training for net in networks for module in net.modules())
    assert not any(p.requires_grad for net in networks for p in net.parameters())
