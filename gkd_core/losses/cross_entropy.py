"""Cross-entropy alone: the student without a teacher, which every method has to beat."""

from torch import Tensor

from gkd_core.losses.base import Loss
from gkd_core.models.classifier import Output, StagedNetwork


class CrossEntropy(Loss):
    """L = CE(z_S, y), in nats, mean over the batch.

    Example:
        >>> CrossEntropy(student)(student(images), None, labels)["ce"].shape
        torch.Size([])
    """

    weighs_samples = True

    def __init__(self, student: StagedNetwork | None = None, teacher: StagedNetwork | None = None) -> None:
        super().__init__()

    def forward(self, student: Output, teacher: Output | None, labels: Tensor, **unused: object) -> dict[str, Tensor]:
        """One term, "ce"."""
        return {"ce": self.cross_entropy(student.logits, labels)}
