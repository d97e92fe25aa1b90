"""A training step on several nodes: its inputs go to a shared volume, a TrainJob trains there, its result comes back.

Artifacts of a pipeline lie in the pod of their task alone; the volume `work` of the profile is what all pods see.
`train_on_nodes` runs in the task, `main` in every process of the TrainJob.
"""

import shutil
import sys
import uuid
from pathlib import Path
from typing import Any

from components.kubeflow.task import Task, running
from gkd_core import __version__
from gkd_core.config import Params
from gkd_core.errors import GkdError
from gkd_core.files import folder_digest, json_digest, read_json, whole_folder, write_json
from gkd_core.verify import check_files
from pipelines.profile import Profile

COMMAND = ("python", "-m", "torch.distributed.run", "-m", "pipelines.nodes")
GONE = ".gone-"


def train_on_nodes(step: str, task: Task, profile: str, *, inputs: dict[str, str], out: str) -> None:
    """Run a training step as a TrainJob; what trains nothing (an imported teacher, say) runs right here.

    Args:
        step: teacher, baseline, kd or distill.
        task: the job reads the same settings and has the same work volume, mounted in the same place.
        profile: as JSON; it has `nodes`.
        inputs: folders by the name of the step's argument: data, and teacher except for the teacher.
        out: folder to write.
    Raises:
        GkdError: as `train_job.launch`, and what the step itself says.
    """
    folders = {name: Path(folder) for name, folder in inputs.items()}
    if not _trains(step, task.params):
        _run(step, task.params, folders, Path(out), task.work)
        return
    from components.image import image
    from pipelines.train_job import JobEnded, launch, of_profile

    given = Profile.model_validate_json(profile)
    assert given.nodes is not None
    content = {"step": step, "settings": task.settings, "gkd_version": __version__, "image": image()}
    digests = content["inputs"] = {name: folder_digest(folder) for name, folder in folders.items()}
    key = json_digest(content)[:16]
    place = task.work / "nodes" / f"{step}-{key}"
    result = place / "out"
    _sweep(place)
    if not _whole(result):
        _take_away(result)
        for name, folder in folders.items():
            if not (place / name).is_dir() or folder_digest(place / name) != digests[name]:
                _take_away(place / name)
                _copy(folder, place / name)
        write_json(place / "task.json", content | {"inputs": sorted(inputs)})
        job = of_profile(
            given, step=step, name=f"gkd-{step}-{key}", image=image(), command=(*COMMAND, str(place), str(task.work))
        )
        patience = given.training.timeout_seconds
        try:
            launch(job, timeout_seconds=patience, complete=lambda: _whole(result))
        except JobEnded:
            _take_away(place)  # nobody reads the copies any more; the checkpoints lie elsewhere on the volume
            raise
        if not _whole(result):
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


def _whole(folder: Path) -> bool:
    """Whether every file that a step left in its folder is there as it was left."""
    try:
        list(check_files(folder, "result"))
    except (GkdError, OSError):
        return False
    return True


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


def _run(step: str, params: Params, inputs: dict[str, Path], out: Path, work: Path) -> None:
    from components import distill, teacher

    options: dict[str, Any] = {"data": inputs["data"], "out": out, "work": work, "params": params}
    if step == "teacher":
        teacher.run(**options)
    elif step == "distill":
        distill.run(teacher=inputs["teacher"], **options)
    else:
        distill.run(teacher=inputs.get("teacher"), reference=step, **options)  # type: ignore[arg-type]


def main(place: Path, work: Path) -> None:
    """What each process of the TrainJob does: the step, on the volume."""
    content = read_json(place / "task.json", "the TrainJob's folder", keys=["step", "settings", "inputs"])
    with running(content["step"], content["settings"]) as task:
        _run(content["step"], task.params, {name: place / name for name in content["inputs"]}, place / "out", work)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
