"""A study: trials drawn by TPE, trained, stopped where the median of the others was better, kept in a database.

A worker that is killed leaves a trial behind that nobody works at. The next worker on the same machine sees that at
once (`Place`), takes the same trial over, and its training goes on from its checkpoint; one elsewhere sees it when its
heartbeat has been silent for a while, and tries the same settings as a new trial. What is drawn is a function of (seed,
trial, parameter) and of the finished trials before it, so one worker that was killed and started again ends with the
trials of one that was not.
"""

import contextlib
import sys
import threading
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from gkd_core.config.schema import Params
from gkd_core.config.space import Space, settings_of
from gkd_core.errors import DivergedError, GkdError
from gkd_core.files import json_digest
from gkd_core.redact import redact
from gkd_core.searching.place import Place
from gkd_core.training.trainer import EpochHook, StopTraining

try:
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.study import Study
    from optuna.trial import FrozenTrial, TrialState
    from sqlalchemy.exc import SQLAlchemyError
except ImportError as error:
    raise GkdError(f"a search needs the package optuna ({error}): pip install 'gkd[search]'") from error

RANDOM_TRIALS = 10  # before TPE has enough to go by
COMPLETE_BEFORE_STOPPING = 5  # trials, before the median of them stops others
COPIES_AT_LAST = 20  # trials in a row that were had before: the space has no more to give
BEAT_SECONDS, SILENT_SECONDS, RETRIES = 60, 180, 3
DATABASE_SECONDS = 120  # that one worker waits for another to have written
PLACE, VALUES, SETTINGS, WHY, COPY = "place", "values", "settings", "why", "copy of"

Train = Callable[[Params, EpochHook], tuple[float, float]]
"""Trains with one configuration; validation top-1 in [0, 1] and seconds."""


