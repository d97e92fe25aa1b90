"""All of MLflow: the address of the tracking store, runs, registered versions, aliases, and its errors as sentences.

Runs and versions are found by digests in their tags, so that whatever is logged twice is there once. A run counts when
it bears `gkd.complete`, the last thing written to it; an interrupted one is marked as failed and made anew, since
MLflow's parameters cannot be overwritten. A run that grew while its training ran (`live.py`) is found by a token and
filled up: what it has is not logged again. MLflow is imported where it is used: reading a registered version needs only
its small distribution (mlflow-skinny), and a command that asks no registry imports none of it.
"""

import atexit
import contextlib
import fcntl
import hashlib
import importlib.util
import json
import logging
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from gkd_core.config import TrackingConfig
from gkd_core.errors import GkdError, unknown
from gkd_core.files import folder_digest
from gkd_core.redact import redact

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

# Read when MLflow is imported: no reports to its makers, no news of its own on the terminal.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")

MODELS = "models:/"
DEFAULT_URI = "sqlite:///mlflow.db"
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")

# Names of a run's artifacts, and the tag that guards one of them.
NETWORK = "network"
DEPLOY = "deploy"
REPORT = "report"
CORRECT = "correct.npy"  # whether the version was right on each test image, for a later challenger
GATE = "gate"  # the folder with CORRECT
CORRECT_TAG = "gkd.correct"  # sha256 of CORRECT
METRICS_TAG = "gkd.metrics"  # sha256 of the report's metrics.json
# Variables of a task on a cluster: the pipeline's run, and a run's page in the web interface, KFP_PLACE for the run.
KFP_RUN, KFP_PAGE, KFP_PLACE = "GKD_KFP_RUN", "GKD_KFP_PAGE", "{run}"
LIVE_TAG = "gkd.live"  # a token: which training's run it is, from its first epoch on
GUARDED = {
    "gkd.manifest": f"{DEPLOY}/manifest.json",
    METRICS_TAG: f"{REPORT}/metrics.json",
    CORRECT_TAG: f"{GATE}/{CORRECT}",
}
LINEAGE_TAGS = {  # tags of a version, each with the manifest's value that it holds
    "gkd.data": "data_sha256",
    "gkd.teacher": "teacher_digest",
    "gkd.student": "student_digest",
    "gkd.config": "config_digest",
    "gkd.weights": "weights_digest",  # of a student that started from learnt weights
    "gkd.code": "code_sha256",
    "gkd.plugins": "plugins",  # where any took part
    "gkd.method": "method",
    "gkd.network": "network",
}
LONG_PARAMS = "long_params.json"  # parameters above MLflow's limit, whole
LONGEST_PARAM = 6000  # characters; MLflow cuts what is longer
MODEL = "model"  # the logged ONNX model
SERVING = ("mlflow", "numpy", "onnx", "onnxruntime")  # what MLflow needs to serve it

# MLflow's own settings (7 tries with growing pauses, 120 s each) would wait many minutes for a dead server.
PROBING = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "5", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
WORKING = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
}
LONGEST_PAUSE = 10  # seconds between two tries to reach the server
ABANDONED = 15 * 60  # seconds after which what is half-written on a server is nobody's any more

ABSENT = ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND", "INVALID_PARAMETER_VALUE")
UNAUTHORISED = ("UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED", "PERMISSION_DENIED")
OVERLOADED = ("TEMPORARILY_UNAVAILABLE", "DEADLINE_EXCEEDED", "REQUEST_LIMIT_EXCEEDED")
CLIENTS = ("mlflow", "sqlalchemy", "requests", "urllib3", "boto3", "botocore", "google", "azure")
PACKAGES = {"botocore": "boto3", "google": "google-cloud-storage", "azure": "azure-storage-blob"}  # by module


@dataclass(frozen=True)
class RunRecord:
    """All that one run holds.

    Attributes:
        key: digest by which the run is found again.
        name: for people.
        tags, params: flat.
        history: one row an epoch; `epoch` is the step, the other columns are metrics, None where there is no value.
        metrics: final values.
        artifacts: file or folder by its place among the run's artifacts.
        token: of the run that grew while the training ran; empty for none that is known.
    """

    key: str
    name: str
    tags: dict[str, str]
    params: dict[str, Any]
    history: list[dict[str, float | None]]
    metrics: dict[str, float]
    artifacts: dict[str, Path]
    token: str = ""


