"""A loss in a loop of one's own keeps to the limits in its signature, and says what is no network and no output."""

import pytest
import torch
from torchvision.models import resnet18

from gkd_core import losses
from gkd_core.errors import GkdError
from gkd_core.losses.base import Loss
from tests.unit.stripes import network


@pytest.fixture(scope="module")
def pair():
    return network("resnet8", 0), network("resnet8", 1).eval()


@pytest.mark.parametrize(
    ("loss", "name", "value"),
    [
        ("KnowledgeDistillation", "weight", 7.0),
        ("Gompertz", "temperature", -3.0),
        ("Gompertz", "solver", "x"),
        ("FitNet", "stage", 1.5),
    ],
)
def test_a_hyperparameter_beyond_its_limits_is_named(pair, loss, name, value):
    with pytest.raises(ValueError, match=rf"{loss}\.{name} is "):
        getattr(losses, loss)(*pair, **{name: value})


def test_what_is_missing_or_unknown_is_still_a_type_error(pair):
    with pytest.raises(TypeError, match="train_labels"):
        losses.ContrastiveRepresentation(*pair)
    with pytest.raises(TypeError, match="wieght"):
        losses.KnowledgeDistillation(*pair, wieght=1.0)


def test_a_loss_of_one_s_own_may_leave_types_out(pair):
    class Own(Loss):
        def __init__(self, student, teacher, *, factor, other: "Nowhere" = None):  # noqa: F821
            super().__init__()
            self.factor = factor

        def forward(self, student, teacher, labels, *, epoch=0.0, indices=None):
            return {"ce": self.factor * self.missing}

    loss = Own(*pair, factor=2)
    assert loss.factor == 2
    with pytest.raises(AttributeError, match="missing"):
        loss(None, None, torch.zeros(1))


def test_a_bare_module_and_bare_tensors_are_sent_to_wrap(pair):
    with pytest.raises(GkdError, match=r"stage_shapes.*ResNet.*gkd\.wrap"):
        losses.Gompertz(resnet18(), pair[1])
    logits = torch.zeros(2, 4)
    with pytest.raises(GkdError, match=r"logits.*Tensor.*gkd\.wrap"):
        losses.KnowledgeDistillation(*pair)(logits, logits, torch.zeros(2, dtype=torch.int64))
