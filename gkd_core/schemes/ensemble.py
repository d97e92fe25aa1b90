"""Several teachers that answer as one: the mean of their probabilities, plain or weighted by confidence."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gkd_core.errors import GkdError
from gkd_core.methods import METHODS
from gkd_core.models.classifier import Output
from gkd_core.models.ensemble import Ensemble as MeanOfNetworks
from gkd_core.models.ensemble import mean_log_probabilities
from gkd_core.models.network import Network
from gkd_core.schemes.base import DistillationSpec, Options, Scheme
from gkd_core.training.teacher import Teacher, logits_only

if TYPE_CHECKING:
    from gkd_core.config import Params

Weighting = Literal["average", "confidence"]


class EnsembleOptions(Options):
    """How the answers of several teachers become one."""

    weighting: Weighting = "average"
    """`average` counts all alike; `confidence` weighs them sample by sample, the more the surer each is of the
    label."""


class Ensemble(Scheme):
    """Teachers from `teacher.members`, for methods that learn from logits."""

    name = "ensemble"
    summary = "Several teachers answer as one: the mean of their probabilities, plain or weighted by confidence."
    source = "Zhang et al. 2022, CA-MKD, arXiv:2201.00007"
    because = "several teachers have one answer but no common feature maps or embeddings"
    reads = ("teacher.members",)
    options = EnsembleOptions
    teachers = "several"

    def takes(self, method: str) -> bool:
        """Methods that learn from a teacher's logits alone."""
        return METHODS[method].teacher and METHODS[method].reads == "logits"

    def check(self, params: "Params") -> Iterator[str]:
        """There are members, and each knows all classes."""
        from gkd_core.schemes import reading

        yield from super().check(params)
        if not params.teacher.members:
            yield f"distill.scheme {self.name} learns from several teachers: list them in teacher.members"
        parts = [member for member in params.teacher.members if member.classes is not None]
        if parts:
            others = [name for name in reading("teacher.members") if name != self.name]
            yield (
                f"teacher.members gives {parts[0].name} classes of its own, but distill.scheme {self.name} wants "
                f"teachers that know all classes: leave classes out, or set distill.scheme to {' or '.join(others)}"
            )

    def check_teachers(self, spec: DistillationSpec, teachers: Sequence[Network], student: Network, where: str) -> None:
        """Also refuses confidence in classes that a teacher does not know."""
        super().check_teachers(spec, teachers, student, where)
        parts = any(set(teacher.classes) != set(student.classes) for teacher in teachers)
        if parts and spec.scheme_options["weighting"] == "confidence":
            raise GkdError(
                f"a network in {where} knows a part of the classes only, and cannot be weighted by its confidence in "
                f"the others: set distill.scheme_options.{self.name}.weighting to average"
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
        """The mean of all."""
        return TeacherEnsemble(
            networks,
            classes=classes,
            temperature=spec.temperature,
            weighting=spec.scheme_options["weighting"],
            device=device,
            autocast=autocast,
        )


class TeacherEnsemble(Teacher):
    """Several networks that answer as one, for methods that learn from logits.

    The logits are τ·log p̄ with p̄ = Σ_m w_m·σ(z_m / τ), so that softening them by the same τ gives p̄ itself.

    Args:
        classes: class names of the answer; a network that knows only some of them is left out of the mean for the
            others (see `gkd_core.models.ensemble`).
        temperature: τ of the method; 1 for one without.
        weighting: `average` counts all alike; `confidence` weighs sample by sample, see `confidence_weights`.
    Source: Zhang et al. 2022 (arXiv:2201.00007) for `confidence`.
    """

    def __init__(
        self,
        networks: Sequence[Network],
        *,
        classes: tuple[str, ...],
        temperature: float = 1.0,
        weighting: Weighting = "average",
        device: torch.device,
        autocast: bool,
    ) -> None:
        super().__init__(networks, device=device, autocast=autocast)
        self._mean = MeanOfNetworks(self.networks, classes).to(device).eval()
        self._temperature = temperature
        self._weighting = weighting

    def __call__(self, images: Tensor, indices: Tensor, targets: Tensor | None = None) -> Output:
        """τ·log p̄.

        Raises:
            ValueError: weighting is confidence and there are no targets.
        """
        with self.running():
            each = self._mean.log_probabilities(images)
        weights = None
        if self._weighting == "confidence":
            if targets is None:
                raise ValueError("confidence is measured against the labels, and there are none")
            weights = confidence_weights(each, targets)
        # log σ(z / τ) from log σ(z): the two differ by a constant a sample.
        softened = (each / self._temperature).log_softmax(2)
        return logits_only(self._temperature * mean_log_probabilities(softened, weights))


def confidence_weights(log_probabilities: Tensor, targets: Tensor) -> Tensor:
    """w_m = (1 − e^{CE_m} / Σ_j e^{CE_j}) / (M − 1) for each sample: the smaller a teacher's error, the larger.

    For a sample without a label, against which no error is known, all count alike.

    Args:
        log_probabilities: [M, B, C], M ≥ 2, of the teachers at τ = 1.
        targets: [B] int64 labels or [B, C] class probabilities; −1 or zeros where there is no label.
    Returns:
        [M, B], of sum 1 over M.
    Source: Zhang et al. 2022, the weights of its soft-label term (arXiv:2201.00007).
    """
    if targets.ndim == 1:
        classes = targets.clamp_min(0)[None, :, None].expand(len(log_probabilities), -1, 1)
        errors = torch.where(targets >= 0, -log_probabilities.gather(2, classes).squeeze(2), 0.0)
    else:
        errors = -(targets * log_probabilities).sum(2)
    return (1 - errors.softmax(0)) / (len(errors) - 1)


SCHEME = Ensemble()
