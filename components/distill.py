"""The distill step: a student trained by the chosen method, or one of the references it is compared with."""

from pathlib import Path
from typing import Any, Literal

from components.fit import fit, forget_checkpoint, new_network
from components.teacher import open_teacher
from gkd_core import __version__
from gkd_core.config import Params
from gkd_core.data.prepared import PreparedData
from gkd_core.errors import GkdError
from gkd_core.files import folder_digest, whole_folder, write_json
from gkd_core.methods import METHODS

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
        teacher: folder of the teacher step; None is allowed for a method that learns without one.
        out: appears whole or not at all.
        work: checkpoints live here; started again after an interruption, the training goes on from the last epoch.
        params: reads `student`, `train`, and `distill`; for a reference `references` instead of `distill`.
        reference: "baseline" trains the student alone, "kd" by plain soft labels; a reference that params switch off
            leaves a folder that says so.
    Returns:
        Facts of the training.
    Raises:
        GkdError: inputs are missing or do not go together.
    """
    if reference and not getattr(params.references, reference):
        facts = {"trained": False, "role": reference, "reason": f"references.{reference} is false"}
        with whole_folder(out) as folder:
            write_json(folder / "training.json", facts)
        return facts

    prepared = PreparedData.open(data)
    role = reference or "student"
    match reference:
        case "baseline":
            how: dict[str, Any] = {"method": "ce"}
        case "kd":
            options = {"alpha": params.references.kd_alpha, "temperature": params.references.kd_temperature}
            how = {"method": "kd", "hyperparameters": options}
        case None:
            distill = params.distill
            how = {
                "method": distill.method,
                "hyperparameters": distill.hyperparameters(),
                "schedule": distill.schedule,
                "curve": distill.curve,
            }
    network = None
    if teacher is not None:
        network = open_teacher(teacher, prepared.info.classes)
    elif METHODS[how["method"]].teacher:
        raise GkdError(f"distill.method {how['method']} learns from a teacher: pass --teacher FOLDER")

    sections = ("student", "train", "references" if reference else "distill")
    inputs = {
        "gkd_version": __version__,
        "data_sha256": prepared.info.sha256,
        "teacher_digest": "" if teacher is None else folder_digest(teacher),
        "config_digest": params.digest(*sections),
    }
    student = new_network(params.student.name, params.student.stem, prepared.info, params.train.seed)
    with whole_folder(out) as folder:
        facts = fit(
            role=role,
            network=student,
            data=prepared,
            training=params.train,
            folder=folder,
            work=work / role,
            inputs=inputs,
            teacher=network,
            **how,
        )
    forget_checkpoint(work / role, inputs)
    return facts
