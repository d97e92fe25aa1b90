"""A training step on several nodes: its inputs go to a shared volume, a TrainJob trains there, its result comes back.

Artifacts of a pipeline lie in the pod of their task alone; the volume `work` of the profile is what all pods see.
`train` runs in the task, `main` in every process of the TrainJob.
"""

import os
import shutil
import sys
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

from gkd_core import __version__
from gkd_core.config import Params
from gkd_core.errors import GkdError
from gkd_core.files import folder_digest, json_digest, read_json, whole_folder, write_json
from pipelines.kubeflow.profile import Profile
from pipelines.kubeflow.task import Task, running

COMMAND = ("python", "-m", "torch.distributed.run", "-m", "pipelines.kubeflow.nodes")
GONE = ".gone-"
DONE = "done.json"


def train(task: Task, profile: str, *, out: str, **inputs: str) -> None:
    """Run a training step: in this pod, or as a TrainJob where a profile is given and the step trains anything.

    Args:
        task: the job reads the same settings and has the same work volume, mounted in the same place.
        profile: as JSON; it has `nodes`. Empty is none.
        out: folder to write.
        inputs: folders by the name of the step's argument: data, and teacher except for the teacher.
    Raises:
        GkdError: as `train_job_life.launch`, and what the step itself says.
    """
    if not profile or not _trains(task.step, task.params):
        task.run(out=out, **inputs)
        return
    from components.image import image
    from pipelines.kubeflow.train_job import TrainJob
    from pipelines.kubeflow.train_job_life import JobEnded, launch

    given = Profile.model_validate_json(profile)
    assert given.nodes is not None
    step = task.step
    folders = {name: Path(folder) for name, folder in inputs.items()}
    content: dict[str, Any] = {"step": step, "settings": task.settings, "gkd_version": __version__, "image": image()}
    digests = content["inputs"] = {name: folder_digest(folder) for name, folder in folders.items()}
    key = json_digest(content)[:16]
    place = task.work / "nodes" / f"{step}-{key}"
    result = place / "out"
    _sweep(place)
    if not _whole(place):
        _take_away(result)
        for name, folder in folders.items():
            if not (place / name).is_dir() or folder_digest(place / name) != digests[name]:
                _take_away(place / name)
                _copy(folder, place / name)
        write_json(place / "task.json", content | {"inputs": sorted(inputs)})
        job = TrainJob(f"gkd-{step}-{key}", step, given, image(), (*COMMAND, str(place), str(task.work)))
        try:
            launch(job, timeout_seconds=given.training.timeout_seconds, complete=lambda: _whole(place))
        except JobEnded:
            _take_away(place)  # nobody reads the copies any more; the checkpoints lie elsewhere on the volume
            raise
        if not _whole(place):
            raise GkdError(
                f"TrainJob {job.name} is complete but {result} is not there as a whole: claim "
                f"{given.work and given.work.claim} must be one that several nodes mount (ReadWriteMany)"
            )
    _copy(result, Path(out))
    _take_away(place)


def _trains(step: str, params: Params) -> bool:
    if step == "teacher":
        return params.teacher.source is None
    return step == "distill" or bool(getattr(params.references, step))


def _copy(source: Path, target: Path) -> None:
    """Whole or not at all."""
    with whole_folder(target, [source]) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True)


def _whole(place: Path) -> bool:
    """Whether the result is there as the job left it."""
    try:
        return bool(read_json(place / DONE, "the result")["digest"] == folder_digest(place / "out"))
    except (GkdError, OSError, KeyError):
        return False


def finish(place: Path) -> None:
    """Write down that the result is whole, and its digest."""
    write_json(place / DONE, {"digest": folder_digest(place / "out")})


def _take_away(folder: Path) -> None:
    """Delete; whoever looks meanwhile, or after this was killed half-way, finds nothing rather than a part."""
    if folder.exists():
        gone = folder.with_name(f"{GONE}{folder.name}.{uuid.uuid4().hex}")
        folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def _sweep(place: Path) -> None:
    """Remove what a killed task did not come to delete."""
    for leftover in [*place.parent.glob(f"{GONE}{place.name}.*"), *place.glob(f"{GONE}*")]:
        shutil.rmtree(leftover, ignore_errors=True)


def main(place: Path, work: Path) -> None:
    """What each process of the TrainJob does: the step, on the volume."""
    content = read_json(place / "task.json", "the TrainJob's folder", keys=["step", "settings", "inputs"])
    with running(content["step"], content["settings"]) as task:
        replace(task, work=work).run(out=place / "out", **{name: place / name for name in content["inputs"]})
        if os.environ.get("RANK", "0") == "0":  # the process that writes `out`
            finish(place)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