class ResumableSampler(optuna.samplers.BaseSampler):
    """TPE whose random numbers depend on (seed, trial, parameter) alone, not on what was drawn in this process before.

    Args:
        seed: of all draws.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """What is drawn together: the parameters that all trials have."""
        return self._tpe(trial, "").infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """These, together."""
        return self._tpe(trial, "").sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """One of the others."""
        return self._tpe(trial, param_name).sample_independent(study, trial, param_name, param_distribution)

    def _tpe(self, trial: FrozenTrial, name: str) -> optuna.samplers.TPESampler:
        seed = zlib.crc32(f"{self._seed} {trial.number} {name}".encode())
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=RANDOM_TRIALS)


@dataclass(frozen=True)
class Budget:
    """When no further trial begins.

    Attributes:
        trials: of the study, those of earlier runs included; None does not limit.
        minutes: since this run began with the study; None does not limit.
    """

    trials: int | None = None
    minutes: float | None = None


@dataclass
class Search:
    """A study and what its trials are made of.

    Attributes:
        study: Optuna's.
        space: what is drawn.
        seeds: each setting is trained with; its value is the mean of their validation top-1.
        place: where workers of this machine meet.
        prune: stop trials early.
        storage: the database; None keeps the study in memory.
    """

    study: Study
    space: Space
    seeds: Sequence[int]
    place: Place
    prune: bool
    storage: optuna.storages.RDBStorage | None
    _began: float | None = None

    def run(self, train: Train, budget: Budget, told: Callable[[str], None] = lambda text: None) -> None:
        """Try settings until the budget is spent, the space exhausted, or others have begun the last trial.

        Args:
            train: see `Train`.
            told: is given a line a finished trial.
        Raises:
            GkdError: the first trial failed, or the database cannot be reached.
        """
        self._began = time.monotonic() if self._began is None else self._began
        with _quiet(), _database():
            while not self.late(budget):
                with contextlib.ExitStack() as held:
                    with self.place.alone():
                        trial = self._next(budget)
                        if trial is None:
                            return
                        held.enter_context(self.place.holding(trial.number))
                    held.enter_context(self._beating(trial))
                    told(f"trial {trial.number}: {self._try(trial, train)}")

    def late(self, budget: Budget) -> bool:
        """Whether the time for this study is over."""
        began = time.monotonic() if self._began is None else self._began
        return budget.minutes is not None and time.monotonic() - began >= 60 * budget.minutes

    def others(self) -> int:
        """Trials that are at work elsewhere; one whose worker fell silent is none of them any more."""
        with _quiet(), _database():
            self._give_up_silent()
            return sum(trial.state == TrialState.RUNNING for trial in self.trials())

    def trials(self) -> list[FrozenTrial]:
        """All but those that were begun anew under another number."""
        return [trial for trial in self.study.get_trials(deepcopy=False) if trial.state != TrialState.FAIL]

    def _give_up_silent(self) -> None:
        """Trials whose worker has not been heard of for a while are over; their settings wait to be tried again."""
        optuna.storages.fail_stale_trials(self.study)
        for trial in self.trials():
            # Killed before its first heartbeat it has no settings yet, and Optuna would wait for it for ever.
            started = trial.datetime_start
            if trial.state != TrialState.RUNNING or VALUES in trial.user_attrs or started is None:
                continue
            if self.storage is not None and (datetime.now() - started).total_seconds() > SILENT_SECONDS:
                self.study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)

    def _beat(self, trial: int) -> None:
        if self.storage is not None:
            self.storage.record_heartbeat(trial)

    def _left(self, trial: FrozenTrial) -> bool:
        return (
            bool(self.place.name) and trial.user_attrs.get(PLACE) == self.place.name and self.place.left(trial.number)
        )

    def _next(self, budget: Budget) -> optuna.Trial | None:
        """A trial to work at: one that was left, or a new one; None where the budget is spent."""
        for trial in self.trials():
            # However long ago it was left: nobody here may take it for a silent one's.
            if trial.state == TrialState.RUNNING and self._left(trial):
                self._beat(trial._trial_id)
                return optuna.Trial(self.study, trial._trial_id)
        self._give_up_silent()
        trials = self.trials()
        if not any(trial.state == TrialState.WAITING for trial in trials):
            if (budget.trials is not None and len(trials) >= budget.trials) or _exhausted(trials):
                return None
            # Whoever is killed before the trial has its lock leaves one of this place: there is no moment between.
            self.study.enqueue_trial({}, user_attrs={PLACE: self.place.name})
        own = self.study.ask()
        self._beat(own._trial_id)
        own.set_user_attr(PLACE, self.place.name)
        before = sum(trial.number < own.number for trial in self.trials())
        if budget.trials is not None and before >= budget.trials:  # workers elsewhere asked at the same moment
            self.study.tell(own, state=TrialState.FAIL)
            return None
        return own

    def _try(self, trial: optuna.Trial, train: Train) -> str:
        """Draw, train with every seed, and tell the study; in words, what came out."""
        values = self.space.draw(trial)
        trial.set_user_attr(VALUES, values)
        params, wrong = self.space.settle(values)
        if params is None or wrong:
            return self._refused(trial, "; ".join(mistake.sentence for mistake in wrong))
        settings = settings_of(params)
        trial.set_user_attr(SETTINGS, settings)
        with self.place.training(settings):
            if (twin := self._twin(trial.number, settings)) is not None:
                return self._copied(trial, twin)
            return self._train(trial, params, train)

    def _train(self, trial: optuna.Trial, params: Params, train: Train) -> str:
        found = []
        for place, seed in enumerate(self.seeds):
            known = trial.user_attrs.get(of_seed(seed))
            if known is None:
                hook = self._hook(trial) if place == 0 else _unheard
                try:
                    top1, seconds = train(_seeded(params, seed), hook)
                except StopTraining:
                    self.study.tell(trial, state=TrialState.PRUNED, skip_if_finished=True)
                    return "stopped, below the median"
                except DivergedError as error:
                    return self._refused(trial, str(error))
                except GkdError as error:
                    if not any(each.state == TrialState.COMPLETE for each in self.trials()):
                        self.study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
                        raise
                    return self._refused(trial, str(error))
                known = {"validation_top1": top1, "seconds": seconds}
                trial.set_user_attr(of_seed(seed), known)
            found.append(known["validation_top1"])
        value = sum(found) / len(found)
        self.study.tell(trial, value, skip_if_finished=True)
        return f"validation top-1 {100 * value:.2f} %"

    def _hook(self, trial: optuna.Trial) -> EpochHook:
        """Reports every epoch once, and ends a training that does worse than the median of the others."""
        reported = {*self._frozen(trial).intermediate_values}

        def report(row: dict[str, float], epochs: int) -> None:
            epoch = int(row["epoch"])
            if epoch not in reported:
                # Of peers that learn from each other the best is kept.
                trial.report(max(value for name, value in row.items() if name.startswith("validation_top1")), epoch)
            worth = epoch < epochs or len(self.seeds) > 1
            if self.prune and worth and 3 * epoch > epochs and trial.should_prune():
                raise StopTraining

        return report

    def _frozen(self, trial: optuna.Trial) -> FrozenTrial:
        return next(each for each in self.study.get_trials(deepcopy=False) if each.number == trial.number)

    def _refused(self, trial: optuna.Trial, why: str) -> str:
        """A setting with which nothing can be learned: the worst there is, and the search goes on."""
        trial.set_user_attr(WHY, why)
        self.study.tell(trial, state=TrialState.PRUNED, skip_if_finished=True)
        return f"failed: {why}"

    def _twin(self, number: int, settings: str) -> FrozenTrial | None:
        """A trial before this one with the same settings, which would come to the same."""
        return next(
            (
                each
                for each in self.trials()
                if each.state in (TrialState.COMPLETE, TrialState.PRUNED)
                and each.number < number
                and each.user_attrs.get(SETTINGS) == settings
            ),
            None,
        )

    def _copied(self, trial: optuna.Trial, twin: FrozenTrial) -> str:
        for name in (WHY, *map(of_seed, self.seeds)):
            if name in twin.user_attrs:
                trial.set_user_attr(name, twin.user_attrs[name])
        trial.set_user_attr(COPY, twin.number)
        if twin.state == TrialState.COMPLETE:
            self.study.tell(trial, twin.value, skip_if_finished=True)
        else:
            for step in list(twin.intermediate_values)[-1:]:
                trial.report(twin.intermediate_values[step], step)
            self.study.tell(trial, state=TrialState.PRUNED, skip_if_finished=True)
        return f"the same settings as trial {twin.number}"

    @contextlib.contextmanager
    def _beating(self, trial: optuna.Trial) -> Iterator[None]:
        """Say to workers elsewhere, now and then, that this trial is at work."""
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(BEAT_SECONDS):
                with contextlib.suppress(SQLAlchemyError, optuna.exceptions.StorageInternalError):
                    self._beat(trial._trial_id)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def open_study(
    space: Space,
    *,
    title: str,
    facts: Mapping[str, str],
    work: Path | None,
    storage: str | None = None,
    study: str | None = None,
    seeds: Sequence[int] = (0,),
    seed: int = 0,
    prune: bool = True,
    option: str = "",
) -> Search:
    """A study, begun or gone on with.

    Args:
        space: what is drawn.
        title: what it is called.
        facts: digests of everything that its trials depend on besides the arguments below, by what they are called.
        work: folder in which workers of this machine meet, and the database is unless it has an address.
        storage: address of a database as SQLAlchemy takes it; without one and `work`, the study is kept in memory.
        study: what it is called in the database, where one with other facts is refused; None makes a name of the facts.
        seeds: of each setting's trainings.
        seed: of the draws.
        prune: stop trials early.
        option: what stands before the names of these arguments where the user wrote them ("--").
    Raises:
        GkdError: the database cannot be opened, or the study is another.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    facts = {
        **facts,
        "space": json_digest(space.written()),
        "list of seeds": json_digest(list(seeds)),
        "seed of the draws": json_digest([seed, prune]),
    }
    name = f"{title} {json_digest(facts)[:16]}" if study is None else study if study == title else f"{study}: {title}"
    place, database = Place(None), None
    if work is not None:
        folder = (work / "search").resolve()
        storage = storage or f"sqlite:///{folder / 'search.db'}"
        place = Place(folder / json_digest([storage, name])[:16])
    with _quiet(), place.tried(), place.alone():
        if storage is not None:
            database = open_database(storage, option)
        with _database():
            found = optuna.create_study(
                study_name=name,
                storage=database,
                direction="maximize",
                sampler=ResumableSampler(seed),
                pruner=optuna.pruners.MedianPruner(COMPLETE_BEFORE_STOPPING),
                load_if_exists=True,
            )
            known = found.user_attrs.get("facts")
            if known is None:
                found.set_user_attr("facts", facts)
            elif changed := [fact for fact in {**facts, **known} if facts.get(fact) != known.get(fact)]:
                raise GkdError(
                    f"{option}study {name} was begun with another {', another '.join(changed)}: give it another name, "
                    f"or another {option}storage"
                )
    return Search(found, space, seeds, place, prune, database)


