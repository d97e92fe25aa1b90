"""How a network learns: a method inside an arrangement, as a teacher that answers and a loss for the loop to take."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gkd_core.arrangements import ARRANGEMENTS, refuse_mismatch
from gkd_core.losses.amalgamation import Amalgamation
from gkd_core.losses.base import Loss
from gkd_core.losses.mutual import MutualLearning
from gkd_core.methods import METHODS, check_hyperparameters, create_loss, hyperparameters
from gkd_core.models.network import Network
from gkd_core.training.teacher import OnlineTeacher, Teacher, TeacherEnsemble, TeacherPanel


@dataclass(frozen=True)
class Lesson:
    """How a network learns.

    Attributes:
        method: one of METHODS.
        hyperparameters: of the method; what is not given has the method's default.
        schedule: weight over time by name; None is the method's own.
        curve: its shape, the arguments of `create_schedule`.
        arrangement: one of ARRANGEMENTS.
        options: of the arrangement.
    Raises:
        GkdError: the method does not go with the arrangement, or a hyperparameter is unknown, wrong or not read.
    """

    method: str = "ce"
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    schedule: str | None = None
    curve: dict[str, float | None] = field(default_factory=dict)
    arrangement: str = "single"
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        refuse_mismatch(self.arrangement, self.method, self.hyperparameters)
        checked = check_hyperparameters(self.method, self.hyperparameters)
        object.__setattr__(self, "hyperparameters", checked)
        object.__setattr__(self, "schedule", self.schedule or METHODS[self.method].schedule)

    @property
    def loss_class(self) -> type[Loss]:
        """What computes the loss: the arrangement's own, or the method's."""
        if ARRANGEMENTS[self.arrangement].brings_its_loss:
            own: dict[str, type[Loss]] = {"mutual": MutualLearning, "amalgamation": Amalgamation}
            return own[self.arrangement]
        loss_class: type[Loss] = METHODS[self.method].load()
        return loss_class

    @property
    def temperature(self) -> float:
        """τ of the soft labels: the user's, else the arrangement's, else the method's, else 1."""
        chosen = self.hyperparameters.get("temperature")
        own = ARRANGEMENTS[self.arrangement].temperature
        known = hyperparameters(self.method).get("temperature")
        for temperature in (chosen, own, known.default if known else None):
            if temperature is not None:
                return float(temperature)
        return 1.0

    @property
    def teachers(self) -> str:
        """How many networks teach: "none", "one" or "several"."""
        if self.arrangement == "mutual" or not METHODS[self.method].teacher:
            return "none"
        return "several" if self.arrangement in ("multi_teacher", "amalgamation") else "one"

    def create_teacher(
        self,
        networks: Sequence[Network],
        *,
        classes: tuple[str, ...],
        device: torch.device,
        autocast: bool,
        topology: NDArray[np.float32] | None = None,
    ) -> Teacher | None:
        """What answers for the images of a step, or None where nobody teaches.

        Args:
            networks: the teachers; frozen here.
            classes: of the student.
            autocast: run them in bf16.
            topology: [N, F] persistence features of the training split, for a topological network.
        """
        if self.teachers == "none" or not networks:
            return None
        match self.arrangement:
            case "multi_teacher":
                return TeacherEnsemble(
                    networks,
                    classes=classes,
                    temperature=self.temperature,
                    weighting=self.options.get("weighting", "average"),
                    device=device,
                    autocast=autocast,
                )
            case "amalgamation":
                return TeacherPanel(networks, device=device, autocast=autocast)
        return OnlineTeacher(networks[0], device=device, autocast=autocast, topology=topology)

    def create_loss(self, student: Network, networks: Sequence[Network], *, autocast: bool, **facts: Any) -> Loss:
        """The loss of the method, or of the arrangement that has its own.

        Args:
            networks: the teachers.
            autocast: for networks that the loss runs itself.
            facts: of the training (`RUN_FACTS`).
        """
        match self.arrangement:
            case "mutual":
                return MutualLearning(
                    student,
                    seed=facts["seed"],
                    peers=self.options.get("peers", 2),
                    temperature=self.temperature,
                    exchange=self.method == "kd",
                    autocast=autocast,
                )
            case "amalgamation":
                position = {name: i for i, name in enumerate(student.classes)}
                parts = [[position[name] for name in network.classes] for network in networks]
                return Amalgamation(parts=parts, temperature=self.temperature)
        teacher = None if self.teachers == "none" or not networks else networks[0]
        return create_loss(self.method, student, teacher, self.hyperparameters, **facts)
