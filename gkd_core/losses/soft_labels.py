"""Learning from the teacher's probabilities, softened by a temperature."""

from torch import Tensor
from torch.nn import functional

from gkd_core.losses.base import at_least_float32, batch_mean, expect_same_shape

TEMPERATURE = 4.0
"""τ of every method whose published default is 4: the CIFAR-100 benchmark's."""


def soft_label_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float | Tensor = TEMPERATURE,
    *,
    weights: Tensor | None = None,
) -> Tensor:
    """KL(σ(teacher / τ) ‖ σ(student / τ)), in nats, summed over classes, mean over the batch; no factor τ².

    Args:
        student_logits: [B, C]; any float dtype, computed in at least float32.
        teacher_logits: [B, C]; no gradient flows into it.
        temperature: τ > 0; larger is softer. A tensor [] is not checked, which would make the device wait, and is
            differentiated: through both distributions, and in `kd_loss` through τ².
        weights: [B], what each sample counts in the mean; None counts all alike.
    Raises:
        ValueError: shapes differ, or temperature is not positive.
    Source: Hinton et al. 2015, §2 (arXiv:1503.02531).

    Example:
        >>> soft_label_kl(torch.tensor([[0.0, 0.0]]), torch.tensor([[4.0, 0.0]]))
        tensor(0.1109)
    """
    expect_same_shape("student logits", student_logits, "teacher logits", teacher_logits)
    if not isinstance(temperature, Tensor) and not temperature > 0:
        raise ValueError(f"temperature must be above 0, not {temperature}")
    student = functional.log_softmax(at_least_float32(student_logits) / temperature, dim=1)
    teacher = functional.log_softmax(at_least_float32(teacher_logits.detach()) / temperature, dim=1)
    # reduction="mean" would also divide by the number of classes, which is C times too weak.
    if weights is None:
        return functional.kl_div(student, teacher, reduction="batchmean", log_target=True)
    return batch_mean(functional.kl_div(student, teacher, reduction="none", log_target=True).sum(1), weights)


def kd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float | Tensor = TEMPERATURE,
    *,
    weights: Tensor | None = None,
) -> Tensor:
    """Soft-label distillation: KL(teacher ‖ student) · τ², in nats, mean over the batch.

    τ² keeps the gradient's size when τ changes: for τ → ∞ the loss tends to Σ(z_S − z_T)² / (2·C), logits centred per
    sample. This is the only place where τ² is applied.

    Args:
        student_logits: [B, C]; any float dtype, computed in at least float32.
        teacher_logits: [B, C]; no gradient flows into it.
        temperature, weights: as in `soft_label_kl`.
    Raises:
        ValueError: shapes differ, or temperature is not positive.
    Source: Hinton et al. 2015, §2 (arXiv:1503.02531).

    Example:
        >>> z = torch.tensor([[2.0, 0.0]])
        >>> kd_loss(z, z)
        tensor(0.)
    """
    return temperature**2 * soft_label_kl(student_logits, teacher_logits, temperature, weights=weights)
