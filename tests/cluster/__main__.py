"""`make cluster-test`, or `python -m tests.cluster [CHECK …]`: is the cluster at hand one on which gkd works?

Every check is asked of the real thing: objects through the `kubernetes` client, `gkd` as a process. A table says what
passed. Exit codes: 0 nothing failed, 1 something did or it was interrupted, 2 there is no cluster to check. Everything
that is made lies in one namespace and is removed at the end, after Ctrl-C too.
"""

import argparse
import json
import logging
import signal
import sys
import tempfile
import uuid
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gkd_core.errors import GkdError
from gkd_core.redact import redact
from tests.cluster import checks, ground, settings
from tests.cluster.api import Api
from tests.cluster.checks import FAILED, NOT_RUN, Check, Outcome
from tests.cluster.cleaning import clean
from tests.cluster.ground import Ground, last_line


def say(line: str) -> None:
    """Progress, on stderr."""
    print(line, file=sys.stderr, flush=True)


def check_all(here: Ground, wanted: Sequence[Check]) -> tuple[list[Outcome], bool]:
    """Run the checks and clean up.

    Returns:
        What came of each, and whether somebody interrupted them.
    """
    outcomes: list[Outcome] = []
    interrupted = False
    try:
        for check in wanted:
            say(f"{check.name} …")
            outcomes.append(checks.run(check, here, outcomes))
            say(f"{check.name}: {outcomes[-1].result} ({outcomes[-1].words})")
    except KeyboardInterrupt:
        interrupted = True
        outcomes += [Outcome(check.name, NOT_RUN, 0.0, "interrupted") for check in wanted[len(outcomes) :]]
    label = "=".join(next(iter(here.label.items())))
    if here.settings.keep:
        outcomes.append(Outcome("clean up", NOT_RUN, 0.0, f"GKD_CLUSTER_KEEP: everything has the label {label}"))
    else:
        say("clean up … (Ctrl-C leaves what is not removed yet)")
        try:
            outcomes.append(checks.timed("clean up", lambda: clean(here)))
        except KeyboardInterrupt:
            interrupted = True
            outcomes.append(Outcome("clean up", FAILED, 0.0, f"interrupted: what is left has the label {label}"))
    return outcomes, interrupted


def prepared(given: settings.Settings, folder: Path, **how: Any) -> Ground:
    """What the checks stand on, once both servers have answered.

    Raises:
        GkdError: one does not, or does not let us in.
    """
    here = Ground(given, Api(given.kubeconfig, given.namespace, uuid.uuid4().hex[:8]), folder, say, **how)
    done = here.pipeline("list", "--limit", "1", code=None)
    if done.returncode and "several users" in done.stderr:
        here.several_users = True
        done = here.pipeline("list", "--limit", "1", code=None)
    if done.returncode:
        raise GkdError(f"there is no cluster to check: {last_line(done.stderr)}")
    for nodes in (False, True):
        here.profile(nodes=nodes)
    return here


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def main(arguments: Sequence[str] | None = None, **how: Any) -> int:
    """The command; its exit code.

    Args:
        how: how Ground calls `gkd`, for rehearsals.
    """
    parser = argparse.ArgumentParser(
        prog="python -m tests.cluster",
        description="Check the cluster at hand: docs/kubernetes.md, 'Is my cluster ready?'.",
        epilog=f"environment variables [default]:\n{settings.table()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = ", ".join(check.name for check in checks.CHECKS)
    parser.add_argument("checks", nargs="*", metavar="CHECK", help=f"some of them, with what they need: {names}")
    names_given = parser.parse_args(arguments).checks
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # what it tries again it would tell each time
    with tempfile.TemporaryDirectory(prefix="gkd-cluster-test-") as folder:
        signal.signal(signal.SIGTERM, _interrupt)
        try:
            wanted = checks.chosen(names_given)
            here = prepared(settings.read(), Path(folder), **how)
        except (GkdError, ground.Failed) as error:
            say(f"gkd: {redact(str(error))}")
            return 2
        except KeyboardInterrupt:
            say("gkd: interrupted before anything was made")
            return 1
        say(f"namespace {here.api.namespace}, everything made has the label gkd-cluster-test={here.api.test}")
        outcomes, interrupted = check_all(here, wanted)
    print(redact(checks.table(outcomes)))
    print(redact(json.dumps([asdict(outcome) for outcome in outcomes])))
    return 1 if interrupted or any(outcome.result == FAILED for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
