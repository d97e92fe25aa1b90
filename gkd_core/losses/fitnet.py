"""FitNet: a regressor on the student's middle stage learns to say what the teacher's middle stage says."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from gkd_core.errors import GkdError
from gkd_core.losses.base import Loss, at_least_float32, full_precision, mean_squared_difference, required
from gkd_core.losses.feature_maps import BatchNorm, ChannelAdapter, Shape, student_and_teacher_stages, to_smaller_grid
from gkd_core.models.classifier import Output, StagedNetwork


def hint_loss(student_features: Tensor, teacher_features: Tensor, *, weights: Tensor | None = None) -> Tensor:
    """Mean squared difference of two feature maps, over batch, channels and positions, on the smaller of their grids.

    Args:
        student_features: [B, C, H, W], already in the teacher's channels; computed in at least float32.
        teacher_features: [B, C, H₂, W₂]; no gradient flows into it.
        weights: [B], what each sample counts in the mean; None counts all alike.
    Raises:
        ValueError: batch or channels differ.
    Source: Romero et al. 2015, eq. 3 (arXiv:1412.6550), as a mean (RepDistiller's distiller_zoo/FitNet.py).

    Example:
        >>> hint_loss(torch.zeros(1, 3, 2, 2), torch.full((1, 3, 4, 4), 2.0))
        tensor(4.)
    """
    if student_features.ndim != 4 or student_features.shape[:2] != teacher_features.shape[:2]:
        raise ValueError(
            f"student features {tuple(student_features.shape)} and teacher features {tuple(teacher_features.shape)} "
            "differ in batch or channels"
        )
    student, teacher = to_smaller_grid(at_least_float32(student_features), at_least_float32(teacher_features.detach()))
    return mean_squared_difference(student, teacher.to(student.dtype), weights)


class Regressor(nn.Module):
    """1×1 convolution, batch norm, ReLU: the student's channels → the teacher's, [B, C_S, H, W] → [B, C_T, H, W].

    Source: RepDistiller's ConvReg (models/util.py), whose convolution also changes the grid; here `hint_loss` does.
    Without the batch norm a weight of 100 on a squared error makes SGD at the benchmark's learning rate unstable.
    """

    def __init__(self, student_channels: int, teacher_channels: int, seed: int) -> None:
        super().__init__()
        self.adapter = ChannelAdapter(student_channels, teacher_channels, seed)
        self.norm = BatchNorm(teacher_channels)

    def forward(self, features: Tensor) -> Tensor:
        """In at least float32, also under autocast."""
        with full_precision(features):
            return torch.relu(self.norm(self.adapter(features)))


class FitNet(Loss):
    """L = CE(z_S, y) + weight·MSE(r(f_S), f_T), r a trained regressor that is thrown away with the loss.

    The hint is learned along with the labels, as in the CIFAR-100 benchmark; the paper learns it first.

    Args:
        seed: of the regressor's initial weights.
        weight: of the hint. The default is the CIFAR-100 benchmark's.
        stage: the student's guided stage, counted from 1 at the shallow end; the benchmark's ResNets have three.
        teacher_stage: the teacher's hint; null takes the same number.
    Raises:
        GkdError: there is no teacher, a network has no feature maps, or not that many.
    Source: Romero et al. 2015 (arXiv:1412.6550); RepDistiller's train_student.py (hint layer 2) and mdistiller's
        FitNet.py.

    Example:
        >>> loss = FitNet(student, teacher, stage=2)
        >>> sorted(loss(student(images), teacher(images), labels))
        ['ce', 'hint']
    """

    feature_maps = True
    unlabelled = True
    weighs_samples = True

    def __init__(
        self,
        student: StagedNetwork,
        teacher: StagedNetwork | None,
        *,
        seed: int = 0,
        weight: Annotated[float, Field(ge=0.0)] = 100.0,
        stage: Annotated[int, Field(ge=1)] = 2,
        teacher_stage: Annotated[int, Field(ge=1)] | None = None,
    ) -> None:
        super().__init__()
        student_stages, teacher_stages = student_and_teacher_stages(student, teacher, "fitnet")
        self.weight = weight
        self.stage = _position(stage, student_stages, "stage", "student")
        self.teacher_stage = _position(teacher_stage or stage, teacher_stages, "teacher_stage", "teacher")
        self.regressor = Regressor(student_stages[self.stage][0], teacher_stages[self.teacher_stage][0], seed)

    def forward(self, student: Output, teacher: Output | None, labels: Tensor, **unused: object) -> dict[str, Tensor]:
        """Terms "ce" and "hint"."""
        hint = required(teacher, "fitnet").stages[self.teacher_stage]
        guided = self.regressor(student.stages[self.stage])
        return {
            "ce": self.cross_entropy(student.logits, labels),
            "hint": self.weight * hint_loss(guided, hint, weights=self.sample_weights(labels)),
        }


def _position(number: int, shapes: tuple[Shape, ...], option: str, role: str) -> int:
    if number > len(shapes):
        raise GkdError(
            f"fitnet.{option} is {number}, but the {role} has {len(shapes)} stages: choose one from 1 to {len(shapes)}"
        )
    return number - 1
