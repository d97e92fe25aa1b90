"""What a scheme is asked: does it go with the configuration, who answers, what is learned, in how many runs."""

from abc import ABC
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from gkd_core.errors import GkdError
from gkd_core.methods import METHODS, check_hyperparameters, create_loss, hyperparameters, is_method
from gkd_core.mistakes import mistakes
from gkd_core.plugins import in_words, unknown_name

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from gkd_core.config import Params, TrainingConfig
    from gkd_core.losses.base import Loss
    from gkd_core.models.network import Network
    from gkd_core.training.learner import Learner
    from gkd_core.training.result import Result
    from gkd_core.training.teacher import Teacher
    from gkd_core.training.trainer import Training


class Options(BaseModel):
    """A scheme's own settings, `distill.scheme_options.NAME`; unknown keys and wrong types are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


@dataclass(frozen=True)
class DistillationSpec:
    """How a network learns: a method inside a scheme.

    Attributes:
        method: one of METHODS.
        hyperparameters: of the method; what is not given has the method's default.
        schedule: β(t) by name; None is the method's own.
        curve: its shape, the arguments of `create_schedule`.
        scheme: who teaches whom.
        scheme_options: of the scheme; what is not given has the scheme's default.
    Raises:
        GkdError: the method does not go with the scheme, or an option is unknown, wrong or not read.
    """

    method: str = "ce"
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    schedule: str | None = None
    curve: dict[str, float | None] = field(default_factory=dict)
    scheme: str = "single"
    scheme_options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        from gkd_core import schemes

        if not is_method(self.method):
            raise GkdError(unknown_name("distill.method", self.method, METHODS))
        scheme = schemes.get(self.scheme)
        scheme.check_method(self.method, self.hyperparameters)
        object.__setattr__(self, "hyperparameters", check_hyperparameters(self.method, self.hyperparameters))
        object.__setattr__(self, "schedule", self.schedule or METHODS[self.method].schedule)
        object.__setattr__(self, "scheme_options", scheme.check_options(self.scheme_options).model_dump())

    @property
    def temperature(self) -> float:
        """τ of the soft labels: the user's, else the scheme's, else the method's, else 1."""
        from gkd_core import schemes

        chosen, known = self.hyperparameters.get("temperature"), hyperparameters(self.method).get("temperature")
        for temperature in (chosen, schemes.get(self.scheme).temperature, known.default if known else None):
            if temperature is not None:
                return float(temperature)
        return 1.0


