"""The small JSON files of the steps' folders, read with their types checked. Imports no torch."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from gkd_core.errors import GkdError
from gkd_core.files import Shape, command_of, expect_kind, expect_shape, folder_digest, read_json

ROLES = ("teacher", "baseline", "kd", "student")  # of the networks that a report measures


def _plain_name(name: str) -> str:
    if name in ("", ".", "..") or set(name) & {"/", "\\", "\0"}:
        raise ValueError(f"{name!r} is no plain name")
    return name


PlainName = Annotated[str, AfterValidator(_plain_name)]  # of a file or folder in a folder, and no way out of it


def read_teacher(folder: Path) -> dict[str, Any]:
    """teacher.json. Its `networks`, one at least, are names of folders inside `folder`.

    Raises:
        GkdError: it is missing, damaged, or names what is no folder's plain name.
    """
    expect_kind(folder, "teacher")
    path, names = folder / "teacher.json", Annotated[list[PlainName], Field(min_length=1)]
    content = read_json(path, "the teacher folder", shape={"networks": names, "data_sha256": str})
    if content.get("trained"):
        expect_shape(path, content, {"trained": names})
    return content


def read_teacher_of(folder: Path, *, data: Path, data_sha256: str) -> dict[str, Any]:
    """teacher.json of a teacher that was made for this data.

    Raises:
        GkdError: it was made for other data, or see `read_teacher`.
    """
    content = read_teacher(folder)
    if content["data_sha256"] != data_sha256:
        raise GkdError(
            f"the teacher in {folder} was made for other data than {data} holds: run `gkd teacher` again, or give "
            "another --teacher or --data"
        )
    return content


def read_training(folder: Path, role: str) -> dict[str, Any]:
    """training.json of a network's folder; with `trained` false it only says why there is none (`reason`).

    Args:
        role: what the folder must hold: baseline, kd, student, or network for one of a teacher.
    Raises:
        GkdError: it holds another, is missing or damaged, or speaks of a training without saying of which network on
            what.
    """
    expect_kind(folder, role)
    path = folder / "training.json"
    content = read_json(path, f"the {role} folder", keys=["trained"])
    if content["trained"]:
        names = ("network", "method", "data_sha256", "teacher_digest", "config_digest")
        expect_shape(path, content, dict.fromkeys(names, str))
    return content


def read_trained(folder: Path, role: str, *, data: Path, data_sha256: str, teacher: Path) -> dict[str, Any]:
    """training.json of a network that was trained, on this data, and taught by this teacher if by any.

    Raises:
        GkdError: it was not trained, or on something else, or see `read_training`.
    """
    training = read_training(folder, role)
    if not training["trained"]:
        reason = training.get("reason", "no reason given")
        raise GkdError(f"{folder} holds no trained network ({reason}): run `{command_of(role)}`")
    again = f"run `{command_of(role)}` again, or give another --{role}"
    if training["data_sha256"] != data_sha256:
        raise GkdError(f"the {role} in {folder} was trained on other data than {data} holds: {again}")
    if training["teacher_digest"] not in ("", folder_digest(teacher)):
        raise GkdError(f"the {role} in {folder} learned from another teacher than the one in {teacher}: {again}")
    return training


def refuse_other_budget(folder: Path, role: str, reference: Mapping[str, Any], student: Mapping[str, Any]) -> None:
    """See that a reference had the student's network and training: else what distillation gained is not known.

    Args:
        folder, role: of the reference.
        reference, student: what their training.json hold.
    Raises:
        GkdError: the network or the training is another.
    """
    if reference.get("budget_digest") == student.get("budget_digest"):
        return
    differ = [
        f"{key} {reference[key]}, the student {student[key]}"
        for key in ("network", "epochs")
        if reference.get(key) != student.get(key)
    ]
    raise GkdError(
        f"the {role} in {folder} was trained on another budget than the student "
        f"({'; '.join(differ) or 'the sections student and train differ'}), so the two cannot be compared: run "
        f"`{command_of(role)}` again, or give another --{role}"
    )


MEASURED: Shape = {"top1": float, "top1_low": float, "top1_high": float, "parameters": int, "onnx_bytes": int}
DIFFERENCE: Shape = {"difference": float, "low": float, "high": float, "standard_error": float}


def read_metrics(folder: Path) -> dict[str, Any]:
    """metrics.json of a report folder; the references it leaves out are left out.

    Raises:
        GkdError: it is missing or damaged, or a measurement is no number.
    """
    expect_kind(folder, "report")
    path = folder / "metrics.json"
    shape: Shape = {
        "data": {"sha256": str, "source": str, "test_images": int},
        "digests": {"manifest": str, "student": str},
        "onnx": {"top1": float, "parity_max_abs": float, "onnx_bytes": int},
        "differences": {str: DIFFERENCE},
        "teacher": MEASURED,
        "student": MEASURED,
    }
    content = read_json(path, "the report folder", shape=shape)
    expect_shape(path, content, {role: MEASURED for role in ROLES if role in content})
    return content


# What a model card tells of a network that was measured.
TOLD: Shape = {"network": str, **MEASURED, "nll": float, "ece": float}
SMALLER: Shape = {"top1": float, "top1_low": float, "top1_high": float, "nll": float, "ece": float}


def read_card_metrics(folder: Path, smaller: Iterable[str]) -> dict[str, Any]:
    """metrics.json with all that a model card tells.

    Args:
        smaller: the precisions that must have been measured beside float32.
    Raises:
        GkdError: it is missing or damaged, or lacks a measurement, or one is no number.
    """
    content = read_metrics(folder)
    shape: dict[str, Any] = {"data": {"confidence": float}}
    for role in ROLES:
        if role in content:
            compared = {"agreement_with_teacher": float} if "agreement_with_teacher" in content[role] else {}
            shape[role] = {**TOLD, **compared, **({"macs": int} if role == "student" else {})}
    shape |= {precision: {**SMALLER, "agreement_with_fp32": float} for precision in smaller}
    expect_shape(folder / "metrics.json", content, shape)
    return content


def read_version(folder: Path) -> dict[str, Any]:
    """version.json of a registration folder; `alias` may be null.

    Raises:
        GkdError: it is missing or damaged.
    """
    expect_kind(folder, "registration")
    shape: Shape = {"name": str, "version": int, "manifest": str, "alias": str | None}
    return read_json(folder / "version.json", "the registration folder", shape=shape)


def read_gate(folder: Path) -> dict[str, Any]:
    """gate.json of a registration folder: whether it passed, and what each check said.

    Raises:
        GkdError: it is missing or damaged.
    """
    shape: Shape = {"passed": bool, "reasons": [{"passed": bool, "sentence": str}]}
    return read_json(folder / "gate.json", "the registration folder", shape=shape)


def read_bundle(folder: Path) -> dict[str, Any]:
    """bundle.json: the name of the model on servers, and sha256 by file.

    Raises:
        GkdError: it is missing or damaged.
    """
    return read_json(folder / "bundle.json", "the bundle", shape={"name": str, "files": {str: str}})