@dataclass(frozen=True)
class Version:
    """A registered version: its number, its run, its tags, and when it was made (milliseconds since 1970)."""

    number: int
    run_id: str
    tags: dict[str, str]
    created_ms: int


def resolve_uri(uri: str | None) -> str:
    """The tracking address: `tracking.uri`, else MLFLOW_TRACKING_URI, else a database in the current folder.

    In the temporary clone of a DVC experiment, a relative database is that of the checkout the clone was made of.
    """
    address = uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI
    file, checkout = database_file(address), checkout_of(Path.cwd())
    if file is None or file.is_absolute() or checkout == Path.cwd():
        return address
    return address.replace(f":///{file}", f":///{checkout / file}", 1)


def follows(settings: TrackingConfig) -> bool:
    """Whether trainings are logged while they run."""
    named = bool(settings.uri or os.environ.get("MLFLOW_TRACKING_URI"))
    return named if settings.live is None else settings.live


def is_there(settings: TrackingConfig) -> bool:
    """Whether the address is no SQLite database that has yet to be made."""
    file = database_file(resolve_uri(settings.uri))
    return file is None or file.exists()


def database_file(uri: str) -> Path | None:
    """The file of a SQLite address; None for any other address, and for a database in memory."""
    match = re.fullmatch(r"sqlite(?:\+\w+)?:///(?!:memory:|file:)([^?]+)(?:\?.*)?", uri)
    return Path(match[1]) if match else None


def checkout_of(folder: Path) -> Path:
    """The folder itself; in a clone that `dvc exp run --temp` or `--queue` made, the same folder of the checkout.

    DVC runs such experiments in .dvc/tmp/exps/ of the checkout and removes the clone afterwards.
    """
    folder = folder.absolute()
    clone = next((place for place in (folder, *folder.parents) if (place / ".dvc").is_dir()), None)
    parts = () if clone is None else clone.parts
    for start in range(len(parts) - 3):
        if parts[start : start + 3] == (".dvc", "tmp", "exps") and clone is not None:
            return Path(*parts[:start]) / folder.relative_to(clone)
    return folder


@contextlib.contextmanager
def connect(settings: TrackingConfig, *, again: str, create: bool = False) -> Iterator["Store"]:
    """The tracking store, once it has answered.

    Args:
        again: the command to run again after a failure, for the error; empty for a training, which goes on.
        create: make a database that is not there; whoever only reads must not. Whoever may make one is alone: others
            who ask the same of a SQLite database wait until the block ends.
    Raises:
        GkdError: it does not answer after `settings.attempts` tries or falls silent later, refuses us, or is no
            tracking store. What was logged until then is found again by the next call.
    """
    uri = resolve_uri(settings.uri)
    with _errors_as_sentences(uri, again), _alone(uri if create else "") as alone:
        with http_settings(PROBING):
            _reach(uri, settings.attempts, create, "--tracking-uri" if again == "gkd serve" else "--set tracking.uri=…")
        with http_settings(WORKING):
            yield Store(uri, settings, alone=alone)


