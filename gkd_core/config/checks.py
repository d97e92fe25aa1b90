"""What the sections of `params.yaml` say against each other, and against the data."""

from collections.abc import Iterator

from gkd_core.arrangements import refuse_mismatch
from gkd_core.config.schema import AugmentConfig, MethodConfig, Params
from gkd_core.errors import GkdError


def contradictions(params: Params) -> Iterator[str]:
    """What the sections say against each other, a sentence each."""
    teacher, student, distill = params.teacher, params.student, params.distill
    if teacher.topological and not params.data.topology:
        yield "teacher.topological is true but data.topology is false: set both"
    arrangement = distill.arrangement
    try:
        refuse_mismatch(arrangement, distill.method, {})
    except GkdError as error:
        yield str(error)
    parts = [member for member in teacher.members if member.classes is not None]
    match arrangement:
        case "multi_teacher" if not teacher.members:
            yield "distill.arrangement multi_teacher learns from several teachers: list them in teacher.members"
        case "multi_teacher" if parts:
            yield (
                f"teacher.members gives {parts[0].name} classes of its own, but distill.arrangement multi_teacher "
                "wants teachers that know all classes: leave classes out, or set distill.arrangement to amalgamation"
            )
        case "amalgamation" if not parts:
            yield (
                "distill.arrangement amalgamation puts together teachers that know parts of the classes: list them in "
                "teacher.members with their classes"
            )
        case "assistant" if not teacher.assistants:
            yield "distill.arrangement assistant needs assistants: name them in teacher.assistants"
        case "assistant":
            for field in MethodConfig.model_fields:
                mine, theirs = getattr(distill, field), getattr(teacher.assistant_distill, field)
                if field == "options":
                    mine, theirs = mine.get(distill.method, {}), theirs.get(distill.method, {})
                if mine != theirs:
                    yield (
                        f"distill.{field} and teacher.assistant_distill.{field} differ ({mine} and {theirs}), but one "
                        "method teaches the whole chain: write the same in both"
                    )
        case "cross_modal" if not student.has_own_view:
            yield (
                "distill.arrangement cross_modal shows the student another view than the teacher: set "
                "student.channels or student.image_size"
            )
    if teacher.members and arrangement not in ("multi_teacher", "amalgamation"):
        yield (
            f"teacher.members lists {len(teacher.members)} teachers, but distill.arrangement {arrangement} does not "
            "learn from several: set it to multi_teacher or amalgamation, or empty the list"
        )
    if teacher.assistants and arrangement != "assistant":
        yield (
            f"teacher.assistants names assistants, but distill.arrangement is {arrangement}: set it to assistant, or "
            "empty the list"
        )
    if student.has_own_view and arrangement == "single":
        yield (
            "student.channels or student.image_size gives the student a view of its own, but distill.arrangement is "
            "single: set it to cross_modal"
        )


def refuse_wide_augmentation(augment: AugmentConfig, image_size: int, *, section: str = "train") -> None:
    """See that random crops and squares leave something of the image.

    Args:
        image_size: side of the images in pixels, which is known only from the prepared data.
        section: whose `augment` it is.
    Raises:
        GkdError: they may not.
    """
    wide = [
        f"{section}.augment.{name} is {pixels}, but the images are {image_size} pixels wide: set it below that"
        for name, pixels in (("crop_padding", augment.crop_padding), ("cutout", augment.cutout))
        if pixels is not None and pixels >= image_size
    ]
    if wide:
        raise GkdError("\n".join(wide))
