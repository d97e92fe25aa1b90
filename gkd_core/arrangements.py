"""ARRANGEMENTS: who teaches whom, a choice beside the method. Which methods make sense inside, and why others do not.

Importing this module imports no torch, so that the configuration is checked before anything heavy is loaded.

Their settings are `distill.arrangement_options` in `gkd_core/config/schema.py`. What each means is in one place:
`gkd_core/training/teacher.py` (one teacher, or several that answer as one), `gkd_core/losses/mutual.py`,
`gkd_core/losses/amalgamation.py`, `components/teacher.py` (members, assistants) and `components/distill.py`
(generations); `gkd_core/training/lesson.py` chooses among them.
"""

from dataclasses import dataclass
from typing import Literal

from gkd_core.errors import GkdError
from gkd_core.methods import METHODS

Weighting = Literal["average", "confidence"]


@dataclass(frozen=True)
class Arrangement:
    """One entry of the registry.

    Attributes:
        summary: one line.
        source: where it was published.
        published: the formula was read in the paper; else it is a reconstruction.
        methods: what works inside: any method, any that learns from a teacher, any that learns from its logits alone,
            or these by name.
        because: why no other, as the end of a sentence.
        elsewhere: parameters that belong to it in other sections, where the steps that need them look.
        temperature: τ of its soft labels when the user names none, where the arrangement brings its own loss.
    """

    summary: str
    source: str
    published: bool
    methods: Literal["any", "taught", "taught by logits"] | tuple[str, ...]
    because: str = ""
    elsewhere: tuple[str, ...] = ()
    temperature: float | None = None

    def takes(self, method: str) -> bool:
        """Whether the method makes sense inside."""
        match self.methods:
            case "any":
                return True
            case "taught":
                return METHODS[method].teacher
            case "taught by logits":
                return METHODS[method].teacher and METHODS[method].reads == "logits"
        return method in self.methods

    @property
    def brings_its_loss(self) -> bool:
        """The arrangement is a loss of its own, of which the method says only whether soft labels are in it."""
        return self.temperature is not None


ARRANGEMENTS: dict[str, Arrangement] = {
    "single": Arrangement(
        summary="One frozen teacher.",
        source="the usual case",
        published=True,
        methods="any",
    ),
    "multi_teacher": Arrangement(
        summary="Several teachers answer as one: the mean of their probabilities, plain or weighted by confidence.",
        source="Zhang et al. 2022, CA-MKD, arXiv:2201.00007",
        published=True,
        methods="taught by logits",
        because="several teachers have one answer but no common feature maps or embeddings",
        elsewhere=("teacher.members",),
    ),
    "assistant": Arrangement(
        summary="A chain: the teacher teaches an assistant, that one the next, the last one the student.",
        source="Mirzadeh et al. 2020, arXiv:1902.03393",
        published=True,
        methods="taught",
        because="every link of the chain learns from the one before",
        elsewhere=("teacher.assistants", "teacher.assistant_distill"),
    ),
    "mutual": Arrangement(
        summary="No teacher: peers on the same batches learn from each other; the best on validation is the student.",
        source="Zhang et al. 2018, arXiv:1706.00384",
        published=True,
        methods=("kd", "ce"),
        because="peers exchange soft labels (kd), or train side by side without (ce)",
        temperature=1.0,
    ),
    "born_again": Arrangement(
        summary="Generations of the same network, each taught by the one before; the last is the student.",
        source="Furlanello et al. 2018, arXiv:1805.04770",
        published=True,
        methods="taught",
        because="every generation learns from the one before",
    ),
    "amalgamation": Arrangement(
        summary="Teachers that know parts of the label set; the student learns all of it.",
        source="after the setting of Shen et al. 2019, arXiv:1811.02796, in logits form",
        published=False,
        methods=("kd",),
        because="each teacher gives soft labels for its own classes, and nothing else can be put together",
        elsewhere=("teacher.members",),
        temperature=4.0,
    ),
    "cross_modal": Arrangement(
        summary="The student sees another view of the same augmented image than the teacher: greyscale, or smaller.",
        source="Gupta et al. 2016, arXiv:1507.00448",
        published=True,
        methods="taught",
        because="only a teacher can pass on what the student's view leaves out",
        elsewhere=("student.channels", "student.image_size"),
    ),
}


def methods_inside(arrangement: str) -> list[str]:
    """Names of the methods that make sense inside an arrangement."""
    return [method for method in METHODS if ARRANGEMENTS[arrangement].takes(method)]


def refuse_mismatch(arrangement: str, method: str, hyperparameters: dict[str, object]) -> None:
    """See that a method makes sense inside an arrangement.

    Args:
        hyperparameters: those the user chose for the method.
    Raises:
        GkdError: it does not, or a hyperparameter would not be read there.
    """
    chosen = ARRANGEMENTS[arrangement]
    if not chosen.takes(method):
        raise GkdError(
            f"distill.arrangement {arrangement} and distill.method {method} do not go together, for {chosen.because}: "
            f"take one of {', '.join(methods_inside(arrangement))}, or another arrangement"
        )
    unread = [name for name in hyperparameters if name != "temperature"] if chosen.brings_its_loss else []
    if unread:
        raise GkdError(
            f"distill.options.{method}.{unread[0]} is not read by distill.arrangement {arrangement}, whose terms have "
            "weights of their own: leave it out (distill.schedule constant with distill.curve.beta_max weighs the soft "
            "labels)"
        )
