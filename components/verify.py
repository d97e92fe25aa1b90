"""gkd verify: the chain over a run's folders, into the registry, out to a running server. Imports no torch."""

import json
import os
import re
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from components import mlflow_store as mlflow
from components.graph import MAKER
from components.registry import compare_registration
from gkd_core.config import TrackingConfig
from gkd_core.errors import GkdError
from gkd_core.export.manifest import OPTIONAL, kept_precisions, read_manifest
from gkd_core.files import file_digest
from gkd_core.records import read_version
from gkd_core.redact import redact
from gkd_core.serving.authorisation import VARIABLE, Token, read_token
from gkd_core.verify import LINEAGE, Broken, Chain, Link, walk_folders

STORED = {"student": mlflow.NETWORK, "deploy": mlflow.DEPLOY, "report": mlflow.REPORT}
REGISTERED = {"deploy", "registration"}  # the folders that only a registry can confirm
ADDRESS = r"(https?://)?([\w.-]+|\[[\da-fA-F:.]+\])(:\d{1,5})?(/[^?#\s]*)?"
HINTS = {401: f"set {VARIABLE} to the server's token", 404: "is it served under another name? pass --name"}


def run(target: str, *, server: str | None, tracking: TrackingConfig | None, name: str | None = None) -> Chain:
    """Walk the chain as far as there is something to walk.

    Args:
        target: a run's folder, a deploy folder, a bundle, or `models:/NAME@ALIAS` or `models:/NAME/VERSION`.
        server, name: address of a running server, and what it calls the model where that is not its registered name.
        tracking: where the registry is; None takes MLFLOW_TRACKING_URI, else the database in the run's folder.
    Raises:
        GkdError: there is nothing to verify there, or an option cannot be meant.
    """
    if server is not None and not re.fullmatch(ADDRESS, server, re.ASCII):
        raise GkdError(f"--server {redact(server)!r} is no address: write http://HOST:PORT, a token into {VARIABLE}")
    token = None if server is None else read_token(None)  # one that is none is wrong usage, not a broken chain
    root, chain, uri = Path(target), Chain(), target if target.startswith(mlflow.MODELS) else None
    folders = {} if uri else _folders(root)
    chain.walk(walk_folders(folders, MAKER) if folders else iter(()))
    settings, elsewhere = tracking or TrackingConfig(), os.environ.get("MLFLOW_TRACKING_URI")
    if settings.uri is None and not elsewhere and (database := mlflow.checkout_of(root) / "mlflow.db").is_file():
        settings = settings.model_copy(update={"uri": f"sqlite:///{database.resolve()}"})
    if chain.broken is None and folders.keys() >= REGISTERED:
        version = read_version(folders["registration"])
        uri = f"{mlflow.MODELS}{version['name']}/{version['version']}"
    with tempfile.TemporaryDirectory(prefix="gkd-") as place:
        if uri is None or (folders and settings.uri is None and not elsewhere) or not find_spec("mlflow"):
            why = "not verified: nothing says where the registry is, or gkd[track] lacks"
            chain.links += [Link(f"{name} → registry", why, holds=False) for name in folders if name in REGISTERED]
        else:
            chain.walk(_version(uri, folders, settings, Path(place)))
        if "deploy" not in folders and uri == target:
            raise GkdError(str(chain.broken))  # there is no such version
        if server is None or "deploy" not in folders:
            chain.links.append(Link("deploy → server", "no --server was named", holds=False, wanted=False))
        else:
            chain.walk(_server(server, token, name, uri or target, folders["deploy"]))
        if chain.broken is not None:  # what was copied is told of the version it was copied from
            chain.broken = Broken(str(chain.broken).replace(f"{place}{os.sep}", f"{uri}: "))
    return chain


def _folders(root: Path) -> dict[str, Path]:
    """The steps' folders in a run's folder by step; a deploy folder or bundle is itself one."""
    alone = (root / "manifest.json").is_file()
    if found := {"deploy": root} if alone else {name: root / name for name in MAKER if (root / name).is_dir()}:
        return found
    raise GkdError(f"{root} is no run's folder, no deploy folder and no bundle: name one, or {mlflow.MODELS}NAME@ALIAS")