def open_database(storage: str, option: str = "") -> optuna.storages.RDBStorage:
    """The database, its tables made where there are none.

    Raises:
        GkdError: it is no address, its driver is not installed, or nothing answers there.
    """
    shown = redact(storage)
    if "://" not in storage:
        raise GkdError(
            f"{option}storage is {shown}: give the address of a database, such as sqlite:///search.db or "
            "postgresql://HOST/NAME"
        )
    kind = storage.partition(":")[0].partition("+")[0]
    waiting = {"connect_args": {"timeout": DATABASE_SECONDS}} if kind == "sqlite" else {"pool_pre_ping": True}
    try:
        return optuna.storages.RDBStorage(
            storage,
            engine_kwargs=waiting,
            heartbeat_interval=BEAT_SECONDS,
            grace_period=SILENT_SECONDS,
            heartbeat_stale_trial_callback=optuna.storages.RetryHeartbeatStaleTrialCallback(RETRIES),
        )
    except ImportError as error:
        raise GkdError(f"{option}storage {shown} needs a driver: {' '.join(str(error).split())}") from None
    except (SQLAlchemyError, ValueError, RuntimeError, optuna.exceptions.OptunaError) as error:
        raise GkdError(f"{option}storage {shown} cannot be opened: {_reason(error)}") from None


