"""What the pods of a search are given: one plan for all, checked before anything is trained."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from components.graph import divide
from components.search import Plan, refuse_several_processes
from gkd_core.config import Params
from gkd_core.config.space import parse_space, read_space
from gkd_core.errors import GkdError
from gkd_core.evaluation.comparison import check_seeds
from gkd_core.searching.study import Budget
from pipelines.kubeflow.checks import refuse_other_devices, refuse_places
from pipelines.kubeflow.grid import whole_number

STORAGE = "OPTUNA_STORAGE"
MOST_WORKERS = 256


class SearchLayout(NamedTuple):
    """What the tasks of a search are given, as JSON.

    Attributes:
        prepare, teacher: sections of these steps.
        search: the plan of the report.
        workers: the same with its number for every worker.
    """

    prepare: str
    teacher: str
    search: str
    workers: str


def lay_out_search(
    params: Params,
    *,
    space: str,
    trials: float = 20,
    minutes: float = 0.0,
    each: str = "",
    seeds: Sequence[float] = (0,),
    storage: str = "",
    study: str = "",
    sampler_seed: float = 0,
    prune: bool = True,
    workers: float = 4,
) -> SearchLayout:
    """The plan, looked at; the arguments are the pipeline's, whose whole numbers Kubeflow makes floats.

    Raises:
        GkdError: something in it cannot be searched.
    """
    if not space:
        raise GkdError("space is empty, so there is nothing to search: give --space FILE")
    content = parse_space(space, "space")
    numbers = [whole_number(seed) for seed in seeds]
    check_seeds(numbers)
    for name, value, least in (("trials", trials, 0), ("minutes", minutes, 0), ("workers", workers, 1)):
        if value < least:
            raise GkdError(f"{name} is {value:g}: give {least} or more")
    if not trials and not minutes:
        raise GkdError("trials and minutes are both 0: give one of them, for a search has no other end")
    if workers > MOST_WORKERS:
        raise GkdError(f"workers is {workers:g}: give {MOST_WORKERS} or less")
    refuse_several_processes(params)
    read_space(content, params).studies(each or None, study or None)
    given = {
        "params": params.model_dump(mode="json", exclude_unset=True),
        "space": content,
        "each": each or None,
        "seeds": numbers,
        "storage": storage or None,
        "study": study or None,
        "seed": int(sampler_seed),
        "prune": prune,
        "trials": int(trials) or None,
        "minutes": minutes or None,
    }
    sections = divide(params)
    listed = json.dumps([json.dumps(given | {"worker": number}) for number in range(1, int(workers) + 1)])
    return SearchLayout(json.dumps(sections["prepare"]), json.dumps(sections["teacher"]), json.dumps(given), listed)


def read_plan(text: str, params: Params, data: str, teacher: str, work: Path) -> tuple[Plan, Budget]:
    """What a worker and the report do.

    Args:
        text: of `SearchLayout.search`, or one of its workers'.
        params: those in it, as the task has them.
        data, teacher: folders.
        work: for checkpoints.
    Raises:
        GkdError: the pods have no database in common.
    """
    given: dict[str, Any] = json.loads(text)
    given = {name: value for name, value in given.items() if name not in ("params", "worker")}
    trials, minutes = given.pop("trials"), given.pop("minutes")
    given["storage"] = given["storage"] or os.environ.get(STORAGE)
    if "KUBERNETES_SERVICE_HOST" in os.environ:
        refuse_own_database(given["storage"] or "")
    return Plan(data=Path(data), teacher=Path(teacher), work=work, params=params, **given), Budget(trials, minutes)


def refuse_own_database(storage: str, *, given: bool = False) -> None:
    """See that all pods reach the database.

    Args:
        storage: its address; empty is none.
        given: the pods have one in their environment.
    Raises:
        GkdError: there is none, or it is a file.
    """
    if storage.lower().startswith("sqlite"):
        raise GkdError(
            f"storage is {storage}, a file, which a cluster's pods do not share: give the address of a PostgreSQL or "
            f"MySQL server, with a password as {STORAGE} from a secret of the profile"
        )
    if not storage and not given:
        raise GkdError(
            "a search on a cluster needs a database that all its pods reach: give --argument storage=…, or "
            f"{STORAGE} in the profile (for the tasks settings, distill and evaluate)"
        )


def refuse_search(params: Params, mounts: Sequence[str], devices: int | None, **given: Any) -> None:
    """See that a cluster can search what is asked for.

    Args:
        params: what all settings have in common.
        mounts: where the profile's volumes are.
        devices: accelerators of a training under the profile; None where it has none.
        given: arguments of `lay_out_search`.
    Raises:
        GkdError: it cannot, or a choice names a place of this machine.
    """
    lay_out_search(params, **given)
    if devices:
        refuse_other_devices(params, devices)
    space = read_space(parse_space(given["space"], "space"), params)
    for weights in space["student.weights"].choices if space.has("student.weights") else ():
        student = params.student.model_copy(update={"weights": weights})
        refuse_places(params.model_copy(update={"student": student}), mounts)
