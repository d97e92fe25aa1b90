"""Where a training keeps what it needs to go on: checkpoints, and finished trainings that others wait for."""

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from gkd_core.files import json_digest, whole_folder
from gkd_core.training import distributed

TEACHER_CACHE = "teacher-cache"
"""The folder in `work` that all trainings share, for what their teachers answer (see `cached_teacher`)."""


def workspace(work: Path, inputs: dict[str, Any]) -> Path:
    """The folder in `work` for a training with these inputs: another configuration never meets what this one left."""
    return work / json_digest(inputs)[:16]


def remove_workspace(folder: Path) -> None:
    """Remove the workspace of what is complete; one that is not there is no error."""
    if distributed.rank() == 0:
        shutil.rmtree(folder, ignore_errors=True)


def run_once(folder: Path, make: Callable[[Path], Any]) -> Path:
    """A training that is one of several in a step: done once, its folder stays in the workspace until the step is done.

    Args:
        folder: in the workspace.
        make: fills an empty folder.
    """
    if not distributed.of_first(folder.exists):
        with step_folder(folder) as building:
            make(building)
    return folder


@contextlib.contextmanager
def step_folder(
    out: Path,
    inputs: Iterable[Path | None] = (),
    work: Path | None = None,
    *,
    kind: str | None = None,
    option: str = "--out",
) -> Iterator[Path]:
    """`whole_folder` for a step that may run in several processes: the first one's folder becomes `out`.

    The others' are thrown away, and all see `out` after the block. That takes storage that every machine sees.
    """
    if distributed.rank() == 0:
        building: Any = whole_folder(out, inputs, work, kind=kind, option=option)
    else:
        building = tempfile.TemporaryDirectory(prefix="gkd-")
    with building as folder:
        yield Path(folder)
        distributed.wait_for_all()  # what stops one of them stops the first before the folder is `out`
    distributed.wait_for_all()
