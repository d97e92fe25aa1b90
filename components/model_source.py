"""Where a served model comes from: an ONNX file, a deploy folder or bundle, or a registered version and its alias.

A local model is watched by its files' size, time and inode, a registered one by the number its alias points to. MLflow
is imported when a registered model is asked for, and its small distribution (mlflow-skinny) is enough for a server.
"""

import contextlib
import importlib.util
import os
import re
import tempfile
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.kept import DEPLOY
from gkd_core.errors import GkdError
from gkd_core.export.manifest import MODEL_FILE, model_entry, read_manifest
from gkd_core.files import file_digest, read_json
from gkd_core.redact import redact
from gkd_core.serving.model import InvalidModelError, Model, ModelFile
from gkd_core.serving.reload import Source, file_fingerprint

if TYPE_CHECKING:
    from mlflow import MlflowClient

REGISTERED = "models:/"
DEFAULT_URI = "sqlite:///mlflow.db"
DEFAULT_NAME = "gkd-student"
BUNDLE_FILE = "bundle.json"

# By the module that MLflow misses where artifacts lie: what it is installed by.
PACKAGES = {"botocore": "boto3", "google": "google-cloud-storage", "azure": "azure-storage-blob"}

# Before MLflow is imported: no reports, no news on the terminal, and no minutes of waiting for a server that is away.
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "GIT_PYTHON_REFRESH": "quiet",
}


def open_source(model: str, *, precision: str = "fp32", tracking_uri: str | None = None) -> Source:
    """The source that a MODEL argument names.

    Args:
        model: an ONNX file, a folder with model.onnx and manifest.json, `models:/NAME@ALIAS` or `models:/NAME/VERSION`.
        precision: which of a folder's or version's files: fp32, int8, fp16.
        tracking_uri: of the registry; None is MLFLOW_TRACKING_URI, else mlflow.db in the current folder.
    Raises:
        GkdError: it names nothing.
    """
    if model.startswith(REGISTERED):
        return RegisteredSource(model, precision=precision, tracking_uri=tracking_uri)
    path = Path(model)
    if model and path.is_dir():
        if not (path / "manifest.json").exists():
            inside = path / DEPLOY
            hint = f"name {inside}" if (inside / "manifest.json").exists() else "name one of these, or an ONNX file"
            raise GkdError(f"{model} has no manifest.json, so it is no folder of `gkd export` or `gkd bundle`: {hint}")
        return FolderSource(path, precision=precision)
    if path.is_file():
        if precision != "fp32":
            raise GkdError(
                f"--precision {precision} chooses among a folder's files, and {path} is one file: name that one"
            )
        return FileSource(path)
    raise GkdError(
        f"{model or 'an empty name'} is neither an ONNX file nor a folder of `gkd export` or `gkd bundle`, nor "
        f"{REGISTERED}NAME@ALIAS: name one of these"
    )


def default_name(model: str) -> str:
    """The name a MODEL is served by unless another is given: the registered one, a bundle's own, else `gkd-student`."""
    if model.startswith(REGISTERED):
        parts = _parts(model)
        return parts[0] if parts else DEFAULT_NAME
    if (Path(model) / BUNDLE_FILE).is_file():
        return str(read_json(Path(model) / BUNDLE_FILE, "the bundle", shape={"name": str})["name"])
    return DEFAULT_NAME


def load_model(model: str, *, precision: str = "fp32", tracking_uri: str | None = None) -> Model:
    """The model that a MODEL argument names, read once.

    Raises:
        GkdError: it names nothing, its file cannot be had, or it is no image classifier.
    """
    source = open_source(model, precision=precision, tracking_uri=tracking_uri)
    source.poll()
    found = source.fetch()
    return Model(found, version=found.version or "1")


