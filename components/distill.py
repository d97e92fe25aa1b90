"""The distill step: trains the student, or one of the references it is compared with."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from components.launch import launch, must_launch
from components.live import followed, no_curves
from components.teacher import find_start, open_teachers, specification, weights_fact
from gkd_core import __version__, schemes
from gkd_core.config import CHANGES_NOTHING, Params
from gkd_core.config.recipes import ResolvedTraining, resolve
from gkd_core.data.prepared import PreparedData
from gkd_core.files import folder_digest, json_digest, write_json
from gkd_core.models.create import build_network
from gkd_core.models.network import Network, load_network
from gkd_core.records import read_teacher, read_teacher_of
from gkd_core.schemes import DistillationSpec
from gkd_core.training.distributed import joined
from gkd_core.training.trainer import EpochHook, Training, removed_when_stopped, start_of
from gkd_core.training.workspace import TEACHER_CACHE, remove_workspace, step_folder, workspace

Reference = Literal["baseline", "kd"]


def run(
    *,
    data: Path,
    teacher: Path | None,
    out: Path,
    work: Path,
    params: Params,
    reference: Reference | None = None,
    on_epoch: EpochHook | None = None,
    dvclive: Path | None = None,
) -> dict[str, Any]:
    """Train a student on `data` and write its folder to `out`.

    Args:
        data: folder of the prepare step.
        teacher: folder of the teacher step; None is allowed where nobody teaches, and for generations that begin alone.
        out: appears whole or not at all.
        work: checkpoints live here; started again after an interruption, the training goes on from the last checkpoint.
        params: reads `student`, `train`, and `distill`; for a reference `references` instead of `distill`; `tracking`
            for where its epochs are logged.
        reference: "baseline" trains the student alone, "kd" by plain soft labels, without assistants in between; a
            reference that params switch off leaves a folder that says so.
        on_epoch: called after every epoch, see `gkd_core.training.trainer.EpochHook`; with `train.devices` above 1 the
            step trains in other processes, which cannot call it.
        dvclive: folder for the curves as DVCLive writes them, epoch by epoch; None writes none.
    Returns:
        Facts of the training.
    Raises:
        GkdError: inputs are missing or do not go together.
    """
    off = reference is not None and not getattr(params.references, reference)
    where: dict[str, Any] = {"data": data, "teacher": teacher, "out": out, "work": work, "dvclive": dvclive}
    if must_launch(params.train) and not off:
        return launch(__name__, params=params, training=params.train, reference=reference, **where)
    with joined(params.train.device):
        if not off:
            return _train(params=params, reference=reference, on_epoch=on_epoch, **where)
        facts = {"trained": False, "role": reference, "reason": f"references.{reference} is false"}
        with step_folder(out, [data, teacher], work, kind=reference or "student") as folder:
            write_json(folder / "training.json", facts)
            no_curves(dvclive)
        return facts


def _train(
    *,
    data: Path,
    teacher: Path | None,
    out: Path,
    work: Path,
    params: Params,
    reference: Reference | None,
    on_epoch: EpochHook | None,
    dvclive: Path | None,
) -> dict[str, Any]:
    """`run`, in one process or in each of several."""
    prepared = PreparedData.open(data)
    if teacher is not None:
        read_teacher_of(teacher, data=data, data_sha256=prepared.info.sha256)
    opened = _without_assistants if reference == "kd" else open_teachers
    teachers = [] if teacher is None else opened(teacher, prepared.info.classes)
    spec = _specification(params, reference, len(teachers))
    start = find_start(params.student, params, "student.")

    def create_student(seed: int) -> Network:
        student = params.student
        how: dict[str, Any] = {"channels": student.channels, "image_size": student.image_size, "option": "student."}
        if start is not None:
            how |= {"weights": start, "head": student.head}
        return build_network(student.name, stem=student.stem, data=prepared, seed=seed, **how)

    student = create_student(params.train.seed)
    facts = {
        "role": reference or "student",
        "gkd_version": __version__,
        "data_sha256": prepared.info.sha256,
        "teacher_digest": "" if teacher is None else folder_digest(teacher),
        "config_digest": params.digest("student", "train", "references" if reference else "distill"),
        **weights_fact(student, start),
    }
    facts["budget_digest"] = _budget(params, resolve(params.train, start_of(student, prepared)), student.weights_digest)
    where = "--teacher FOLDER" if teacher is None else f"the teacher folder {teacher}"
    schemes.get(spec.scheme).check_teachers(spec, teachers, student, where)
    role, space = facts["role"], workspace(work / facts["role"], facts)
    cache, networks = work / TEACHER_CACHE, tuple(teachers)
    training = Training(student, prepared, params.train, spec, networks, facts, title=role, space=space, cache=cache)
    building = step_folder(out, [data, teacher], work, kind=reference or "student")
    with followed(params.tracking, dvclive) as live, building as folder, removed_when_stopped(space):
        result = replace(training, on_epoch=on_epoch, watcher=live).in_scheme(create_student, space)
        result.save(folder)
        live.saved(folder)
    remove_workspace(space)
    return result.facts


def _budget(params: Params, training: ResolvedTraining, weights_digest: str) -> str:
    """Digest of what the student and its references share: the network and its training, wherever they ran."""
    hardware = {"device", "devices", "precision", "threads", *CHANGES_NOTHING}
    content = params.model_dump(mode="json", include={"student"})
    if content["student"].pop("weights") is None:
        del content["student"]["head"]
    else:
        content["student"]["weights_digest"] = weights_digest
    return json_digest(content | {"train": training.model_dump(mode="json", exclude=hardware)})


def _specification(params: Params, reference: Reference | None, teachers: int) -> DistillationSpec:
    """How to learn. References read nothing of `distill`: plain KD takes several teachers by their mean."""
    match reference:
        case "baseline":
            return DistillationSpec()
        case "kd":
            given = {"weight": params.references.kd_weight, "temperature": params.references.kd_temperature}
            soft = {name: value for name, value in given.items() if value is not None}
            return DistillationSpec("kd", soft, scheme=schemes.mean_of_teachers(teachers))
    distill = params.distill
    return specification(distill, distill.scheme, distill.scheme_options.get(distill.scheme, {}))


def _without_assistants(folder: Path, classes: tuple[str, ...]) -> list[Network]:
    """Who teaches plain KD: of a chain of assistants the network it begins with, for the chain is compared with what
    that one teaches directly; else the same networks as teach the student."""
    listed = read_teacher(folder)
    trained = listed.get("trained", [])
    if len(trained) > len(listed["networks"]):
        return [load_network(folder / trained[0], classes)]
    return open_teachers(folder, classes)