@contextlib.contextmanager
def _database() -> Iterator[None]:
    """What a database says when it cannot be reached, as one sentence."""
    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        cause = error.__cause__ or error
        raise GkdError(
            f"the study's database does not answer ({_reason(cause)}): run the same command again when it does"
        ) from None


def _reason(error: BaseException) -> str:
    return redact(str(error).strip().splitlines()[0]) if str(error).strip() else type(error).__name__


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without Optuna's words about what it calls experimental, or thinks we did not mean."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"optuna\b.*")
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        warnings.filterwarnings("ignore", message="Heartbeat of storage is supposed")
        yield


def _exhausted(trials: Sequence[FrozenTrial]) -> bool:
    last = trials[-COPIES_AT_LAST:]
    return len(last) == COPIES_AT_LAST and all(COPY in trial.user_attrs for trial in last)


def _unheard(row: dict[str, float], epochs: int) -> None:
    """Of seeds after the first: a setting that has come so far is trained to its end."""


def of_seed(seed: int) -> str:
    return f"seed {seed}"


def _seeded(params: Params, seed: int) -> Params:
    return params.model_copy(update={"train": params.train.model_copy(update={"seed": seed})})


def say(text: str) -> None:
    """A line on stderr."""
    print(text, file=sys.stderr, flush=True)