@contextlib.contextmanager
def _alone(uri: str) -> Iterator[bool]:
    """One process at a time: hold the lock file beside a SQLite database. For another address, False: nobody waits."""
    if (file := database_file(uri)) is None:
        yield False
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.with_name(f"{file.name}.lock").open("a") as lock:  # never removed: whoever waits holds it open
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _note(f"another process writes to {redact(uri)}: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield True


def parse_address(address: str) -> tuple[str, str]:
    """Name, and alias or number, of `models:/NAME@ALIAS` or `models:/NAME/VERSION`.

    Raises:
        GkdError: it is not of that form.
    """
    match = re.fullmatch(rf"{MODELS}([^/@]+)(?:@([^/@]+)|/(\d+))", address)
    if match is None:
        raise GkdError(f"{address!r} is not of the form {MODELS}NAME@ALIAS or {MODELS}NAME/VERSION")
    return match[1], match[2] or match[3]


def try_out(settings: TrackingConfig) -> None:
    """See, before hours of training, that a tracking server will take what `gkd register` brings.

    It has to answer, to accept the credentials, and to let the experiment and the registered model be written; both are
    made where they are not there. A database is not asked.

    Raises:
        GkdError: as `connect`, or it does not let us write.
    """
    if urlsplit(resolve_uri(settings.uri)).scheme in ("http", "https"):
        with connect(settings, again="gkd pipeline") as store:
            store.try_out()


@contextlib.contextmanager
def registered(address: str, settings: TrackingConfig, *, again: str) -> Iterator[tuple["Store", Version]]:
    """The store and the version that `models:/NAME@ALIAS` or `models:/NAME/VERSION` names.

    Raises:
        GkdError: it is not of that form, there is no such model, alias or version, or the store does not answer.
    """
    name, which = parse_address(address)
    with connect(settings.model_copy(update={"model_name": name}), again=again) as store:
        yield store, store.version(which)


def download_network(address: str, settings: TrackingConfig) -> Path:
    """The network folder of a registered student, copied to a folder that is removed when the process ends.

    Args:
        address: `models:/NAME@ALIAS` or `models:/NAME/VERSION`.
    Raises:
        GkdError: there is no such model, alias or version, it came without a network folder, or the copy is damaged.
    """
    with registered(address, settings, again="gkd teacher") as (store, version):
        folder = Path(tempfile.mkdtemp(prefix="gkd-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        network = store.download(version, NETWORK, folder)
    if network is None:
        raise GkdError(
            f"{address} (version {version.number}) has no network folder in {redact(store.uri)}: only students that "
            "gkd registered can be teachers, others are imported from a state-dict file"
        )
    if folder_digest(network) != version.tags.get("gkd.student"):
        raise GkdError(
            f"the network of {address} (version {version.number}) is not the one that was registered: damaged"
        )
    return network


class Store:
    """A tracking store that has answered: its runs, and the versions of one registered model."""

    def __init__(self, uri: str, settings: TrackingConfig, *, alone: bool = False) -> None:
        """`alone`: nobody else writes to the store meanwhile, so that what is half-written there is nobody's."""
        from mlflow import MlflowClient

        self.uri = uri
        self._alone = alone
        self.name = settings.model_name
        self._experiment_name = settings.experiment
        self._client = MlflowClient(uri)

    def log_run(self, record: RunRecord) -> str:
        """The id of the complete run with this key, in whatever experiment; it is made if there is none."""
        experiment, parent = self._place()
        for run in self._runs("gkd.key", record.key):
            if run.data.tags.get("gkd.complete") == "true":
                return str(run.info.run_id)
            if run.info.status == "RUNNING" and self._abandoned(run.info.start_time):
                self._client.set_terminated(run.info.run_id, "FAILED")

        tags = record.tags | {"gkd.key": record.key}
        if (grown := self._grown(record)) is not None:
            self._client.update_run(grown, name=record.name)
            self._fill(grown, record, tags)
            return grown
        run_id = self._create_run(experiment, parent, record.name, tags)
        try:
            self._fill(run_id, record, {})
        except BaseException:
            with contextlib.suppress(Exception):
                self._client.set_terminated(run_id, "FAILED")
            raise
        return run_id

    def _create_run(self, experiment: str, parent: str | None, name: str, tags: dict[str, str]) -> str:
        """A run, under the one that the platform opened; on a cluster the pipeline's run is named in it."""
        run, page = os.environ.get(KFP_RUN), os.environ.get(KFP_PAGE)
        tags = tags | ({"mlflow.parentRunId": parent} if parent else {}) | ({"gkd.kfp_run": run} if run else {})
        if run and page:
            tags["gkd.kfp_address"] = page.replace(KFP_PLACE, run)
        return str(self._client.create_run(experiment, tags=tags, run_name=name).info.run_id)

    def _runs(self, tag: str, value: str) -> list[Any]:
        """The runs with this tag, oldest first, in whatever experiment."""
        from mlflow.entities import ViewType

        experiments = [found.experiment_id for found in _pages(self._client.search_experiments)]
        oldest_first = ["attributes.start_time ASC"]
        return list(
            self._client.search_runs(experiments, _tagged(tag, value), ViewType.ACTIVE_ONLY, order_by=oldest_first)
        )

    def _grown(self, record: RunRecord) -> str | None:
        """The run that grew while this training ran, by its token, which a folder may have lost, or by its digest."""
        found = self._runs(LIVE_TAG, record.token) if record.token else []
        if not found and (digest := record.tags.get("gkd.digest")):
            found = [run for run in self._runs("gkd.digest", digest) if LIVE_TAG in run.data.tags]
        unfilled = [run for run in found if run.data.tags.get("gkd.complete") != "true"]
        return str(unfilled[-1].info.run_id) if unfilled else None

    def _abandoned(self, since_ms: int) -> bool:
        """Whether whoever began to write something then was killed, and is not just busy with it elsewhere."""
        return self._alone or time.time() - since_ms / 1000 > ABANDONED

    def _fill(self, run_id: str, record: RunRecord, tags: dict[str, str]) -> None:
        """Log what the run does not have; `tags` are set with the last one."""
        from mlflow.entities import RunTag

        texts = {key: _text(value) for key, value in record.params.items()}
        long = {key: record.params[key] for key, text in texts.items() if len(text) > LONGEST_PARAM}
        for key, value in long.items():
            digest = hashlib.sha256(texts[key].encode()).hexdigest()
            texts[key] = _text({"length": len(value), "sha256": digest, "artifact": LONG_PARAMS})
        self._log_params(run_id, texts)
        now, known = int(time.time() * 1000), self.logged(run_id)
        rows = [(now, row) for row in record.history]
        self.log_rows(run_id, [*rows, (now, {"epoch": 0, **record.metrics})], known)
        if long:
            self._client.log_dict(run_id, long, LONG_PARAMS)
        for place, source in record.artifacts.items():
            log = self._client.log_artifacts if source.is_dir() else self._client.log_artifact
            log(run_id, str(source), place)
        last = [RunTag(key, value) for key, value in (tags | {"gkd.complete": "true"}).items()]
        self._client.log_batch(run_id, tags=last)
        self._client.set_terminated(run_id)

    def _log_params(self, run_id: str, texts: dict[str, str]) -> None:
        """Those that the run does not have: MLflow takes no second value."""
        from mlflow.entities import Param

        known = self._client.get_run(run_id).data.params
        new = [Param(key, text) for key, text in texts.items() if key not in known]
        for some in _chunks(new, 100):
            self._client.log_batch(run_id, params=some)

    def open_run(self, token: str, name: str, tags: dict[str, str], params: dict[str, Any]) -> str:
        """The run of a training that begins or goes on, made if there is none with this token; it is RUNNING."""
        if found := self._runs(LIVE_TAG, token):
            run_id = str(found[0].info.run_id)
            self._client.update_run(run_id, status="RUNNING")
        else:
            experiment, parent = self._place()
            run_id = self._create_run(experiment, parent, name, tags | {LIVE_TAG: token})
        texts = {key: _text(value) for key, value in params.items()}
        self._log_params(run_id, {key: text for key, text in texts.items() if len(text) <= LONGEST_PARAM})
        return run_id

    def logged(self, run_id: str) -> set[tuple[str, int]]:
        """The metrics that a run has, each with its step."""
        names = [name for name in self._client.get_run(run_id).data.metrics if not name.startswith("system/")]
        return {(name, metric.step) for name in names for metric in self._client.get_metric_history(run_id, name)}

    def log_rows(
        self, run_id: str, rows: list[tuple[int, dict[str, float | None]]], known: set[tuple[str, int]]
    ) -> None:
        """Log rows of a history: in each `epoch` is the step, the others are metrics, None where there is no value.

        Args:
            rows: each with its time, in milliseconds since 1970.
            known: metrics and steps that the run has; they are left out.
        """
        from mlflow.entities import Metric

        metrics: dict[tuple[str, int], Metric] = {}
        for time_ms, row in rows:
            step = int(row["epoch"] or 0)
            for key, value in row.items():
                if key != "epoch" and value is not None and (key, step) not in known:
                    metrics.setdefault((key, step), Metric(key, value, time_ms, step))
        for some in _chunks([*metrics.values()], 1000):
            self._client.log_batch(run_id, metrics=some)

    def close_run(self, run_id: str, status: str, tags: dict[str, str]) -> None:
        """End a run that grew, as FINISHED, FAILED or KILLED."""
        from mlflow.entities import RunTag

        if tags:
            self._client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
        self._client.set_terminated(run_id, status)

    def address(self, run_id: str) -> str | None:
        """Where people see a run, without credentials; None where nothing but a database is known."""
        parts = urlsplit(self.uri)
        if parts.scheme not in ("http", "https"):
            return None
        place = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
        return f"{place}/#/experiments/{self._client.get_run(run_id).info.experiment_id}/runs/{run_id}"

    def system_metrics(self, run_id: str) -> Any:
        """What logs the load of this machine into a run, by MLflow's own means; it ends when the store is away."""
        from mlflow.system_metrics import system_metrics_monitor

        monitor_type: Any = system_metrics_monitor.SystemMetricsMonitor  # it has no types
        logging.getLogger("mlflow.system_metrics").setLevel(logging.CRITICAL)  # one of us says that the store is away
        monitor = monitor_type(run_id, resume_logging=True, tracking_uri=self.uri)
        monitor.start()
        return monitor

    def _place(self) -> tuple[str, str | None]:
        """Experiment and parent of a new run: those of MLFLOW_RUN_ID, else MLFLOW_EXPERIMENT_ID, else by name."""
        shown = redact(self.uri)
        parent, given = os.environ.get("MLFLOW_RUN_ID"), os.environ.get("MLFLOW_EXPERIMENT_ID")
        if parent and (run := _or_none(self._client.get_run, parent)) is None:
            _note(f"MLFLOW_RUN_ID names the run {parent}, which {shown} does not have: left aside")
            parent = None
        if parent:
            experiment = self._client.get_experiment(run.info.experiment_id)
        elif given:
            experiment = _or_none(self._client.get_experiment, given)
            if experiment is None:
                raise GkdError(f"MLFLOW_EXPERIMENT_ID is {given!r}, which {shown} does not have: unset or correct it")
        else:
            experiment = self._client.get_experiment_by_name(self._experiment_name) or self._new_experiment()
        if experiment.lifecycle_stage != "active":
            way_out = "unset MLFLOW_RUN_ID and MLFLOW_EXPERIMENT_ID" if parent or given else "tracking.experiment"
            raise GkdError(
                f"the experiment {experiment.name!r} was deleted in {shown}: restore it, or choose another ({way_out})"
            )
        return str(experiment.experiment_id), parent

    def _new_experiment(self) -> Any:
        database, artifacts = database_file(self.uri), None
        if database is not None:  # beside the database, not wherever the first command happened to run
            artifacts = str(database.absolute().parent / "mlartifacts")
        with _made_by_another():
            self._client.create_experiment(self._experiment_name, artifact_location=artifacts)
        return self._client.get_experiment_by_name(self._experiment_name)

    def try_out(self) -> None:
        """Tag the experiment and the registered model, which wants the rights that a run and a version want."""
        experiment, _ = self._place()
        self._client.set_experiment_tag(experiment, "gkd", "true")
        self._make_registered()
        self._client.set_registered_model_tag(self.name, "gkd", "true")

    def find_version(self, manifest_digest: str) -> Version | None:
        """The version made of a manifest, or None."""
        found = self._search_versions(_tagged("gkd.manifest", manifest_digest))
        return min(found, key=lambda version: version.number, default=None)

    def register(self, run_id: str, model: Path, manifest: dict[str, Any], tags: dict[str, str]) -> Version:
        """Log the ONNX file as it is and register it as a new version, with all its tags from the first moment.

        A version that another process made of the same manifest meanwhile is returned instead.

        Args:
            run_id: the student's run.
            model: the ONNX file.
            manifest: what describes it.
            tags: of the version; `gkd.manifest` is how it is found again.
        """
        with _global_address(self.uri):
            model_id = self._log_model(run_id, model, manifest, tags["gkd.manifest"])
            self._make_registered()
            if (meanwhile := self.find_version(tags["gkd.manifest"])) is not None:
                return meanwhile
            made = self._client.create_model_version(
                self.name, f"{MODELS}{model_id}", run_id, tags=tags, await_creation_for=0, model_id=model_id
            )
        return _version(made)

    def _log_model(self, run_id: str, model: Path, manifest: dict[str, Any], manifest_digest: str) -> str:
        import mlflow.onnx
        import onnx

        experiment = self._client.get_run(run_id).info.experiment_id
        for logged in self._client.search_logged_models([experiment], _tagged("gkd.manifest", manifest_digest)):
            if logged.status == "READY":
                return str(logged.model_id)
            if self._abandoned(logged.creation_timestamp):
                self._client.delete_logged_model(logged.model_id)
        # Made beforehand: log_model alone would look for the experiment in the surroundings, not in the run.
        logged = self._client.create_logged_model(experiment, MODEL, run_id, tags={"gkd.manifest": manifest_digest})
        mlflow.onnx.log_model(
            onnx.load(model),
            name=MODEL,
            model_id=logged.model_id,
            run_id=run_id,
            signature=_signature(manifest),
            pip_requirements=[f"{name}=={metadata.version(name)}" for name in SERVING],
            onnx_execution_providers=["CPUExecutionProvider"],
            save_as_external_data=False,  # one file, the bytes that were exported
            metadata={"gkd.manifest": manifest_digest, "classes": manifest["classes"]},
        )
        return str(logged.model_id)

    def versions(self) -> list[Version]:
        """All registered versions, newest first; none where no model at all is registered yet.

        Raises:
            GkdError: there are models, but none of this name.
        """
        if self._registered() is None and (
            names := [model.name for model in _pages(self._client.search_registered_models)]
        ):
            raise GkdError(f"{redact(self.uri)}: {unknown('registered model', self.name, names)}")
        return sorted(self._search_versions(), key=lambda version: -version.number)

    def version(self, which: str) -> Version:
        """A version by number or alias.

        Raises:
            GkdError: the model has no such version or alias, or there is no such model.
        """
        get = self._client.get_model_version if which.isdecimal() else self._client.get_model_version_by_alias
        found = _or_none(get, self.name, which)
        if found is None:
            known = [*sorted(self.aliases()), *(str(version.number) for version in reversed(self.versions()))]
            raise GkdError(unknown(f"{self.name}: version or alias", which, known))
        return _version(found)

    def metrics(self, version: Version) -> dict[str, float]:
        """The last value of each metric of a version's run, by name; none where it has no run any more."""
        run = _or_none(self._client.get_run, version.run_id) if version.run_id else None
        return {} if run is None else dict(run.data.metrics)

    def aliases(self) -> dict[str, int]:
        """Version number by alias."""
        model = self._registered()
        return {} if model is None else {alias: int(number) for alias, number in model.aliases.items()}

    def point(self, alias: str, number: int) -> None:
        """Move an alias to a version."""
        self._client.set_registered_model_alias(self.name, alias, str(number))

    def tag(self, number: int, tags: dict[str, Any]) -> None:
        """Set tags of a version, in this order."""
        for key, value in tags.items():
            self._client.set_model_version_tag(self.name, str(number), key, _text(value))

    def download(self, version: Version, place: str, folder: Path) -> Path | None:
        """Copy an artifact of a version's run, a file or a folder, into `folder`; None when there is none."""
        if not version.run_id:
            return None
        listed = _or_none(self._client.list_artifacts, version.run_id, place.rpartition("/")[0] or None)
        if place not in [item.path for item in listed or []]:  # somebody may have deleted the run for good
            return None
        return Path(self._client.download_artifacts(version.run_id, place, str(folder)))

    def download_model(self, version: Version, folder: Path) -> Path | None:
        """Copy the ONNX file that a version serves into a new folder; None when it has none."""
        import mlflow

        folder.mkdir()
        uri = f"{MODELS}{self.name}/{version.number}"
        with _global_address(self.uri):
            found = mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(folder))
        return next(iter(sorted(Path(found).rglob("*.onnx"))), None)

    def _make_registered(self) -> None:
        if self._registered() is None:
            with _made_by_another():
                self._client.create_registered_model(self.name)

    def _registered(self) -> Any:
        return _or_none(self._client.get_registered_model, self.name)

    def _search_versions(self, condition: str = "") -> list[Version]:
        name = self.name.replace("'", "''")
        query = f"name = '{name}'" + (f" and {condition}" if condition else "")
        return [_version(made) for made in _pages(self._client.search_model_versions, filter_string=query)]


def is_alive(monitor: Any) -> bool:
    """Whether what `Store.system_metrics` started goes on logging; None is nothing."""
    return monitor is not None and monitor._process is not None and bool(monitor._process.is_alive())


def _signature(manifest: dict[str, Any]) -> "ModelSignature":
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    model = manifest["model"]
    kind = np.dtype("uint8" if model["input"].startswith("uint8") else "float32")
    return ModelSignature(
        inputs=Schema([TensorSpec(kind, (-1, *model["input_shape"]), model["input_name"])]),
        outputs=Schema([TensorSpec(np.dtype("float32"), (-1, len(manifest["classes"])), model["output"])]),
    )


def _version(made: Any) -> Version:
    return Version(int(made.version), made.run_id or "", dict(made.tags), int(made.creation_timestamp))


def _tagged(key: str, value: str) -> str:
    return f"tags.`{key}` = '{value}'"


def flat(content: Mapping[str, Any], separator: str = ".") -> dict[str, Any]:
    """Nested mappings as one, their keys joined; an empty one vanishes."""
    found: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            found |= {f"{key}{separator}{inner}": rest for inner, rest in flat(value, separator).items()}
        else:
            found[key] = value
    return found


def _text(value: Any) -> str:
    """As MLflow stores it: text as it is, everything else as JSON (null, true, [1, 2])."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)


def _chunks(items: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _pages(search: Callable[..., Any], **query: Any) -> Iterator[Any]:
    """All that a search finds."""
    token = None
    while True:
        page = search(**query, page_token=token)
        yield from page
        if not (token := page.token):
            return


def _or_none(get: Callable[..., Any], *arguments: Any) -> Any:
    """What a question for one thing answers; None where there is no such thing."""
    from mlflow.exceptions import MlflowException

    try:
        return get(*arguments)
    except MlflowException as error:
        if error.error_code not in ABSENT:
            raise
        return None


@contextlib.contextmanager
def _made_by_another() -> Iterator[None]:
    """Make something that another process may make at the same moment."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _reach(uri: str, attempts: int, create: bool, option: str) -> None:
    """One small question to the store, asked up to `attempts` times. `option` names another one, for the error."""
    from mlflow import MlflowClient

    database = uri.split(":")[0].split("+")[0] in DATABASES
    if database and importlib.util.find_spec("sqlalchemy") is None:
        raise GkdError(
            f"{redact(uri)} is a database, which mlflow-skinny cannot open: name a tracking server, or install "
            "gkd[track]"
        )
    for attempt in range(attempts):
        try:
            if database:
                _ask_database(uri, create, option)
            else:
                MlflowClient(uri).search_experiments(max_results=1)
            break
        except Exception as error:
            if attempt + 1 == attempts or not _may_pass(error):
                raise
            pause = min(2**attempt, LONGEST_PAUSE)
            _note(f"{redact(uri)} does not answer ({_cause(error)}), trying again in {pause} s")
            time.sleep(pause)


def _ask_database(uri: str, create: bool, option: str) -> None:
    """Asked directly: MLflow itself would try a database that is down for nearly an hour."""
    import sqlalchemy

    file, there = database_file(uri), False
    if file is None or file.exists():
        engine = sqlalchemy.create_engine(uri)
        try:
            with engine.connect() as connection:
                there = sqlalchemy.inspect(connection).has_table("experiments")
        finally:
            engine.dispose()
    if not there and not create:
        raise GkdError(
            f"there is no tracking store at {redact(uri)}: `gkd register` makes one; another is named by "
            f"MLFLOW_TRACKING_URI or {option}, or by tracking.uri in params.yaml"
        )
    if not there:
        _note(f"making the tracking store {redact(uri)} (some seconds)")
        if file is not None and not file.exists():
            _make_database(file)


def _make_database(file: Path) -> None:
    """Whole or not at all, for MLflow's migrations bear no kill; whoever calls it is alone (`_alone`)."""
    from mlflow import MlflowClient

    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".mlflow-") as name:
        made = Path(name).absolute() / "made.db"
        MlflowClient(f"sqlite:///{made}").search_experiments(max_results=1)
        whole = shutil.copyfile(made, made.with_name("whole.db"))  # MLflow goes on holding the other one open
        whole.rename(file)


def _may_pass(error: BaseException) -> bool:
    """Whether it is worth asking again: the other side was silent or overloaded, not unwilling."""
    if (code := getattr(error, "error_code", None)) is not None:
        return code in OVERLOADED or str(error).startswith("API request to http")
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"ConnectionError", "TimeoutError", "Timeout", "OperationalError"})


