"""A folder says what it is, and whoever reads it checks that; nothing is written into what is finished or read."""

import inspect
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from components import compare, distill, evaluate, export, prepare, register, teacher
from gkd_core.config import Params
from gkd_core.errors import GkdError
from gkd_core.export.bundle import write_bundle
from gkd_core.files import folder_digest, kind_of

STEPS: dict[str, tuple[Callable[..., Any], list[str]]] = {
    "teacher": (teacher.run, ["data"]),
    "distill": (distill.run, ["data", "teacher"]),
    "export": (export.run, ["data", "teacher", "student"]),
    "evaluate": (evaluate.run, ["data", "teacher", "baseline", "kd", "student", "deploy"]),
    "register": (register.run, ["teacher", "baseline", "kd", "student", "deploy", "report"]),
    "compare": (compare.run, ["data", "teacher"]),
    "bundle": (write_bundle, ["data", "student", "deploy", "report", "registration"]),
}
KINDS = ("data", "teacher", "network", "baseline", "kd", "student", "deploy", "report", "registration")


@pytest.fixture(scope="module")
def folders(project: Any, evaluated: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One of each kind, as the steps left them; nobody writes into them."""
    root = tmp_path_factory.mktemp("run")
    for name, folder in (project.inputs() | {"report": evaluated.report}).items():
        shutil.copytree(folder, root / name)
    found = {name: root / name for name in KINDS} | {"network": root / "teacher" / "resnet8"}
    found["registration"].mkdir()
    version = {"name": "gkd-student", "version": 1, "alias": None, "manifest": "0" * 64, "run_id": "1"}
    (found["registration"] / "version.json").write_text(json.dumps(version))
    return found


def call(step: str, folders: dict[str, Path], out: Path, params: Params, **changed: Path) -> None:
    run, options = STEPS[step]
    given: dict[str, Any] = {name: folders[name] for name in options} | {"out": out} | changed
    accepted = inspect.signature(run).parameters
    more = {"params": params, "work": out.parent / "work", "image": "gkd:1"}
    run(**given, **{key: value for key, value in more.items() if key in accepted})


def test_every_folder_says_what_it_is(folders: dict[str, Path]) -> None:
    assert {name: kind_of(folder) for name, folder in folders.items()} == {kind: kind for kind in KINDS}
    assert kind_of(folders["data"].parent) is None


@pytest.mark.parametrize(
    ("step", "option"), [(step, option) for step, (_, options) in STEPS.items() for option in options]
)
def test_a_folder_of_another_kind_is_refused_by_every_option(
    step: str, option: str, folders: dict[str, Path], project: Any, tmp_path: Path
) -> None:
    for kind in KINDS:
        if kind == option:
            continue
        with pytest.raises(GkdError) as error:
            call(step, folders, tmp_path / "out", project.params, **{option: folders[kind]})
        assert str(error.value).startswith(f"{folders[kind]} holds "), (kind, str(error.value))
        assert f"--{option} " in str(error.value)
        assert error.value.exit_code == 2
        assert not (tmp_path / "out").exists()


def changed(folder: Path, to: Path, file: str, **facts: Any) -> Path:
    """A copy with other facts in one of its records."""
    shutil.copytree(folder, to)
    (to / file).write_text(json.dumps(json.loads((to / file).read_text()) | facts))
    return to


@pytest.mark.parametrize(
    ("step", "option", "file", "facts", "says"),
    [
        ("distill", "teacher", "teacher.json", {"data_sha256": "0"}, "made for other data"),
        ("export", "teacher", "teacher.json", {"data_sha256": "0"}, "made for other data"),
        ("export", "teacher", "teacher.json", {"imported": True}, "another teacher"),
        ("export", "student", "training.json", {"data_sha256": "0"}, "trained on other data"),
        ("evaluate", "baseline", "training.json", {"data_sha256": "0"}, "trained on other data"),
        ("evaluate", "baseline", "training.json", {"teacher_digest": "0"}, "another teacher"),
        ("evaluate", "baseline", "training.json", {"budget_digest": "0", "epochs": 9}, "epochs 9, the student 2"),
        ("evaluate", "baseline", "training.json", {"budget_digest": "0"}, "another budget"),
        ("evaluate", "student", "training.json", {"teacher_digest": "0"}, "another teacher"),
        ("evaluate", "student", "training.json", {"seed": 9}, "exported from another student"),
        ("evaluate", "deploy", "manifest.json", {"data_sha256": "0"}, "made from other data"),
        ("register", "baseline", "training.json", {"epochs": 9}, "another baseline"),
        ("register", "teacher", "teacher.json", {"imported": True}, "another teacher"),
        ("register", "student", "training.json", {"epochs": 9}, "another student"),
        ("register", "deploy", "manifest.json", {"gkd_version": "0"}, "another model"),
    ],
)
def test_a_folder_made_of_something_else_is_refused(
    step: str, option: str, file: str, facts: Any, says: str, folders: dict[str, Path], project: Any, tmp_path: Path
) -> None:
    other = changed(folders[option], tmp_path / "other", file, **facts)
    with pytest.raises(GkdError, match=says) as error:
        call(step, folders, tmp_path / "out", project.params, **{option: other})
    assert "run `gkd " in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("step", STEPS)
def test_out_is_neither_in_what_is_finished_nor_in_what_is_read(
    step: str, folders: dict[str, Path], project: Any, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(folders["data"].parent, run)
    copies = {name: run / folder.relative_to(folders["data"].parent) for name, folder in folders.items()}
    before = folder_digest(run)
    finished = [copies[kind] / "below" / "deeper" for kind in KINDS]
    read = [copies[option] for option in STEPS[step][1]]
    for out in (*finished, *read, run):
        with pytest.raises(GkdError, match="^OUT " if step == "bundle" else "^--out ") as error:
            call(step, copies, out, project.params)
        assert str(out) in str(error.value)
        assert error.value.exit_code == 2
    assert folder_digest(run) == before


@pytest.mark.parametrize("step", [*STEPS, "prepare"])
def test_a_finished_folder_of_another_kind_is_not_replaced(
    step: str, folders: dict[str, Path], project: Any, tmp_path: Path
) -> None:
    read = STEPS[step][1] if step in STEPS else []
    writes = {"distill": "student", "export": "deploy", "evaluate": "report", "register": "registration"}
    writes["prepare"] = "data"
    for kind in KINDS:
        if kind in read or kind == writes.get(step, step):
            continue
        out = tmp_path / kind
        shutil.copytree(folders[kind], out)
        before = folder_digest(out)
        write: Callable[..., Any] = partial(call, step, folders) if step in STEPS else prepare.run
        with pytest.raises(GkdError, match=rf"^{'OUT' if step == 'bundle' else '--out'} .* would replace") as error:
            write(out=out, params=project.params)
        assert error.value.exit_code == 2
        assert folder_digest(out) == before


def test_images_are_not_prepared_into_their_own_folder(tmp_path: Path) -> None:
    from gkd_core.config import parse_params

    photos = tmp_path / "photos"
    (photos / "cat").mkdir(parents=True)
    params = parse_params({"data": {"source": "folder", "root": str(photos)}})
    for out in (photos, photos / "x", photos / "cat" / "x", tmp_path):
        with pytest.raises(GkdError, match="--out"):
            prepare.run(out=out, params=params)
    assert not (photos / "x").exists()
