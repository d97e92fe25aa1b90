"""The distill step: trains the student, or one of the references it is compared with."""

from functools import partial
from pathlib import Path
from typing import Any, Literal

from components.fit import ALONE, fit, forget, kept, new_network, step_folder, workspace
from components.launch import launch, must_launch
from components.teacher import lesson_of, open_teachers
from gkd_core import __version__
from gkd_core.config import Params
from gkd_core.data.prepared import PreparedData
from gkd_core.errors import GkdError
from gkd_core.files import folder_digest, read_json, write_json
from gkd_core.models.network import Network, load_network
from gkd_core.records import read_teacher
from gkd_core.training.distributed import joined
from gkd_core.training.lesson import Lesson

Reference = Literal["baseline", "kd"]


def run(
    *,
    data: Path,
    teacher: Path | None,
    out: Path,
    work: Path,
    params: Params,
    reference: Reference | None = None,
) -> dict[str, Any]:
    """Train a student on `data` and write its folder to `out`.

    Args:
        data: folder of the prepare step.
        teacher: folder of the teacher step; None is allowed where nobody teaches, and for generations that begin alone.
        out: appears whole or not at all.
        work: checkpoints live here; started again after an interruption, the training goes on from the last epoch.
        params: reads `student`, `train`, and `distill`; for a reference `references` instead of `distill`.
        reference: "baseline" trains the student alone, "kd" by plain soft labels, without assistants in between; a
            reference that params switch off leaves a folder that says so.
    Returns:
        Facts of the training.
    Raises:
        GkdError: inputs are missing or do not go together.
    """
    off = reference is not None and not getattr(params.references, reference)
    where = {"data": data, "teacher": teacher, "out": out, "work": work}
    if must_launch(params.train) and not off:
        return launch(__name__, params=params, training=params.train, reference=reference, **where)
    with joined(params.train.device):
        if not off:
            return _train(params=params, reference=reference, **where)
        facts = {"trained": False, "role": reference, "reason": f"references.{reference} is false"}
        with step_folder(out, [data, teacher, work]) as folder:
            write_json(folder / "training.json", facts)
        return facts


def _train(
    *, data: Path, teacher: Path | None, out: Path, work: Path, params: Params, reference: Reference | None
) -> dict[str, Any]:
    """`run`, in one process or in each of several."""
    prepared = PreparedData.open(data)
    opened = _without_assistants if reference == "kd" else open_teachers
    teachers = [] if teacher is None else opened(teacher, prepared.info.classes)
    lesson = _lesson(params, reference, len(teachers))
    if lesson.arrangement != "born_again":
        _refuse_misfit(lesson, teachers, prepared.info.classes, teacher)
    inputs = {
        "gkd_version": __version__,
        "data_sha256": prepared.info.sha256,
        "teacher_digest": "" if teacher is None else folder_digest(teacher),
        "config_digest": params.digest("student", "train", "references" if reference else "distill"),
    }
    role = reference or "student"
    space = workspace(work / role, inputs)
    train = _generations if lesson.arrangement == "born_again" else _once
    with step_folder(out, [data, teacher, work]) as folder:
        facts = train(params, prepared, lesson, teachers, role, inputs, space, folder)
    forget(space)
    return facts


def _lesson(params: Params, reference: Reference | None, teachers: int) -> Lesson:
    """How to learn. References read nothing of `distill`: plain KD takes several teachers by their mean."""
    match reference:
        case "baseline":
            return ALONE
        case "kd":
            given = {"weight": params.references.kd_weight, "temperature": params.references.kd_temperature}
            soft = {name: value for name, value in given.items() if value is not None}
            return Lesson("kd", soft, arrangement="multi_teacher" if teachers > 1 else "single")
    distill = params.distill
    options = getattr(distill.arrangement_options, distill.arrangement, None)
    plain = lesson_of(distill)
    return Lesson(
        plain.method,
        plain.hyperparameters,
        plain.schedule,
        plain.curve,
        arrangement=distill.arrangement,
        options={} if options is None else options.model_dump(),
    )


def _without_assistants(folder: Path, classes: tuple[str, ...]) -> list[Network]:
    """Who teaches plain KD: of a chain of assistants the network it begins with, for the chain is compared with what
    that one teaches directly; else the same networks as teach the student."""
    listed = read_teacher(folder)
    trained = listed.get("trained", [])
    if len(trained) > len(listed["networks"]):
        return [load_network(folder / trained[0], classes)]
    return open_teachers(folder, classes)