class Scheme(ABC):
    """One frozen teacher, or none, for one student: what the others depart from.

    Class attributes:
        name: of the file.
        summary: one line.
        source: where it was published.
        published: the formula was read in the paper; else it is a reconstruction.
        because: why it takes no other methods, as the end of a sentence.
        reads: parameters of other sections that belong to it, where the steps that need them look.
        options: the model of its own settings.
        teachers: how many networks teach: "none", "one" or "several".
        temperature: τ when the user names none, where the scheme brings a loss of its own, else None.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str]
    published: ClassVar[bool] = True
    because: ClassVar[str] = ""
    reads: ClassVar[tuple[str, ...]] = ()
    options: ClassVar[type[Options]] = Options
    teachers: ClassVar[Literal["none", "one", "several"]] = "one"
    temperature: ClassVar[float | None] = None

    # When the configuration is read

    def takes(self, method: str) -> bool:
        """Whether a method makes sense inside; unless a scheme says otherwise, one that learns from a teacher."""
        return METHODS[method].teacher

    @property
    def methods(self) -> list[str]:
        """Names of the methods that make sense inside."""
        return [method for method in METHODS if self.takes(method)]

    @property
    def has_own_loss(self) -> bool:
        """It is a loss of its own, of which the method says only whether soft labels are in it."""
        return self.temperature is not None

    def check_method(self, method: str, chosen: dict[str, Any]) -> None:
        """See that a method and the hyperparameters chosen for it make sense inside.

        Raises:
            GkdError: they do not.
        """
        if not self.takes(method):
            raise GkdError(
                f"distill.scheme {self.name} and distill.method {method} do not go together, for {self.because}: "
                f"take one of {', '.join(self.methods)}, or another scheme"
            )
        unread = [name for name in chosen if name != "temperature"] if self.has_own_loss else []
        if unread:
            raise GkdError(
                f"distill.options.{method}.{unread[0]} is not read by distill.scheme {self.name}, whose terms have "
                "weights of their own: leave it out (distill.schedule constant with distill.curve.beta_max weighs the "
                "soft labels)"
            )

    def check_options(self, given: dict[str, Any]) -> Options:
        """Its settings with types, limits and defaults.

        Raises:
            GkdError: unknown names, wrong types, values out of range: all of them, a line each.
        """
        try:
            return self.options.model_validate(given)
        except ValidationError as error:
            wrong = mistakes(error, self.options, at=("distill", "scheme_options", self.name))
            raise GkdError("\n".join(mistake.sentence for mistake in wrong)) from None

    def check(self, params: "Params") -> Iterator[str]:
        """What the sections say against it, a sentence each. A scheme adds its own."""
        from gkd_core.schemes import reading

        teacher = params.teacher
        given = {
            "teacher.members": f"lists {len(teacher.members)} teachers" if teacher.members else "",
            "teacher.assistants": "names assistants" if teacher.assistants else "",
        }
        for key, what in given.items():
            if what and key not in self.reads:
                yield (
                    f"{key} {what}, but distill.scheme {self.name} does not read it: set distill.scheme to "
                    f"{' or '.join(reading(key))}, or empty the list"
                )

    def check_training(self, training: "TrainingConfig") -> None:  # noqa: B027
        """Raises: GkdError: a setting of the training makes no sense here."""

    # When networks are there

    def check_teachers(
        self, spec: DistillationSpec, teachers: Sequence["Network"], student: "Network", where: str
    ) -> None:
        """See that as many networks teach as it wants, and that one alone knows the student's classes in their order.

        Args:
            where: the teachers come from, or the option that takes one, for the sentence.
        Raises:
            GkdError: they do not go together.
        """
        if self.teachers == "none" or not METHODS[spec.method].teacher:
            return
        if not teachers:
            raise GkdError(f"distill.method {spec.method} learns from a teacher: pass {where}")
        if self.teachers == "one" and len(teachers) > 1:
            from gkd_core.schemes import reading

            raise GkdError(
                f"{where} holds {len(teachers)} networks, but distill.scheme {self.name} learns from one: set it to "
                f"{' or '.join(reading('teacher.members'))}, or give another teacher"
            )
        known, wanted = teachers[0].classes, student.classes
        if self.teachers == "one" and known != wanted:
            how = "in another order" if set(known) == set(wanted) else f"and the student {_shown(wanted)}"
            raise GkdError(
                f"{where} knows the classes {_shown(known)}, {how}: give one that was trained on them, or load it with "
                "load_model(…, data=data), which picks the data's classes by name"
            )
        if self.teachers == "several" and len(teachers) < 2:
            raise GkdError(
                f"{where} holds one network, but distill.scheme {self.name} learns from several: list them in "
                "teacher.members and run `gkd teacher` again"
            )

    def create_teacher(
        self,
        spec: DistillationSpec,
        networks: Sequence["Network"],
        *,
        classes: tuple[str, ...],
        device: "torch.device",
        autocast: bool,
        topology: "NDArray[np.float32] | None" = None,
    ) -> "Teacher | None":
        """What answers for the images of a step, or None where nobody teaches.

        Args:
            networks: the teachers; frozen here.
            classes: of the student.
            autocast: run them in bf16.
            topology: [N, F] persistence features of the training split, for a topological network.
        """
        from gkd_core.training.teacher import OnlineTeacher

        if not networks or not METHODS[spec.method].teacher:
            return None
        return OnlineTeacher(networks[0], device=device, autocast=autocast, topology=topology)

    def create_loss(
        self, spec: DistillationSpec, student: "Network", networks: Sequence["Network"], facts: dict[str, Any]
    ) -> "Loss":
        """The method's loss.

        Args:
            networks: the teachers. Where several answer as one, the method sees the first: only methods that look no
                further than logits get there.
            facts: of the training, see `gkd_core.methods.RUN_FACTS`.
        """
        teacher = networks[0] if networks and METHODS[spec.method].teacher else None
        return create_loss(spec.method, student, teacher, spec.hyperparameters, **facts)

    def create_learner(
        self,
        spec: DistillationSpec,
        student: "Network",
        networks: Sequence["Network"],
        facts: dict[str, Any],
        *,
        autocast: bool,
    ) -> "Learner":
        """Student and loss as what is trained; the arguments are those of `create_loss`."""
        from gkd_core.training.learner import Learner

        with in_words("method", spec.method):
            loss = self.create_loss(spec, student, networks, facts)
            return Learner(student, loss, autocast=autocast, method=spec.method)

    def train(self, training: "Training", create_student: Callable[[int], "Network"], work: Path | None) -> "Result":
        """Train the student: once, unless a scheme says otherwise.

        Args:
            training: what is trained, on what, how.
            create_student: seed → an untrained student.
            work: folder for checkpoints and finished parts; None keeps nothing.
        """
        return training.run(work)


def _shown(classes: Sequence[str]) -> str:
    more = f", … ({len(classes)})" if len(classes) > 3 else ""
    return ", ".join(classes[:3]) + more
