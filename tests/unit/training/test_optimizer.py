"""Groups of the optimiser, worked out by hand."""

import pytest
import torch
from torch import nn

from gkd_core.losses.cross_entropy import CrossEntropy
from gkd_core.schemes import DistillationSpec, get
from gkd_core.training.learner import Learner
from gkd_core.training.optimizer import backbone_parameters, create_optimizer
from tests.unit.stripes import network


class WithAdapter(CrossEntropy):
    """Cross-entropy that also trains a layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.adapter = nn.Linear(3, 2)


def optimizer(loss=None, learner=None, **how):
    learner = learner or Learner(network("resnet8", 1), loss or CrossEntropy())
    return learner, create_optimizer(learner, **{"name": "sgd", "learning_rate": 0.1, "weight_decay": 0.01} | how)


def settings(found: torch.optim.Optimizer, learner: Learner) -> dict[str, tuple[float, float]]:
    """Rate and weight decay of every parameter by name."""
    names = {id(parameter): name for name, parameter in learner.named_parameters()}
    return {
        names[id(parameter)].removeprefix("network.classifier."): (group["lr"], group["weight_decay"])
        for group in found.param_groups
        for parameter in group["params"]
    }


def test_without_more_said_the_network_is_one_group_as_it_always_was():
    learner, found = optimizer(WithAdapter())
    assert [len(group["params"]) for group in found.param_groups] == [len(list(learner.network.parameters())), 2]
    assert all(a is b for a, b in zip(found.param_groups[0]["params"], learner.network.parameters(), strict=True))
    plain = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1).param_groups[0].keys()
    assert all(group.keys() == plain for group in found.param_groups)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_rates_by_depth_by_hand(name):
    learner, found = optimizer(WithAdapter(), name=name, backbone_lr_factor=0.5, layer_decay=0.1)
    rates = {key: rate for key, (rate, _) in settings(found, learner).items()}
    assert rates["fc.weight"] == rates["fc.bias"] == 0.1  # what is new has the full rate,
    assert rates["loss.adapter.weight"] == rates["loss.adapter.bias"] == 0.1  # and so has the loss's own
    # stem, three blocks, head: four below, three, two, one
    assert rates["conv1.weight"] == rates["bn1.weight"] == pytest.approx(0.1 * 0.5 * 1e-4)
    assert rates["layer1.0.conv1.weight"] == pytest.approx(0.1 * 0.5 * 1e-3)
    assert rates["layer2.0.downsample.0.weight"] == pytest.approx(0.1 * 0.5 * 1e-2)
    assert rates["layer3.0.bn2.bias"] == pytest.approx(0.1 * 0.5 * 1e-1)
    assert len(rates) == len(list(learner.parameters()))
    assert found.param_groups[0]["lr"] == 0.1  # the first group is the head's, whose rate the history shows


def test_biases_and_norms_are_spared_on_request_alone():
    learner, found = optimizer(decay_norms=False)
    decays = {key: decay for key, (_, decay) in settings(found, learner).items()}
    assert decays["conv1.weight"] == decays["fc.weight"] == 0.01
    assert decays["bn1.weight"] == decays["bn1.bias"] == decays["fc.bias"] == 0.0
    learner, found = optimizer(decay_norms=True)
    assert {decay for _, decay in settings(found, learner).values()} == {0.01}


def test_a_transformer_s_class_token_and_positions_are_spared_with_the_norms():
    with torch.device("meta"):
        from gkd_core.models.registry import create_classifier

        vit, swin = (create_classifier(name, 5, image_size=224) for name in ("vit_b_32", "swin_t"))
    assert vit.undecayed() == {"network.class_token", "network.encoder.pos_embedding"}
    assert {name.rpartition(".")[2] for name in swin.undecayed()} == {"relative_position_bias_table"}


def test_peers_have_groups_like_the_student_s():
    spec = DistillationSpec("kd", scheme="mutual")
    learner = get("mutual").create_learner(spec, network("resnet8", 1), (), {"seed": 0}, autocast=False)
    _, plain = optimizer(learner=learner)
    assert len(plain.param_groups) == 2
    _, found = optimizer(learner=learner, backbone_lr_factor=0.5, head_first=True)
    assert [(group["lr"], group.get("backbone", False)) for group in found.param_groups] == [
        (0.1, False), (0.05, True), (0.1, False), (0.05, True),
    ]  # fmt: skip


def test_the_backbone_is_all_but_the_head():
    student = network("resnet8", 1)
    backbone = {id(parameter) for parameter in backbone_parameters(student)}
    rest = {name for name, parameter in student.named_parameters() if id(parameter) not in backbone}
    assert rest == {"classifier.fc.weight", "classifier.fc.bias"}


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(ValueError, match="'adam' is unknown"):
        optimizer(name="adam")
