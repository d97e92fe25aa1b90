"""The checks in their order, how one is run, and the table of what passed."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gkd_core.errors import GkdError, unknown
from tests.cluster import access, runs, serving
from tests.cluster.ground import Failed, Ground, NotRun


@dataclass(frozen=True)
class Check:
    """One question.

    Attributes:
        run: what was found, in a few words; raises Failed or NotRun.
        needs: checks that must have passed; one that was not run is no hindrance where it has `optional`.
        optional: whether others go on when it has no object here.
    """

    name: str
    run: Callable[[Ground], str]
    needs: tuple[str, ...] = ()
    optional: bool = False


CHECKS = (
    Check("rights", access.rights),
    Check("volume", access.volume, ("rights",), optional=True),
    Check("roles", access.roles),
    Check("submit", runs.submit, ("rights", "volume")),
    Check("logs", runs.logs, ("submit",)),
    Check("cache", runs.cache, ("submit", "logs")),
    Check("failed-step", runs.failed, ("rights", "volume")),
    Check("resume", runs.resume, ("rights", "volume")),
    Check("TrainJob", runs.train_job, ("rights", "volume")),
    Check("schedule", runs.schedule, ("submit",)),
    Check("stop", runs.stop, ("rights", "volume")),
    Check("serve", serving.serve, ("submit",)),
    Check("roll", serving.roll, ("serve",)),
)
PASSED, FAILED, NOT_RUN = "passed", "failed", "not run"


@dataclass(frozen=True)
class Outcome:
    """Of one check."""

    check: str
    result: str
    seconds: float
    words: str


def chosen(names: Sequence[str]) -> list[Check]:
    """Those of these names and what they need; all without a name.

    Raises:
        GkdError: a name is none of theirs.
    """
    known = {check.name: check for check in CHECKS}
    wanted: set[str] = set()

    def want(name: str) -> None:
        if name not in known:
            raise GkdError(unknown("check", name, known))
        wanted.add(name)
        for other in known[name].needs:
            want(other)

    for name in names or known:
        want(name)
    return [check for check in CHECKS if check.name in wanted]


def run(check: Check, ground: Ground, before: Sequence[Outcome]) -> Outcome:
    """One check, if what it needs has passed."""
    optional = {one.name for one in CHECKS if one.optional}
    for outcome in before:
        fine = outcome.result == PASSED or (outcome.result == NOT_RUN and outcome.check in optional)
        if outcome.check in check.needs and not fine:
            return Outcome(check.name, NOT_RUN, 0.0, f"{outcome.check} {_tense(outcome.result)}")
    return timed(check.name, lambda: check.run(ground))


def _tense(result: str) -> str:
    return {FAILED: "failed", NOT_RUN: "was not run"}[result]


def timed(name: str, work: Callable[[], str]) -> Outcome:
    """What comes of it; whatever goes wrong in it is the check's failure, in one line."""
    began = time.monotonic()
    try:
        result, words = PASSED, work()
    except NotRun as reason:
        result, words = NOT_RUN, str(reason)
    except (Failed, GkdError) as error:
        result, words = FAILED, str(error)
    except Exception as error:  # an answer that nobody expected is a finding too, and the other checks are to run
        result, words = FAILED, f"{type(error).__name__}: {error}"
    return Outcome(name, result, time.monotonic() - began, " ".join(words.split()))


def table(outcomes: Sequence[Outcome]) -> str:
    """As text, a line a check.

    >>> print(table([Outcome("submit", "passed", 286.4, "10 tasks")]))
    check   result   seconds  what
    submit  passed       286  10 tasks
    """
    width = max([len(outcome.check) for outcome in outcomes] + [5])
    lines = [f"{'check':{width}}  {'result':7}  seconds  what"]
    lines += [f"{o.check:{width}}  {o.result:7}  {o.seconds:7.0f}  {o.words}".rstrip() for o in outcomes]
    return "\n".join(lines)
