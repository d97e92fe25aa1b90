"""Cross-entropy alone: the student without a teacher, which every method has to beat."""

from torch import Tensor

from gkd_core.losses.base import Context, Loss, Step


class CrossEntropy(Loss):
    """L = CE(z_S, y)."""

    across_samples = "nothing"

    def __init__(self, context: Context) -> None:
        super().__init__()

    def forward(self, step: Step) -> dict[str, Tensor]:
        """One term, "ce"."""
        return {"ce": step.cross_entropy(step.student.logits)}
