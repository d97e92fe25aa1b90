"""MLflow, in one place: runs, registered versions, aliases, and one sentence when the server cannot be reached.

Runs and versions are found by digests in their tags, so that whatever is asked for twice is there once. A run counts
when it bears `gkd.complete`, the last thing written to it; one that was interrupted is marked as failed and made anew,
since MLflow's parameters cannot be written twice with other values.
"""

import atexit
import contextlib
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

# Read when MLflow is imported: no reports to its makers, no news of its own on the terminal.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

import mlflow
import mlflow.onnx
import numpy as np
import onnx
import requests
import sqlalchemy
import tenacity
from mlflow import MlflowClient
from mlflow.entities import Experiment, LoggedModelStatus, Metric, Param, RunStatus, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from sqlalchemy.exc import SQLAlchemyError

from gkd_core.config import TrackingConfig
from gkd_core.errors import GkdError, unknown
from gkd_core.files import folder_digest
from gkd_core.redact import redact

DEFAULT_URI = "sqlite:///mlflow.db"
NETWORK = "network"  # where a run keeps its network folder
MODEL = "model"  # name of the logged ONNX model
SERVING = ("mlflow", "numpy", "onnx", "onnxruntime")  # what MLflow needs to serve it

# MLflow's own settings (7 tries with growing pauses, 120 s each) would wait many minutes for a dead server.
PROBING = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "5", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
WORKING = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
}
LONGEST_PAUSE = 10  # seconds between two tries to reach the server

DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
SERVERS = ("http", "https", "databricks", "uc")
UNAUTHORISED = ("UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED", "PERMISSION_DENIED")
OVERLOADED = ("TEMPORARILY_UNAVAILABLE", "DEADLINE_EXCEEDED", "REQUEST_LIMIT_EXCEEDED")


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
    """

    key: str
    name: str
    tags: dict[str, str]
    params: dict[str, Any]
    history: list[dict[str, float | None]]
    metrics: dict[str, float]
    artifacts: dict[str, Path]


@dataclass(frozen=True)
class Version:
    """A registered version: its number, its run, its tags, and when it was made (milliseconds since 1970)."""

    number: int
    run_id: str
    tags: dict[str, str]
    created_ms: int


def resolve_uri(uri: str | None) -> str:
    """The tracking address: `tracking.uri`, else MLFLOW_TRACKING_URI, else a database in the current folder.

    Raises:
        GkdError: a folder (MLflow no longer keeps runs in one), or an address of unknown kind.
    """
    where = "tracking.uri" if uri else "MLFLOW_TRACKING_URI"
    address = uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI
    scheme = address.split(":")[0].split("+")[0].lower() if ":" in address else ""
    if address in ("databricks", "uc") or scheme in (*DATABASES, *SERVERS):
        return address
    if scheme in ("", "file"):
        raise GkdError(
            f"{where} is the folder {address!r}, and MLflow no longer keeps runs in folders: take a database such as "
            f"{DEFAULT_URI}, or the address of a server"
        )
    raise GkdError(unknown(f"{where} {_shown(address)!r}: kind of address", scheme, [*DATABASES, *SERVERS]))


@contextlib.contextmanager
def connect(settings: TrackingConfig, *, again: str = "gkd register") -> Iterator["Store"]:
    """The tracking store, once it has answered.

    Args:
        again: the command to run again after a failure, for the error.
    Raises:
        GkdError: it does not answer after `settings.attempts` tries or falls silent later, refuses us, or is no
            tracking server. What was logged until then is found again by the next call.
    """
    uri = resolve_uri(settings.uri)
    with _in_one_sentence(uri, again):
        with _environment(PROBING):
            _reach(uri, settings.attempts)
        with _environment(WORKING), _default_address(uri):
            yield Store(uri, settings)


@contextlib.contextmanager
def registered(uri: str, settings: TrackingConfig, *, again: str) -> Iterator[tuple["Store", "Version"]]:
    """The store and the version that `models:/NAME@ALIAS` or `models:/NAME/VERSION` names.

    Args:
        again: as in `connect`.
    Raises:
        GkdError: it is not of that form, there is no such model, alias or version, or the store does not answer.
    """
    match = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))", uri)
    if match is None:
        raise GkdError(f"{uri!r} is not of the form models:/NAME@ALIAS or models:/NAME/VERSION")
    name, alias, number = match.groups()
    with connect(settings.model_copy(update={"model_name": name}), again=again) as store:
        yield store, store.version(alias or number)


def download_network(uri: str, settings: TrackingConfig) -> Path:
    """The network folder of a registered student, copied to a folder that is removed when the process ends.

    Args:
        uri: `models:/NAME@ALIAS` or `models:/NAME/VERSION`.
    Raises:
        GkdError: there is no such model, alias or version, it came without a network folder, or the copy is damaged.
    """
    with registered(uri, settings, again="gkd teacher") as (store, version):
        folder = Path(tempfile.mkdtemp(prefix="gkd-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        found = store.download(version, NETWORK, folder)
    if found is None:
        raise GkdError(
            f"{uri} (version {version.number}) has no network folder in {_shown(store.uri)}: only students that gkd "
            "registered can be teachers, others are imported from a state-dict file"
        )
    if folder_digest(found) != version.tags.get("gkd.student"):
        raise GkdError(f"the network of {uri} (version {version.number}) is not the one that was registered: damaged")
    return found


class Store:
    """A tracking store that has answered: runs of one experiment, versions of one registered model."""

    def __init__(self, uri: str, settings: TrackingConfig) -> None:
        self.uri = uri
        self.name = settings.model_name
        self._experiment_name = settings.experiment
        self._client = MlflowClient(uri)
        self._parent: str | None = None
        self._experiment: str | None = None

    def log_run(self, record: RunRecord) -> str:
        """The id of the complete run with this key; it is made if there is none."""
        experiment = self._experiment_id()
        for run in self._client.search_runs([experiment], _tagged("gkd.key", record.key), ViewType.ACTIVE_ONLY):
            if run.data.tags.get("gkd.complete") == "true":
                return str(run.info.run_id)
            if run.info.status == "RUNNING":  # whoever made it was killed; if not, its tags will say complete yet
                self._client.set_terminated(run.info.run_id, RunStatus.to_string(RunStatus.FAILED))

        tags = record.tags | {"gkd.key": record.key}
        if self._parent is not None:
            tags["mlflow.parentRunId"] = self._parent
        run_id = str(self._client.create_run(experiment, tags=tags, run_name=record.name).info.run_id)
        try:
            self._fill(run_id, record)
        except BaseException:
            with contextlib.suppress(Exception):
                self._client.set_terminated(run_id, RunStatus.to_string(RunStatus.FAILED))
            raise
        return run_id

    def _fill(self, run_id: str, record: RunRecord) -> None:
        params = [Param(key, _text(value)) for key, value in record.params.items()]
        for some in _chunks(params, 100):
            self._client.log_batch(run_id, params=some)
        now = int(time.time() * 1000)
        curves = [
            Metric(key, value, now, int(row["epoch"] or 0))
            for row in record.history
            for key, value in row.items()
            if key != "epoch" and value is not None
        ]
        final = [Metric(key, value, now, 0) for key, value in record.metrics.items()]
        for some in _chunks(curves + final, 1000):
            self._client.log_batch(run_id, metrics=some)
        for place, source in record.artifacts.items():
            if source.is_dir():
                self._client.log_artifacts(run_id, str(source), place)
            else:
                self._client.log_artifact(run_id, str(source), place)
        self._client.log_batch(run_id, tags=[RunTag("gkd.complete", "true")])
        self._client.set_terminated(run_id)

    def find_version(self, manifest_digest: str) -> Version | None:
        """The version made of a manifest, or None."""
        found = self._search_versions(_tagged("gkd.manifest", manifest_digest))
        return min(found, key=lambda version: version.number) if found else None

    def register(self, run_id: str, model: Path, manifest: dict[str, Any], tags: dict[str, str]) -> Version:
        """Log the ONNX file as it is and register it as a new version, with all its tags from the first moment.

        Args:
            run_id: the student's run.
            model: the ONNX file.
            manifest: what describes it.
            tags: of the version; `gkd.manifest` is how it is found again.
        """
        model_id = self._log_model(run_id, model, manifest, tags["gkd.manifest"])
        if self._registered() is None:
            self._client.create_registered_model(self.name)
        made = self._client.create_model_version(
            self.name, f"models:/{model_id}", run_id, tags=tags, await_creation_for=0, model_id=model_id
        )
        return _version(made)

    def _log_model(self, run_id: str, model: Path, manifest: dict[str, Any], manifest_digest: str) -> str:
        experiment = self._client.get_run(run_id).info.experiment_id
        for logged in self._client.search_logged_models([experiment], _tagged("gkd.manifest", manifest_digest)):
            if logged.status == LoggedModelStatus.READY:
                return str(logged.model_id)
            self._client.delete_logged_model(logged.model_id)
        # Made beforehand: log_model alone would look for the experiment in the surroundings, not in the run.
        logged = self._client.create_logged_model(experiment, MODEL, run_id, tags={"gkd.manifest": manifest_digest})
        mlflow.onnx.log_model(
            onnx.load(model),
            name=MODEL,
            model_id=logged.model_id,
            run_id=run_id,
            signature=_signature(manifest),
            pip_requirements=[
                f"{name}=={metadata.version(name)}" for name in ("mlflow", "numpy", "onnx", "onnxruntime")
            ],
            onnx_execution_providers=["CPUExecutionProvider"],
            save_as_external_data=False,  # one file, the bytes that were exported
            metadata={"gkd.manifest": manifest_digest, "classes": manifest["classes"]},
        )
        return str(logged.model_id)

    def versions(self) -> list[Version]:
        """All registered versions, newest first; none when the model is not there yet."""
        return sorted(self._search_versions(), key=lambda version: -version.number)

    def version(self, which: str) -> Version:
        """A version by number or alias.

        Raises:
            GkdError: the model has no such version or alias, or there is no such model.
        """
        if self._registered() is None:
            names = [model.name for model in self._client.search_registered_models()]
            raise GkdError(f"{_shown(self.uri)}: {unknown('registered model', self.name, names or ['none'])}")
        aliases, numbers = self.aliases(), {str(version.number): version for version in self.versions()}
        number = str(aliases.get(which, which))
        if number not in numbers:
            known = [*sorted(aliases), *sorted(numbers, key=int)] or ["none"]
            raise GkdError(unknown(f"{self.name}: version or alias", which, known))
        return numbers[number]

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
        parent, _, last = place.rpartition("/")
        try:
            listed = self._client.list_artifacts(version.run_id, parent or None)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":  # somebody deleted the run for good
                return None
            raise
        if not any(item.path.rpartition("/")[2] == last for item in listed):
            return None
        return Path(self._client.download_artifacts(version.run_id, place, str(folder)))

    def download_model(self, version: Version, folder: Path) -> Path | None:
        """Copy the ONNX file that a version serves into a new folder; None when it has none."""
        folder.mkdir()
        uri = f"models:/{self.name}/{version.number}"
        found = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(folder)))
        return next(iter(sorted(found.rglob("*.onnx"))), None)

    def _registered(self) -> Any:
        try:
            return self._client.get_registered_model(self.name)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise

    def _search_versions(self, condition: str = "") -> list[Version]:
        name = self.name.replace("'", "''")
        query = f"name = '{name}'" + (f" and {condition}" if condition else "")
        found, token = [], None
        while True:
            page = self._client.search_model_versions(query, max_results=1000, page_token=token)
            found += [_version(made) for made in page]
            token = page.token
            if not token:
                return found

    def _experiment_id(self) -> str:
        """The experiment of the run we are part of (MLFLOW_RUN_ID), else MLFLOW_EXPERIMENT_ID, else by name."""
        if self._experiment is not None:
            return self._experiment
        if parent := os.environ.get("MLFLOW_RUN_ID"):
            try:
                self._experiment = str(self._client.get_run(parent).info.experiment_id)
                self._parent = parent
                return self._experiment
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                _note(f"MLFLOW_RUN_ID names the run {parent}, which {_shown(self.uri)} does not have: left aside")
        if given := os.environ.get("MLFLOW_EXPERIMENT_ID"):
            try:
                found: Experiment | None = self._client.get_experiment(given)
            except MlflowException as error:
                if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    raise
                raise GkdError(
                    f"MLFLOW_EXPERIMENT_ID is {given!r}, which {_shown(self.uri)} does not have: unset or correct it"
                ) from None
        else:
            found = self._client.get_experiment_by_name(self._experiment_name)
        if found is None:
            self._experiment = str(self._create_experiment())
        elif found.lifecycle_stage != "active":
            raise GkdError(
                f"the experiment {found.name!r} was deleted in {_shown(self.uri)}: restore it, or choose another "
                "tracking.experiment"
            )
        else:
            self._experiment = str(found.experiment_id)
        return self._experiment

    def _create_experiment(self) -> str:
        place = None
        if self.uri.startswith("sqlite"):  # beside the database, not wherever the first command happened to run
            database = sqlalchemy.make_url(self.uri).database
            place = str(Path(database or "mlflow.db").absolute().parent / "mlartifacts")
        try:
            return str(self._client.create_experiment(self._experiment_name, artifact_location=place))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return self._experiment_id()  # somebody else was faster


def _signature(manifest: dict[str, Any]) -> ModelSignature:
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


def _text(value: Any) -> str:
    """As MLflow stores it: text as it is, everything else as JSON (null, true, [1, 2])."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)