def _refuse_misfit(lesson: Lesson, teachers: list[Network], classes: tuple[str, ...], folder: Path | None) -> None:
    """Raises: GkdError: the arrangement and the networks in the teacher folder do not go together."""
    if lesson.teachers == "none":
        return
    if not teachers:
        raise GkdError(f"distill.method {lesson.method} learns from a teacher: pass --teacher FOLDER")
    if lesson.teachers == "one" and len(teachers) > 1:
        raise GkdError(
            f"the teacher folder {folder} holds {len(teachers)} networks, but distill.arrangement {lesson.arrangement} "
            "learns from one: set it to multi_teacher or amalgamation, or give another folder"
        )
    parts = any(set(teacher.classes) != set(classes) for teacher in teachers)
    if parts and lesson.options.get("weighting") == "confidence":
        raise GkdError(
            f"a network in the teacher folder {folder} knows a part of the classes only, and cannot be weighted by its "
            "confidence in the others: set distill.arrangement to amalgamation, or the weighting to average"
        )
    if lesson.teachers == "several" and len(teachers) < 2:
        raise GkdError(
            f"the teacher folder {folder} holds one network, but distill.arrangement {lesson.arrangement} learns from "
            "several: list them in teacher.members and run `gkd teacher` again"
        )


def _refuse_same_view(student: Network, teacher: Network) -> None:
    """Raises: GkdError: there is nothing cross-modal about it."""
    view = (student.spec.in_channels, student.spec.image_size)
    if view == (teacher.spec.in_channels, teacher.spec.image_size):
        raise GkdError(
            f"distill.arrangement cross_modal shows the student another view than the teacher, but with "
            f"student.channels and student.image_size as they are both see {view[1]}×{view[1]} pixels in {view[0]} "
            f"channel{'s' if view[0] > 1 else ''}: change them, or set distill.arrangement to single"
        )


def _student(params: Params, prepared: PreparedData, seed: int) -> Network:
    student = params.student
    return new_network(
        student.name, student.stem, prepared, seed, channels=student.channels, image_size=student.image_size
    )


def _once(
    params: Params,
    prepared: PreparedData,
    lesson: Lesson,
    teachers: list[Network],
    role: str,
    inputs: dict[str, Any],
    work: Path,
    folder: Path,
) -> dict[str, Any]:
    """One training."""
    student = _student(params, prepared, params.train.seed)
    if lesson.arrangement == "cross_modal":
        _refuse_same_view(student, teachers[0])
    return fit(
        role=role,
        network=student,
        data=prepared,
        training=params.train,
        folder=folder,
        work=work,
        inputs=inputs,
        lesson=lesson,
        teachers=teachers,
    )


def _generations(
    params: Params,
    prepared: PreparedData,
    lesson: Lesson,
    teachers: list[Network],
    role: str,
    inputs: dict[str, Any],
    work: Path,
    folder: Path,
) -> dict[str, Any]:
    """Born-again: generation g has seed + g and is taught by generation g − 1; the last fills `folder`.

    In the paper the first teacher has the student's architecture. So has ours: where the teacher folder holds one such
    network it is generation 0; else the student trained alone is, on the same budget (bit for bit the baseline).
    """
    parent = None
    if len(teachers) == 1 and teachers[0].spec == _student(params, prepared, 0).spec:
        parent = teachers[0]
    origin = "the student trained alone" if parent is None else "the teacher"
    last = lesson.options["generations"]

    def make(generation: int, parent: Network | None, folder: Path) -> dict[str, Any]:
        return fit(
            role=role,
            network=_student(params, prepared, params.train.seed + generation),
            data=prepared,
            training=params.train.model_copy(update={"seed": params.train.seed + generation}),
            folder=folder,
            work=work / f"generation-{generation}.training",
            inputs=inputs
            | {"generation": generation, "generation_0": origin, "generations_validation_top1": list(accuracies)},
            lesson=ALONE if parent is None else lesson,
            teachers=[] if parent is None else [parent],
            title=f"{role}, generation {generation} of {last},",
        )

    accuracies: list[float] = []
    for generation in range(0 if parent is None else 1, last):
        home = kept(work / f"generation-{generation}", partial(make, generation, parent))
        accuracies.append(read_json(home / "training.json", "the generation")["validation_top1"])
        parent = load_network(home, prepared.info.classes)
    return make(last, parent, folder)
