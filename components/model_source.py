"""Where a served model comes from: an ONNX file, a deploy folder or bundle, or a registered version and its alias.

A local model is watched by its files' size, time and inode, a registered one by the number its alias points to. MLflow
is imported when a registered model is asked for, and its small distribution (mlflow-skinny) is enough for a server.
"""

import tempfile
from collections.abc import Hashable
from pathlib import Path

from components.mlflow_store import DEPLOY, MODELS, Version, connect, http_settings, parse_address
from gkd_core.config import TrackingConfig
from gkd_core.errors import GkdError
from gkd_core.export.manifest import MODEL_FILE, kept_pixels, model_entry, read_manifest
from gkd_core.files import file_digest
from gkd_core.records import read_bundle
from gkd_core.serving.model import InvalidModelError, Model, ModelFile
from gkd_core.serving.reload import Source, file_fingerprint

DEFAULT_NAME = "gkd-student"
BUNDLE_FILE = "bundle.json"

# A server that polls tries again at the next poll.
POLLING = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "15", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}


def open_source(model: str, *, precision: str = "fp32", tracking_uri: str | None = None) -> Source:
    """The source that a MODEL argument names.

    Args:
        model: an ONNX file, a folder with model.onnx and manifest.json, `models:/NAME@ALIAS` or `models:/NAME/VERSION`.
        precision: which of a folder's or version's files: fp32, int8, fp16.
        tracking_uri: of the registry; None is MLFLOW_TRACKING_URI, else mlflow.db in the current folder.
    Raises:
        GkdError: it names nothing.
    """
    if model.startswith(MODELS):
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
        f"{MODELS}NAME@ALIAS: name one of these"
        + (f"; `dvc repro` makes {model} in a project" if model == DEPLOY else "")
    )


def default_name(model: str) -> str:
    """The name a MODEL is served by unless another is given: the registered one, a bundle's own, else `gkd-student`."""
    if model.startswith(MODELS):
        return parse_address(model)[0]
    if (Path(model) / BUNDLE_FILE).is_file():
        return str(read_bundle(Path(model))["name"])
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
        name, self._which = parse_address(address)
        self._address = address
        self._precision = precision
        self._settings = TrackingConfig(uri=tracking_uri, attempts=1).model_copy(update={"model_name": name})
        self._version: Version | None = None
        self._download: tempfile.TemporaryDirectory[str] | None = None

    def poll(self) -> Hashable:
        """The number of the version.

        Raises:
            GkdError: the registry does not answer, or has no such model, alias or version.
        """
        with http_settings(POLLING), connect(self._settings, again="gkd serve") as store:
            self._version = store.version(self._which)
        return self._version.number

    def fetch(self) -> ModelFile:
        """The deploy folder of the version that `poll` saw, copied to this machine.

        Raises:
            InvalidModelError: it came without one, or with one that is not what was registered, or lacks the precision.
            GkdError: the registry does not answer.
        """
        assert self._version is not None, "poll comes first"
        what = f"{self._address} (version {self._version.number})"
        place = tempfile.TemporaryDirectory(prefix="gkd-served-", ignore_cleanup_errors=True)
        with http_settings(POLLING), connect(self._settings, again="gkd serve") as store:
            folder = store.download(self._version, DEPLOY, Path(place.name))
        if folder is None:
            raise InvalidModelError(
                f"{what} has no deploy folder: only students that `gkd register` registered can be served"
            )
        if self._download is not None:
            self._download.cleanup()
        self._download = place
        try:
            if file_digest(folder / "manifest.json") != self._version.tags.get("gkd.manifest"):
                raise GkdError(f"the deploy folder of {what} is not the one that was registered: register it again")
            return _in_folder(folder, self._precision, version=str(self._version.number))
        except (GkdError, OSError) as error:
            raise InvalidModelError(str(error)) from None


def _in_folder(folder: Path, precision: str, *, version: str | None) -> ModelFile:
    manifest = read_manifest(folder)
    entry = model_entry(manifest, precision, str(folder))
    pixels = None
    if found := kept_pixels(manifest).get(precision):
        pixels = ModelFile(folder / found["file"], version, found["sha256"], manifest, precision)
    return ModelFile(folder / entry["file"], version, entry["sha256"], manifest, precision, pixels)
