"""A whole run on the digits, each training a moment long, made once."""

from pathlib import Path
from typing import NamedTuple

import pytest

from gkd_core.config import Params, parse_params


class Project(NamedTuple):
    """Folders of the steps, and the parameters they were made with. Tests read them and never write to them."""

    data: Path
    teacher: Path
    baseline: Path
    kd: Path
    student: Path
    deploy: Path
    params: Params

    def inputs(self) -> dict[str, Path]:
        """The folders the evaluate step takes, by name."""
        return {name: getattr(self, name) for name in ("data", "teacher", "baseline", "kd", "student", "deploy")}


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory, digits: Path, teacher: Path) -> Project:
    """Baseline and student trained, plain KD switched off, the student exported."""
    from components import distill, export

    params = parse_params(
        {
            "student": {"name": "resnet8"},
            "train": {"epochs": 2, "device": "cpu"},
            "references": {"kd": False},
            "evaluate": {"latency_runs": 10},
            "tracking": {"uri": "http://user:secret@tracking.example"},
        }
    )
    root = tmp_path_factory.mktemp("project")
    folders = {name: root / name for name in ("baseline", "kd", "student", "deploy")}
    common = {"data": digits, "teacher": teacher, "work": root / "work", "params": params}
    distill.run(**common, out=folders["baseline"], reference="baseline")
    distill.run(**common, out=folders["kd"], reference="kd")
    distill.run(**common, out=folders["student"])
    export.run(data=digits, teacher=teacher, student=folders["student"], out=folders["deploy"], params=params)
    return Project(data=digits, teacher=teacher, **folders, params=params)