def _chunks(items: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _reach(uri: str, attempts: int) -> None:
    """One small question to the store, asked up to `attempts` times."""

    def announce(state: tenacity.RetryCallState) -> None:
        assert state.outcome is not None
        assert state.next_action is not None
        reason = _cause(state.outcome.exception())
        _note(f"{_shown(uri)} does not answer ({reason}), trying again in {state.next_action.sleep:.0f} s")

    for attempt in tenacity.Retrying(
        stop=tenacity.stop_after_attempt(attempts),
        wait=tenacity.wait_exponential(max=LONGEST_PAUSE),
        retry=tenacity.retry_if_exception(_may_pass),
        before_sleep=announce,
        reraise=True,
    ):
        with attempt:
            if uri.split(":")[0].split("+")[0] in DATABASES:
                _ask_database(uri)
            else:
                MlflowClient(uri).search_experiments(max_results=1)


def _ask_database(uri: str) -> None:
    """Asked directly: MLflow itself would try a database that is down for nearly an hour."""
    address = sqlalchemy.make_url(uri)
    if address.get_backend_name() == "sqlite" and address.database:
        file = Path(address.database)
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            _note(f"making the tracking store {uri} (some seconds)")
    engine = sqlalchemy.create_engine(address)
    try:
        with engine.connect() as connection:
            connection.execute(sqlalchemy.text("SELECT 1"))
    finally:
        engine.dispose()


def _may_pass(error: BaseException) -> bool:
    """Whether it is worth asking again: the other side was silent or overloaded, not unwilling."""
    if isinstance(error, MlflowException):
        return error.error_code in OVERLOADED or error.message.startswith("API request to http")
    silent = (
        ConnectionError,
        TimeoutError,
        requests.ConnectionError,
        requests.Timeout,
        sqlalchemy.exc.OperationalError,
    )
    return isinstance(error, silent)


@contextlib.contextmanager
def _in_one_sentence(uri: str, again: str) -> Iterator[None]:
    """Turn whatever the store, or the way to it, answers into one sentence for the user."""
    place, later = f"the tracking store {_shown(uri)}", f"nothing is lost, run `{again}` again"
    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:
        reason = _cause(error)
        code = getattr(error, "error_code", None)
        if isinstance(error, ImportError):
            raise GkdError(f"{place} needs a driver that is not installed ({reason}): install it; {later}") from error
        if code in UNAUTHORISED:
            raise GkdError(
                f"{place} refuses us ({reason}): set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
                f"MLFLOW_TRACKING_TOKEN; {later}"
            ) from error
        if code == "ENDPOINT_NOT_FOUND" or "valid JSON" in str(error):
            raise GkdError(
                f"what answers at {_shown(uri)} is not an MLflow tracking server: correct tracking.uri or "
                f"MLFLOW_TRACKING_URI; {later}"
            ) from error
        if _may_pass(error):
            raise GkdError(f"{place} does not answer ({reason}): when it is back, {later}") from error
        raise GkdError(f"{place} does not do what is asked ({reason}): {later} once that is mended") from error


def _cause(error: BaseException | None) -> str:
    """The innermost reason, on one line, without passwords."""
    if error is not None and (not isinstance(error, MlflowException) or _may_pass(error)):
        while (inner := error.__cause__ or error.__context__) is not None:
            error = inner
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return redact(lines[0][:300] if lines else type(error).__name__).rstrip(".")


def _shown(uri: str) -> str:
    return redact(uri)


def _note(text: str) -> None:
    print(redact(text), file=sys.stderr, flush=True)


@contextlib.contextmanager
def _environment(settings: dict[str, str]) -> Iterator[None]:
    """Set variables that the user has not set, for the length of the block: MLflow reads them at every request."""
    ours = {key: value for key, value in settings.items() if key not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for key in ours:
            os.environ.pop(key, None)


@contextlib.contextmanager
def _default_address(uri: str) -> Iterator[None]:
    """Make `uri` MLflow's global address for the length of the block: its clients look there for some things."""
    given = os.environ.get("MLFLOW_TRACKING_URI")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)
        if given is None:
            os.environ.pop("MLFLOW_TRACKING_URI", None)
        else:
            os.environ["MLFLOW_TRACKING_URI"] = given
