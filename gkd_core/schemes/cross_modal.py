"""The student sees another view of the same augmented image than the teacher: greyscale, or smaller."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from gkd_core.errors import GkdError
from gkd_core.schemes.base import DistillationSpec, Scheme

if TYPE_CHECKING:
    from gkd_core.config import Params
    from gkd_core.models.network import Network


class CrossModal(Scheme):
    """Every network converts the images for itself, so nothing is left to do but to see that the views differ."""

    name = "cross_modal"
    summary = "The student sees another view of the same augmented image than the teacher: greyscale, or smaller."
    source = "Gupta et al. 2016, arXiv:1507.00448"
    because = "only a teacher can pass on what the student's view leaves out"
    reads = ("student.channels", "student.image_size")

    def check(self, params: "Params") -> Iterator[str]:
        """The student has a view of its own."""
        yield from super().check(params)
        if not params.student.has_own_view:
            yield (
                f"distill.scheme {self.name} shows the student another view than the teacher: set student.channels or "
                "student.image_size"
            )

    def check_teachers(
        self, spec: DistillationSpec, teachers: Sequence["Network"], student: "Network", where: str
    ) -> None:
        """Also refuses two views that are the same."""
        super().check_teachers(spec, teachers, student, where)
        channels, size = view = (student.spec.in_channels, student.spec.image_size)
        if view == (teachers[0].spec.in_channels, teachers[0].spec.image_size):
            raise GkdError(
                f"distill.scheme {self.name} shows the student another view than the teacher, but with "
                f"student.channels and student.image_size as they are both see {size}×{size} pixels in {channels} "
                f"channel{'s' if channels > 1 else ''}: change them, or take another distill.scheme"
            )


SCHEME = CrossModal()
