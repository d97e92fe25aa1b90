"""Knowledge amalgamation: teachers that know parts of the label set, a student that learns all of it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gkd_core.losses.base import Loss, required
from gkd_core.losses.soft_labels import kd_loss
from gkd_core.models.classifier import Output


class Amalgamation(Loss):
    """L = CE(z_S, y) + Σ_m τ²·KL(σ(z_m/τ) ‖ σ(z_S[A_m]/τ)), A_m the classes that teacher m knows.

    Every teacher speaks about every sample, also about those of classes it never saw: given that it is one of mine,
    which? Parts may overlap.

    A reconstruction: the setting is the source's, which amalgamates features; that logits are sliced and compared as
    soft labels is ours.

    Args:
        parts: A_m, positions of teacher m's classes among the student's, in the order of its logits.
        temperature: τ of the soft labels.
    Source: the setting, Shen et al. 2019 (arXiv:1811.02796); the formula is ours.
    """

    columns: Tensor

    def __init__(self, *, parts: Sequence[Sequence[int]], temperature: float = 4.0) -> None:
        super().__init__()
        self.temperature = temperature
        self.sizes = [len(part) for part in parts]
        self.register_buffer("columns", torch.tensor([c for part in parts for c in part]), persistent=False)

    def forward(self, student: Output, teacher: Output | None, labels: Tensor, **unused: object) -> dict[str, Tensor]:
        """Terms "ce" and "kd"."""
        student_slices = torch.split(student.logits[:, self.columns], self.sizes, dim=1)
        teacher_slices = torch.split(required(teacher, "kd").logits, self.sizes, dim=1)
        pairs = zip(student_slices, teacher_slices, strict=True)
        terms = [kd_loss(student_slice, teacher_slice, self.temperature) for student_slice, teacher_slice in pairs]
        return {"ce": self.cross_entropy(student.logits, labels), "kd": torch.stack(terms).sum()}