def _version(uri: str, folders: dict[str, Path], settings: TrackingConfig, place: Path) -> Iterator[Link]:
    """A registered version: its tags, and what the store keeps of it. Without `folders`, those kept are walked too."""
    with mlflow.registered(uri, settings, again="gkd verify") as (store, version):
        stored = {name: copy for name, where in STORED.items() if (copy := store.download(version, where, place))}
        if "deploy" not in stored:
            raise Broken(f"{uri} came without its deploy folder, so nothing can serve it: register it again")
        if not folders:
            folders |= stored
            yield from walk_folders(folders, MAKER)
        manifest, tags = read_manifest(stored["deploy"]), version.tags  # compares the models' bytes
        wanted = {tag: manifest[key] for tag, key in mlflow.LINEAGE_TAGS.items() if key in manifest}
        wanted["gkd.model"] = manifest["model"]["sha256"]
        wanted["gkd.manifest"] = file_digest(folders["deploy"] / "manifest.json")
        if wrong := next((tag for tag, value in wanted.items() if tags.get(tag) != value), None):
            raise Broken(f"{uri}: its tag {wrong} is not what {folders['deploy']} says")
        yield Link("deploy → registry", f"{len(wanted)} tags of version {version.number}")
        model = store.download_model(version, place / "registered")
        if model is None or file_digest(model) != wanted["gkd.model"]:
            raise Broken(f"{uri} holds another ONNX file than {folders['deploy']}, or none")
        yield Link("registry → model", f"{wanted['gkd.model'][:12]} is what version {version.number} serves")
        for tag, file in mlflow.GUARDED.items():
            copy = store.download(version, file, place) if tag in tags else None
            if tag in tags and (copy is None or file_digest(copy) != tags[tag]):
                raise Broken(f"{place / file} is missing or was changed: the tag {tag} holds its sha256")
            yield Link(f"registry → {file}", tags.get(tag, "")[:12] or f"it has no tag {tag}", holds=tag in tags)
        yield from compare_registration(folders["registration"], store, version) if "registration" in folders else ()


def _server(server: str, token: Token | None, name: str | None, served: str, deploy: Path) -> Iterator[Link]:
    """What a running server says of the model it serves (Open Inference Protocol v2, model metadata)."""
    from components.model_source import default_name  # the server's own rule

    manifest, address = read_manifest(deploy), (server if "://" in server else f"http://{server}").rstrip("/")
    if "/v2/models/" not in address:
        address = f"{address}/v2/models/{urllib.parse.quote(name or default_name(served), safe='')}"
    request = urllib.request.Request(address, headers={"User-Agent": "gkd", "Accept": "application/json"})
    if token is not None:
        request.add_unredirected_header("Authorization", token.header)  # for the server that was named, and no other
    try:
        with urllib.request.urlopen(request, timeout=10.0) as answer:
            facts = dict(json.loads(answer.read(1 << 22))["parameters"])
        if isinstance(facts["classes"], str):  # some servers have plain values only
            facts["classes"] = json.loads(facts["classes"])
    except Exception as error:  # a server may answer anything
        hint = HINTS.get(getattr(error, "code", 0), "see that gkd serves there")
        raise Broken(f"{address} says nothing of its model ({error}): {hint}") from None
    precision = str(facts.get("precision", "fp32"))
    models = {"fp32": manifest["model"]} | {smaller: manifest[smaller] for smaller in kept_precisions(manifest)}
    more = (key for key in OPTIONAL if key in manifest and key in facts)  # an older server tells less
    wanted = {key: manifest[key] for key in (*LINEAGE, *more, "classes")}
    wanted["model_sha256"] = models.get(precision, {}).get("sha256", f"of a model in {precision}")
    if wrong := next((key for key, value in wanted.items() if facts.get(key) != value), None):
        raise Broken(f"{address} serves another model: its {wrong} is not the one in {deploy}")
    yield Link("deploy → server", f"{wanted['model_sha256'][:12]} ({precision}) answers at {address}")
