"""The teacher a method cannot do without: at construction, and at every step."""

from gkd_core.errors import GkdError
from gkd_core.losses.base import Context, Step
from gkd_core.models.classifier import Output
from gkd_core.models.network import Network


def teacher_of(context: Context, method: str) -> Network:
    """The frozen teacher of a method that needs one.

    Raises:
        GkdError: there is none.
    """
    if context.teacher is None:
        raise GkdError(f"distill.method {method} learns from a teacher and was given none: pass --teacher, or take ce")
    return context.teacher


def teacher_output(step: Step) -> Output:
    """What the teacher says about the batch.

    Raises:
        ValueError: the step holds no teacher output.
    """
    if step.teacher is None:
        raise ValueError("the step holds no teacher output")
    return step.teacher
