"""Settings searched on validation: which learning rate, which weights of the terms, which student.

Not a step of the pipeline: it runs the distill step once a trial and seed, and never opens the test split. The trials
are in a database; a search that was stopped goes on where it was, and several workers, here or elsewhere, share one.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from components import distill
from components.graph import STEP
from components.places import missing, refuse_missing
from components.search_workers import run_workers
from components.teacher import find_start
from gkd_core.config import Params
from gkd_core.config.space import Space, read_space
from gkd_core.data.prepared import PreparedData
from gkd_core.errors import GkdError
from gkd_core.evaluation.comparison import check_seeds
from gkd_core.export.manifest import code_sha256
from gkd_core.files import folder_digest, json_digest, read_json, refuse_to_replace, whole_folder
from gkd_core.records import read_teacher_of
from gkd_core.searching.findings import Findings, Found
from gkd_core.searching.study import Budget, Search, open_study, say
from gkd_core.training.trainer import EpochHook

TRIALS = 20
POLL_SECONDS = 2.0


@dataclass(frozen=True)
class Plan:
    """What is searched, with what, kept where; the same for every worker.

    Attributes:
        data, teacher: folders of the prepare and the teacher step.
        work: the place where workers of this machine meet, checkpoints, and unless `storage` says another the database.
        params: what all settings have in common.
        space: content of a space file.
        each: key of a parameter with choices: each choice is a study of its own, with a budget of its own.
        seeds: every setting is trained with each.
        storage: address of a database; None is a file in `work`.
        study: its name in the database; None is made from what it depends on.
        seed: of the draws.
        prune: stop trials early.
    """

    data: Path
    teacher: Path
    work: Path
    params: Params
    space: Mapping[str, Any]
    each: str | None = None
    seeds: Sequence[int] = (0,)
    storage: str | None = None
    study: str | None = None
    seed: int = 0
    prune: bool = True

    def studies(self) -> dict[str, Space]:
        """Title → what is drawn in it: one, or one for each choice.

        Raises:
            GkdError: everything that is wrong with the space.
        """
        return read_space(self.space, self.params).studies(self.each, self.study, "--")

    def open(self, title: str, space: Space) -> Search:
        """One of the studies, begun or gone on with."""
        start = find_start(self.params.student, self.params, "student.")
        facts = {
            "data": PreparedData.open(self.data).info.sha256,
            "teacher": folder_digest(self.teacher),
            "code of gkd": code_sha256(),
            "parameters": self.params.digest("student", "train", "distill"),
            "start of the student": "" if start is None else start.digest,
        }
        return open_study(
            space,
            title=title,
            facts=facts,
            work=self.work,
            storage=self.storage,
            study=self.study,
            seeds=self.seeds,
            seed=self.seed,
            prune=self.prune,
            option="--",
        )

    def check(self) -> None:
        """See that something can be trained, before anything is.

        Raises:
            GkdError: it cannot.
        """
        check_seeds(self.seeds, "--seeds")
        refuse_several_processes(self.params)
        refuse_missing_starts(self.params, read_space(self.space, self.params))
        prepared = PreparedData.open(self.data)
        read_teacher_of(self.teacher, data=self.data, data_sha256=prepared.info.sha256)


def refuse_several_processes(params: Params) -> None:
    """Raises: GkdError: a trial would be trained in several processes, which nobody could stop early."""
    if params.train.devices > 1:
        raise GkdError(
            f"train.devices is {params.train.devices}, but a trial is trained in one process: set it to 1, and start a "
            "worker a device"
        )


def refuse_missing_starts(params: Params, space: Space, made: Callable[[Path], bool] = lambda path: False) -> None:
    """See that what students may start from is there.

    Args:
        params: what all settings have in common.
        made: see `components.places.refuse_missing`.
    Raises:
        GkdError: something is not, a sentence each.
    """
    refuse_missing(params, [STEP["distill"]], made=made)
    choices = space["student.weights"].choices if space.has("student.weights") else ()
    named = [weights for weights in choices if isinstance(weights, str) and not made(Path(weights))]
    if wrong := [sentence for weights in named if (sentence := missing("student.weights", weights))]:
        raise GkdError("\n".join(wrong))


def run(plan: Plan, *, out: Path, budget: Budget, workers: int = 1) -> Findings:
    """Search, and write what was found to `out`.

    Args:
        plan: what is searched.
        out: appears whole or not at all; see `gkd_core.searching.findings.Findings.save`.
        budget: of each study.
        workers: processes side by side on this machine.
    Raises:
        GkdError: the space is wrong, the inputs are missing or do not go together, or no trial was trained to its end.
    """
    studies = plan.studies()
    plan.check()
    refuse_to_replace(out, [plan.data, plan.teacher], plan.work, kind="search")  # before hours of training
    for name, space in studies.items():
        plan.open(name, space)  # its tables, before several want to make them
    if workers > 1:
        run_workers(work, workers, plan, budget)
    work(plan, budget)  # alone, or what a worker left that was killed
    return write(plan, out=out, budget=budget)


def _say(name: str, text: str) -> None:
    say(f"search {name}  {text}")


def work(plan: Plan, budget: Budget) -> None:
    """Be one worker: try settings until the budget of every study is spent.

    Then wait for trials that other workers have begun, and take over what they leave.
    """
    searches = {name: plan.open(name, space) for name, space in plan.studies().items()}
    waits = False
    while True:
        for name, search in searches.items():
            search.run(_trainer(plan, search), budget, partial(_say, name))
        if not any(search.others() and not search.late(budget) for search in searches.values()):
            return
        if not waits:
            say("search  waiting for trials that other workers have begun")
        waits = True
        time.sleep(POLL_SECONDS)


def write(plan: Plan, *, out: Path, budget: Budget) -> Findings:
    """What the database says by now, to `out`."""
    found = [Found.of(plan.open(name, space), name) for name, space in plan.studies().items()]
    facts = {"trials": budget.trials, "seeds": list(plan.seeds), "seed": plan.seed, "prune": plan.prune}
    findings = Findings(found, facts)
    with whole_folder(out, [plan.data, plan.teacher], kind="search") as folder:
        findings.save(folder)
    return findings


def _trainer(plan: Plan, search: Search) -> Any:
    """Trains with one configuration: the distill step, whose folder nobody needs afterwards."""

    def train(params: Params, hook: EpochHook) -> tuple[float, float]:
        # Under a name of its own: another worker may be at the same settings.
        digest = json_digest(params.digest("student", "train", "distill"))[:16]
        with search.place.scratch(digest) as folder:
            student = folder / "student"
            facts = distill.run(
                data=plan.data, teacher=plan.teacher, out=student, work=plan.work, params=params, on_epoch=hook
            )
            seconds = read_json(student / "run.json", "the finished run", keys=["seconds"])["seconds"]
        return float(facts["validation_top1"]), float(seconds)

    return train
