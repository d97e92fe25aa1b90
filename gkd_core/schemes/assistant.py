"""A chain of assistants between teacher and student, each taught by the one before."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from gkd_core.schemes.base import Scheme

if TYPE_CHECKING:
    from gkd_core.config import Params


class Assistant(Scheme):
    """The teacher step trains the chain and hands on its last, so for the student there is one teacher."""

    name = "assistant"
    summary = "A chain: the teacher teaches an assistant, that one the next, the last one the student."
    source = "Mirzadeh et al. 2020, arXiv:1902.03393"
    because = "every link of the chain learns from the one before"
    reads = ("teacher.assistants", "teacher.assistant_distill")

    def check(self, params: "Params") -> Iterator[str]:
        """There are assistants, and one method teaches the whole chain."""
        yield from super().check(params)
        distill, chain = params.distill, params.teacher.assistant_distill
        if not params.teacher.assistants:
            yield f"distill.scheme {self.name} needs assistants: name them in teacher.assistants"
            return
        for field in type(chain).model_fields:
            ours, theirs = getattr(distill, field), getattr(chain, field)
            if field == "options":
                ours, theirs = ours.get(distill.method, {}), theirs.get(distill.method, {})
            if ours != theirs:
                yield (
                    f"distill.{field} and teacher.assistant_distill.{field} differ ({ours} and {theirs}), but one "
                    "method teaches the whole chain: write the same in both"
                )


SCHEME = Assistant()