class FileSource:
    """A lone ONNX file."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def poll(self) -> Hashable:
        """A fingerprint of the file."""
        return file_fingerprint(self._file)

    def fetch(self) -> ModelFile:
        """The file as it is."""
        return ModelFile(self._file)


class FolderSource:
    """A deploy folder or a bundle. Its manifest says what the model must hash to."""

    def __init__(self, folder: Path, *, precision: str = "fp32") -> None:
        self._folder = folder
        self._precision = precision

    def poll(self) -> Hashable:
        """A fingerprint of all files that matter."""
        models = sorted(self._folder.glob("*.onnx")) or [self._folder / MODEL_FILE]
        return file_fingerprint(self._folder / "manifest.json", *models)

    def fetch(self) -> ModelFile:
        """The file of the wanted precision.

        Raises:
            InvalidModelError: what is there is damaged or half copied, or has no such precision.
            GkdError: the manifest cannot be read.
        """
        try:
            return _in_folder(self._folder, self._precision, version=None)
        except GkdError as error:
            if isinstance(error.__context__, OSError):
                raise
            raise InvalidModelError(str(error)) from None


class RegisteredSource:
    """A registered student by alias or number. What was downloaded last is kept until the next one, or the end."""

    def __init__(self, address: str, *, precision: str = "fp32", tracking_uri: str | None = None) -> None:
        parts = _parts(address)
        if parts is None:
            raise GkdError(f"{address!r} is not of the form models:/NAME@ALIAS or models:/NAME/VERSION")
        self._address = address
        self._name, self._alias, self._number = parts
        self._precision = precision
        self._uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI
        self._client: MlflowClient | None = None
        self._kept: list[tempfile.TemporaryDirectory[str]] = []
        self._found: Any = None

    def poll(self) -> Hashable:
        """The number of the version.

        Raises:
            GkdError: the registry does not answer, or has no such model, alias or version.
        """
        with self._in_one_sentence():
            client = self._connected()
            if self._alias is not None:
                self._found = client.get_model_version_by_alias(self._name, self._alias)
            else:
                self._found = client.get_model_version(self._name, self._number)
            return int(self._found.version)

    def fetch(self) -> ModelFile:
        """The deploy folder of the version that `poll` saw, copied to this machine.

        Raises:
            InvalidModelError: it came without one, or with one that is not what was registered, or lacks the precision.
            GkdError: the registry does not answer.
        """
        version = self._found
        what = f"{self._address} (version {version.version})"
        with self._in_one_sentence():
            client = self._connected()
            listed = [item.path for item in client.list_artifacts(version.run_id)] if version.run_id else []
            if DEPLOY not in listed:
                raise InvalidModelError(
                    f"{what} has no deploy folder: only students that `gkd register` registered can be served"
                )
            place = tempfile.TemporaryDirectory(prefix="gkd-served-", ignore_cleanup_errors=True)
            try:
                folder = Path(client.download_artifacts(version.run_id, DEPLOY, place.name))
            except BaseException:
                place.cleanup()
                raise
        self._kept.append(place)
        for earlier in self._kept[:-1]:
            earlier.cleanup()
        del self._kept[:-1]
        try:
            if file_digest(folder / "manifest.json") != dict(version.tags).get("gkd.manifest"):
                raise GkdError(f"the deploy folder of {what} is not the one that was registered: register it again")
            return _in_folder(folder, self._precision, version=str(version.version))
        except (GkdError, OSError) as error:
            raise InvalidModelError(str(error)) from None

    def _connected(self) -> "MlflowClient":
        if self._client is None:
            for name, value in QUIET.items():
                os.environ.setdefault(name, value)
            if self._uri.startswith("sqlite:///") and not Path(self._uri.removeprefix("sqlite:///")).is_file():
                raise GkdError(f"{redact(self._uri)} does not exist: name the registry by --tracking-uri")
            if not self._uri.startswith("http") and importlib.util.find_spec("sqlalchemy") is None:
                raise GkdError(
                    f"{redact(self._uri)} is a database, which mlflow-skinny cannot open: name a tracking server, or "
                    "install gkd[track]"
                )
            try:
                from mlflow import MlflowClient
            except ImportError:
                raise GkdError(f"{self._address} needs mlflow-skinny: install gkd[serve]") from None
            self._client = MlflowClient(self._uri)
        return self._client

    @contextlib.contextmanager
    def _in_one_sentence(self) -> Iterator[None]:
        """Turn whatever the registry, or the way to it, answers into one sentence."""
        place = redact(self._uri)
        try:
            yield
        except (GkdError, KeyboardInterrupt, SystemExit):
            raise
        except ImportError as error:
            module = (error.name or "").partition(".")[0]
            package = PACKAGES.get(module, module) or redact(str(error))
            raise GkdError(
                f"the files of {self._address} lie where MLflow needs the Python package {package}, which is not "
                f"installed: `pip install {package}`, or let the tracking server hand out its artifacts "
                "(`mlflow server --serve-artifacts`)"
            ) from None
        except Exception as error:  # MLflow lets through what its stores and transports raise
            code = getattr(error, "error_code", "")
            if code in ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND", "INVALID_PARAMETER_VALUE"):
                raise GkdError(f"{place} has no {self._address}: `gkd registry list` shows what there is") from None
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise GkdError(f"the registry {place} does not answer ({redact(reason)[:300]}): is it running?") from None


def _parts(address: str) -> tuple[str, str | None, str | None] | None:
    match = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))", address)
    return None if match is None else (match[1], match[2], match[3])


def _in_folder(folder: Path, precision: str, *, version: str | None) -> ModelFile:
    manifest = read_manifest(folder)
    entry = model_entry(manifest, precision, str(folder))
    return ModelFile(folder / Path(entry["file"]).name, version, entry["sha256"], manifest, precision)