@contextlib.contextmanager
def _errors_as_sentences(uri: str, again: str) -> Iterator[None]:
    """Turn whatever the store, or the way to it, answers into one sentence for the user."""
    try:
        yield
    except Exception as error:
        theirs = isinstance(error, OSError | ImportError) or type(error).__module__.partition(".")[0] in CLIENTS
        if isinstance(error, GkdError) or not theirs:
            raise
        raise GkdError(_sentence(error, uri, again)) from error


def _sentence(error: Exception, uri: str, again: str) -> str:
    place = f"the tracking store {redact(uri)}"
    later = f"nothing is lost, run `{again}` again" if again else "what was missed is sent; the training goes on"
    reason, code = _cause(error), getattr(error, "error_code", None)
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, ImportError):
        module = (error.name or "").partition(".")[0]
        if module == "mlflow":
            return f"{place} needs MLflow, which is not installed: install gkd[track], or gkd[serve] to serve from it"
        package = PACKAGES.get(module, module) or reason
        proxied = ", or let the server hand out its artifacts (`mlflow server --serve-artifacts`)"
        return (
            f"{place} needs the Python package {package}, which is not installed: `pip install {package}`"
            f"{proxied if module in PACKAGES or module == 'boto3' else ''}; {later}"
        )
    if "Invalid Host header" in str(error):
        name = urlsplit(uri).netloc.rpartition("@")[2]
        return f"{place} does not accept requests to {name} ({reason}): start it with --allowed-hosts {name}; {later}"
    if code in UNAUTHORISED or status in (401, 403):
        return (
            f"{place} refuses us ({reason}): set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
            f"MLFLOW_TRACKING_TOKEN; {later}"
        )
    if code == "ENDPOINT_NOT_FOUND" or "valid JSON" in str(error):
        return (
            f"what answers at {redact(uri)} is not an MLflow tracking server: correct tracking.uri or "
            f"MLFLOW_TRACKING_URI; {later}"
        )
    if _may_pass(error):
        return f"{place} does not answer ({reason}): when it is back, {later}"
    return f"{place} does not do what is asked ({reason}): fix that; {later}"


def _cause(error: BaseException) -> str:
    """The innermost reason, on one line, without passwords."""
    if not hasattr(error, "error_code") or _may_pass(error):
        while (inner := error.__cause__ or error.__context__) is not None:
            error = inner
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return redact(lines[0][:300] if lines else type(error).__name__).rstrip(".")


def _note(text: str) -> None:
    print(redact(text), file=sys.stderr, flush=True)


@contextlib.contextmanager
def http_settings(settings: dict[str, str]) -> Iterator[None]:
    """Set variables that the user has not set, for the length of the block: MLflow reads them at every request."""
    ours = {key: value for key, value in settings.items() if key not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for key in ours:
            os.environ.pop(key, None)


@contextlib.contextmanager
def _global_address(uri: str) -> Iterator[None]:
    """Make `uri` MLflow's global address for the length of the block: what knows models:/… looks there."""
    import mlflow

    given, before = os.environ.get("MLFLOW_TRACKING_URI"), mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)
        if given is None:
            os.environ.pop("MLFLOW_TRACKING_URI", None)
        else:
            os.environ["MLFLOW_TRACKING_URI"] = given
