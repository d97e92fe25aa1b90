"""Knowledge amalgamation: teachers that know parts of the label set, a student that learns all of it."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gkd_core.losses.base import Loss, required
from gkd_core.losses.soft_labels import TEMPERATURE, kd_loss
from gkd_core.models.classifier import Output
from gkd_core.models.network import Network
from gkd_core.schemes.base import DistillationSpec, Scheme
from gkd_core.training.teacher import Teacher, logits_only

if TYPE_CHECKING:
    from gkd_core.config import Params


class Amalgamation(Scheme):
    """Teachers from `teacher.members`, each with classes of its own, and soft labels over each one's."""

    name = "amalgamation"
    summary = "Teachers that know parts of the label set; the student learns all of it."
    source = "after the setting of Shen et al. 2019, arXiv:1811.02796, in logits form"
    published = False
    because = "each teacher gives soft labels for its own classes, and nothing else can be put together"
    reads = ("teacher.members",)
    teachers = "several"
    temperature = TEMPERATURE

    def takes(self, method: str) -> bool:
        """Soft labels alone."""
        return method == "kd"

    def check(self, params: "Params") -> Iterator[str]:
        """Some member has classes of its own."""
        yield from super().check(params)
        if not any(member.classes is not None for member in params.teacher.members):
            yield (
                f"distill.scheme {self.name} puts together teachers that know parts of the classes: list them in "
                "teacher.members with their classes"
            )

    def create_teacher(
        self,
        spec: DistillationSpec,
        networks: Sequence[Network],
        *,
        classes: tuple[str, ...],
        device: torch.device,
        autocast: bool,
        topology: NDArray[np.float32] | None = None,
    ) -> Teacher:
        """All of them side by side."""
        return TeacherPanel(networks, device=device, autocast=autocast)

    def create_loss(
        self, spec: DistillationSpec, student: Network, networks: Sequence[Network], facts: dict[str, Any]
    ) -> Loss:
        """Soft labels over each teacher's classes."""
        position = {name: i for i, name in enumerate(student.classes)}
        parts = [[position[name] for name in network.classes] for network in networks]
        return AmalgamationLoss(parts, temperature=spec.temperature)


class TeacherPanel(Teacher):
    """Several networks side by side: their logits one after the other, each over the classes it knows."""

    def __call__(self, images: Tensor, indices: Tensor, targets: Tensor | None = None) -> Output:
        """Logits [B, Σ_m C_m]."""
        with self.running():
            return logits_only(torch.cat([network(images).logits for network in self.networks], dim=1))


class AmalgamationLoss(Loss):
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

    unlabelled = True
    weighs_samples = True
    columns: Tensor

    def __init__(self, parts: Sequence[Sequence[int]], *, temperature: float = TEMPERATURE) -> None:
        super().__init__()
        self.temperature = temperature
        self.sizes = [len(part) for part in parts]
        self.register_buffer("columns", torch.tensor([c for part in parts for c in part]), persistent=False)

    def forward(self, student: Output, teacher: Output | None, labels: Tensor, **unused: object) -> dict[str, Tensor]:
        """Terms "ce" and "kd"; the teacher's logits are [B, Σ_m C_m]."""
        student_slices = torch.split(student.logits[:, self.columns], self.sizes, dim=1)
        teacher_slices = torch.split(required(teacher, "kd").logits, self.sizes, dim=1)
        pairs = zip(student_slices, teacher_slices, strict=True)
        weights = self.sample_weights(labels)
        each = [kd_loss(ours, theirs, self.temperature, weights=weights) for ours, theirs in pairs]
        return {"ce": self.cross_entropy(student.logits, labels), "kd": torch.stack(each).sum()}


SCHEME = Amalgamation()
