"""What a training tells while it runs: an MLflow run that grows with every epoch, and curves for DVC (`curves.py`).

A thread speaks to MLflow, so a server that is slow, away or gone costs the training nothing; what was missed is sent
with the next epoch, or by `gkd register`, which goes on in the same run. That run bears a token, which lies beside the
checkpoint before the run is made: a training that was killed and goes on never makes a second one.
"""

import contextlib
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from components import mlflow_store
from components.curves import Curves
from components.mlflow_store import Store
from gkd_core.config import TrackingConfig
from gkd_core.errors import GkdError
from gkd_core.files import folder_digest, read_json, write_json
from gkd_core.redact import redact
from gkd_core.tables import read_table
from gkd_core.training import distributed
from gkd_core.training.trainer import StopTraining

TOKEN = "mlflow.json"  # beside the checkpoint
FACTS = "run.json"  # of a finished training; it is in no digest
LAST_SECONDS, BRIEF_SECONDS = 20.0, 5.0  # for what is left to be sent when a training has ended well, or not
# For a training that waits for nobody; MLflow's own settings would keep its thread at a dead server for minutes.
BRIEF = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}


@contextlib.contextmanager
def followed(settings: TrackingConfig, dvclive: Path | None = None, *, several: bool = False) -> Iterator["Live"]:
    """What follows the trainings of a step within the block; with several processes, the first one's.

    Args:
        settings: whether and where they are logged in MLflow.
        dvclive: folder for DVCLive's files; None writes none.
        several: the step trains several networks, whose curves there are told apart.
    """
    first = distributed.rank() == 0
    to_mlflow = first and mlflow_store.follows(settings)
    with mlflow_store.http_settings(BRIEF if to_mlflow else {}):  # not by the thread: others read them meanwhile
        curves = Curves(dvclive) if first and dvclive is not None else None
        live = Live(_Sender(settings) if to_mlflow else None, curves, several=several)
        try:
            yield live
        except Exception as error:
            live.close("KILLED" if isinstance(error, StopTraining) else "FAILED", BRIEF_SECONDS)
            raise
        except BaseException:  # a stop: the training may go on later
            live.close("KILLED", BRIEF_SECONDS)
            raise
        live.close("FINISHED", LAST_SECONDS)


def no_curves(dvclive: Path | None) -> None:
    """What DVC expects of a step that trains nothing."""
    if dvclive is not None and distributed.rank() == 0:
        Curves(dvclive)


@dataclass
class _Run:
    """One training, and what of it is not in MLflow yet.

    Attributes:
        rows: each with its time, in milliseconds since 1970.
        status: once the training has ended.
        logged: metrics and steps that the run has; None where it may have others than are known here, since it is gone
            on with or a request failed half-way.
        closed: status and tags that it was ended with.
    """

    token: str
    name: str
    tags: dict[str, str]
    params: dict[str, Any]
    rows: list[tuple[int, dict[str, float | None]]] = field(default_factory=list)
    status: str = ""
    run_id: str = ""
    address: str | None = None
    logged: set[tuple[str, int]] | None = None
    closed: tuple[str, dict[str, str]] | None = None

    @property
    def sent(self) -> bool:
        """MLflow has all that there is."""
        return bool(self.run_id) and not self.rows and (not self.status or self.closed == (self.status, self.tags))


class Live:
    """Follows trainings, one after the other (a `gkd_core.training.watcher.Watcher`)."""

    def __init__(self, sender: "_Sender | None", curves: Curves | None = None, *, several: bool = False) -> None:
        self._sender, self._curves, self._several = sender, curves, several
        self._run: _Run | None = None
        self._label, self._history = "", list[dict[str, float]]()

    def begin(self, name: str, facts: dict[str, Any], work: Path | None, history: list[dict[str, float]]) -> None:
        """A training begins, or goes on after the epochs of `history`."""
        if self._curves is not None:
            several = work is not None and (self._several or "generation" in facts)
            self._label = work.name.removesuffix(".training") if several and work else ""
            for file in sorted(work.parent.glob("*/history.csv")) if several and work else []:
                self._curves.write(file.parent.name, read_table(file))  # finished before this process began
            self._history = list(history)
            self._curves.write(self._label, history)
        if self._sender is not None:
            with _never_the_trainings_fault():
                self._run = _Run(_token(work), name, _tags(facts), _params(facts))
                self._run.rows = _timed(history)
                self._sender.add(self._run)

    def epoch(self, row: dict[str, float], images_per_second: float) -> None:
        """An epoch is over."""
        if self._curves is not None:
            self._history.append(row)
            self._curves.write(self._label, self._history)
        if self._sender is not None and self._run is not None:
            speed = {"images_per_second": images_per_second} if images_per_second else {}
            self._run.rows += _timed([row | speed])
            self._sender.wake()

    def end(self, history: list[dict[str, float]]) -> None:
        """The training came to its end."""
        if self._curves is not None:
            self._curves.write(self._label, history)
        if self._sender is not None and self._run is not None:
            self._run.rows += _timed(history)  # what is there already is left out
            self._run.status = "FINISHED"
            self._sender.wake()

    def saved(self, folder: Path) -> None:
        """The training that ended last is in `folder`, not yet under its final name: note there which run it has."""
        run = self._run
        if self._sender is None or run is None:
            return
        with _never_the_trainings_fault():
            run.tags["gkd.digest"] = folder_digest(folder)
            self._sender.wait(LAST_SECONDS)
            facts = read_json(folder / FACTS, "the folder")
            known = {"run_id": run.run_id, "address": run.address}
            facts["mlflow"] = {"token": run.token} | {name: value for name, value in known.items() if value}
            write_json(folder / FACTS, facts)

    def close(self, status: str, seconds: float) -> None:
        """No training comes any more; the one at work, if any, ended like this. So long is waited at most."""
        if self._sender is not None:
            if self._run is not None and not self._run.status:
                self._run.status = status
            self._sender.close(seconds)


