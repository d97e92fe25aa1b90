"""One frozen teacher: the usual case."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from gkd_core.methods import METHODS
from gkd_core.schemes.base import Scheme

if TYPE_CHECKING:
    from gkd_core.config import Params


class Single(Scheme):
    """The method alone; one without a teacher trains without one."""

    name = "single"
    summary = "One frozen teacher."
    source = "the usual case"

    def takes(self, method: str) -> bool:
        """Any method."""
        return True

    def check(self, params: "Params") -> Iterator[str]:
        """A student with a view of its own is another scheme's, unless nobody teaches it."""
        if not METHODS[params.distill.method].teacher:
            return
        yield from super().check(params)
        student = params.student
        if student.channels is not None or (student.image_size is not None and student.weights is None):
            from gkd_core.schemes import reading

            yield (
                f"student.channels or student.image_size gives the student a view of its own, but distill.scheme is "
                f"{self.name}: set it to {' or '.join(reading('student.channels'))}"
            )


SCHEME = Single()
