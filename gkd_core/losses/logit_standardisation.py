"""Logit standardisation: soft labels of z-scored logits, so that the student need not match the teacher's scale."""

from typing import Annotated

from pydantic import Field
from torch import Tensor

from gkd_core.errors import GkdError
from gkd_core.losses.base import Loss, at_least_float32, required
from gkd_core.losses.soft_labels import kd_loss
from gkd_core.models.classifier import Output, StagedNetwork

# Keeps constant logits finite; the authors' value.
EPSILON = 1e-7


def standardise(logits: Tensor) -> Tensor:
    """Each sample's logits to mean 0 and standard deviation 1 (of a sample, ÷ C − 1): [B, C] → [B, C].

    Any float dtype, computed in at least float32. z and a·z + b, a > 0, give the same.

    Raises:
        ValueError: fewer than three classes; two standardised logits are always ±1/√2, without gradient.
    Source: Sun et al. 2024 (arXiv:2403.01427); mdistiller/distillers/KD.py of
        sunshangquan/logit-standardization-KD.

    Example:
        >>> standardise(torch.tensor([[10.0, 20.0, 30.0]]))
        tensor([[-1.,  0.,  1.]])
    """
    if logits.shape[1] < 3:
        raise ValueError(f"logits of {logits.shape[1]} classes carry nothing once standardised: at least 3 are needed")
    logits = at_least_float32(logits)
    centred = logits - logits.mean(1, keepdim=True)
    return centred / (logits.std(1, keepdim=True) + EPSILON)


def refuse_two_classes(student: StagedNetwork, method: str) -> None:
    """Raises: GkdError: fewer than three classes, with which a method that standardises logits learns nothing."""
    if student.num_classes < 3:
        raise GkdError(
            f"method {method} standardises logits, which leaves nothing to learn with {student.num_classes} classes: "
            "take kd, or data with at least 3"
        )


class LogitStandardisation(Loss):
    """L = w_ce·CE(z_S, y) + w_kd·τ²·KL(σ(ẑ_T/τ) ‖ σ(ẑ_S/τ)), ẑ the standardised logits.

    Args:
        weight_ce: w_ce.
        weight_kd: w_kd.
        temperature: τ of the soft labels. The defaults are the authors' for CIFAR-100.
    Raises:
        GkdError: there is no teacher, or there are fewer than three classes.
    Source: Sun et al. 2024 (arXiv:2403.01427); sunshangquan/logit-standardization-KD.

    Example:
        >>> loss = LogitStandardisation(student, teacher)
        >>> sorted(loss(student(images), teacher(images), labels))
        ['ce', 'kd']
    """

    unlabelled = True
    weighs_samples = True

    def __init__(
        self,
        student: StagedNetwork,
        teacher: StagedNetwork | None,
        *,
        weight_ce: Annotated[float, Field(ge=0.0)] = 0.1,
        weight_kd: Annotated[float, Field(ge=0.0)] = 9.0,
        temperature: Annotated[float, Field(gt=0.0)] = 2.0,
    ) -> None:
        super().__init__()
        required(teacher, "logit-standardisation")
        refuse_two_classes(student, "logit-standardisation")
        self.weight_ce = weight_ce
        self.weight_kd = weight_kd
        self.temperature = temperature

    def forward(self, student: Output, teacher: Output | None, labels: Tensor, **unused: object) -> dict[str, Tensor]:
        """Terms "ce" and "kd"."""
        teacher = required(teacher, "logit-standardisation")
        logits, weights = (standardise(student.logits), standardise(teacher.logits)), self.sample_weights(labels)
        soft = kd_loss(*logits, self.temperature, weights=weights)
        return {"ce": self.weight_ce * self.cross_entropy(student.logits, labels), "kd": self.weight_kd * soft}