class _Sender(threading.Thread):
    """Brings runs to MLflow. It dies with the process, so it never keeps one alive."""

    def __init__(self, settings: TrackingConfig) -> None:
        super().__init__(name="gkd-live", daemon=True)
        self._settings = settings.model_copy(update={"attempts": 1})
        self._runs: list[_Run] = []
        self._changed = threading.Condition()
        self._asked = self._served = 0
        self._closing = self._said = False
        self._monitor: Any = None

    def add(self, run: _Run) -> None:
        """One more run."""
        self._runs.append(run)
        if self.ident is None:
            self.start()
        self.wake()

    def wake(self) -> None:
        """There is something new."""
        with self._changed:
            self._asked += 1
            self._changed.notify_all()

    def wait(self, seconds: float) -> None:
        """Until all that there is was tried, but no longer than this."""
        if self.ident is not None:
            self.wake()
            with self._changed:
                asked = self._asked
                self._changed.wait_for(lambda: self._served >= asked, seconds)

    def close(self, seconds: float) -> None:
        """Send what is left."""
        self._closing = True
        if not all(run.sent for run in self._runs):
            self.wait(seconds)
        else:
            self.wake()
        if self._said and (missing := [run.name for run in self._runs if not run.sent]):
            _note(f"not all metrics of {', '.join(missing)} are in MLflow: `gkd register` sends the others")

    def run(self) -> None:
        """Send whatever is new, as long as somebody may bring more."""
        while not self._closing or self._served < self._asked:
            with self._changed:
                self._changed.wait_for(lambda: self._served < self._asked)
                asked = self._asked
            self._send_all()
            with self._changed:
                self._served = asked
                self._changed.notify_all()

    def _send_all(self) -> None:
        if not (todo := [run for run in self._runs if not run.sent]):
            return
        try:
            # Others need not wait for this one where there is a database already.
            create = not mlflow_store.is_there(self._settings)
            with mlflow_store.connect(self._settings, again="", create=create) as store:
                for run in todo:
                    self._send(store, run)
        except Exception as error:
            for run in todo:
                run.logged = None
            if not self._said:
                self._said = True
                own = isinstance(error, GkdError)
                _note(f"no live metrics: {error if own else f'{type(error).__name__}: {error}; the training goes on'}")

    def _send(self, store: Store, run: _Run) -> None:
        if not run.run_id:
            run_id = store.open_run(run.token, run.name, run.tags, run.params)
            run.address = store.address(run_id)
            run.run_id = run_id
        if run.logged is None:
            run.logged = store.logged(run.run_id)
        rows, closed = list(run.rows), (run.status, dict(run.tags))
        store.log_rows(run.run_id, rows, run.logged)
        run.logged |= {(name, int(row["epoch"] or 0)) for _, row in rows for name in row}
        del run.rows[: len(rows)]
        if closed[0]:
            self._stop_monitor()
            store.close_run(run.run_id, *closed)
            run.closed = closed
        elif self._settings.system_metrics and not mlflow_store.is_alive(self._monitor):
            with contextlib.suppress(ImportError):  # psutil does not come with mlflow-skinny
                self._monitor = store.system_metrics(run.run_id)

    def _stop_monitor(self) -> None:
        if self._monitor is not None:
            self._monitor.finish()
            self._monitor = None


def _token(work: Path | None) -> str:
    """The token of the training whose checkpoint is in `work`: the same, however often it is killed and goes on."""
    if work is None:
        return uuid.uuid4().hex
    file = work / TOKEN
    if not file.exists():
        work.mkdir(parents=True, exist_ok=True)
        write_json(file, {"token": uuid.uuid4().hex})
    return str(read_json(file, "the folder of the checkpoint", keys=["token"])["token"])


def _tags(facts: dict[str, Any]) -> dict[str, str]:
    names = {"gkd.role": "role", "gkd.data": "data_sha256", "gkd.weights": "weights_digest", "gkd.plugins": "plugins"}
    return {tag: str(facts[name]) for tag, name in names.items() if facts.get(name)}


def _params(facts: dict[str, Any]) -> dict[str, Any]:
    """As `gkd register` names them, which logs the others."""
    plain = {name: value for name, value in facts.items() if not name.endswith(("_digest", "_sha256"))}
    section = "teacher.train" if facts.get("role") in ("teacher", "assistant") else "train"
    return mlflow_store.flat(plain | {section: plain.pop("training", {})})


def _timed(rows: list[dict[str, float]]) -> list[tuple[int, dict[str, float | None]]]:
    now = int(time.time() * 1000)
    return [(now, dict(row)) for row in rows]


@contextlib.contextmanager
def _never_the_trainings_fault() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        _note(f"no live metrics: {error}")


def _note(text: str) -> None:
    print(f"gkd: {redact(text)}", file=sys.stderr, flush=True)
