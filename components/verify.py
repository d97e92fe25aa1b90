"""gkd verify: the chain from data to deployed model, into the registry and out to a running server. Imports no torch.

MLflow is imported only where there is a registry to ask.
"""

import http.client
import importlib.util
import json
import os
import re
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from components.mlflow_store import (
    CORRECT,
    CORRECT_TAG,
    DEPLOY,
    GATE,
    MODELS,
    NETWORK,
    REPORT,
    checkout_of,
    connect,
    registered,
)
from gkd_core.config import TrackingConfig
from gkd_core.errors import GkdError
from gkd_core.export.manifest import FILES, read_manifest
from gkd_core.files import SIDECAR, file_digest
from gkd_core.records import read_version
from gkd_core.redact import redact
from gkd_core.serving.authorisation import VARIABLE, read_token
from gkd_core.verify import LINEAGE, Broken, Chain, Gap, Link, check_files, folders_of, walk_folders

TAGS = {
    "gkd.data": "data_sha256",
    "gkd.teacher": "teacher_digest",
    "gkd.student": "student_digest",
    "gkd.config": "config_digest",
    "gkd.code": "code_sha256",
    "gkd.method": "method",
    "gkd.network": "network",
}
TIMEOUT_SECONDS = 10.0
LARGEST_REPLY = 1 << 22


def run(target: str, *, server: str | None, tracking: TrackingConfig | None, name: str | None = None) -> Chain:
    """Walk the chain as far as there is something to walk.

    Args:
        target: a run's folder, a deploy folder, a bundle, or `models:/NAME@ALIAS` or `models:/NAME/VERSION`.
        server: address of a running server; None leaves it out.
        tracking: where the registry is; None takes MLFLOW_TRACKING_URI, else the database in the run's folder.
        name: what the server calls the model; None takes the name the target is served by unless told otherwise.
    Raises:
        GkdError: there is nothing to verify there, `server` is no address, or GKD_TOKEN no token. A registry or a
            server that does not answer is a link that does not hold.
    """
    if server is not None:
        server = _address(server)
        read_token(None)  # one that is none is wrong usage, not a broken chain
    if target.startswith(MODELS):
        with tempfile.TemporaryDirectory(prefix="gkd-") as place:
            return _version(target, Path(place), server, tracking or TrackingConfig(), name)
    root = Path(target)
    folders = folders_of(root)
    chain = Chain().walk(walk_folders(folders))
    if "registration" in folders and "deploy" in folders:
        chain.walk(_registry(folders, root, tracking))
    else:
        chain.gaps.append(Gap("manifest → registry", "nothing says where it is registered"))
    _ask(chain, folders, server, lambda: name or _served_name(target, folders))
    return chain


def _version(uri: str, place: Path, server: str | None, tracking: TrackingConfig, name: str | None) -> Chain:
    """A registered version: its tags, its ONNX file, and the folders kept with its run."""
    with registered(uri, tracking, again=f"gkd verify {uri}") as (store, version):
        kept = {name: store.download(version, where, place) for name, where in _KEPT.items()}
        folders = {name: folder for name, folder in kept.items() if folder is not None}
        if "deploy" not in folders:
            raise GkdError(f"{uri} (version {version.number}) came without its deploy folder: gkd did not register it")
        exact = f"{MODELS}{store.name}/{version.number}"
        chain = Chain()
        for steps in (
            walk_folders(folders, lists_required=False),
            _tags(version, folders["deploy"]),
            _registered_file(store, version, folders["deploy"], place),
            _kept_gate(store, version, place),
        ):
            chain.walk(steps)
    _ask(chain, folders, server, lambda: name or _served_name(uri, folders))
    if chain.broken is not None:
        chain.broken = Broken(_of_version(str(chain.broken), place, exact))
    return chain


def _of_version(sentence: str, place: Path, version: str) -> str:
    """A sentence about what was copied to `place`, told of the version it was copied from."""
    return sentence.replace(f"{place}{os.sep}", f"{version}: ")


_KEPT = {"student": NETWORK, "deploy": DEPLOY, "report": REPORT}


def _registry(folders: dict[str, Path], root: Path, tracking: TrackingConfig | None) -> Iterator[Link | Gap]:
    """The version that registration/ speaks of, in the store as it is now."""
    settings = tracking or TrackingConfig()
    if settings.uri is None and not os.environ.get("MLFLOW_TRACKING_URI"):
        database = checkout_of(root) / "mlflow.db"
        if not database.is_file():
            yield Gap("manifest → registry", f"there is no {database}: pass --params, or set MLFLOW_TRACKING_URI")
            return
        settings = settings.model_copy(update={"uri": f"sqlite:///{database.resolve()}"})
    if importlib.util.find_spec("mlflow") is None:
        yield Gap("manifest → registry", "MLflow is not installed: install gkd[track]")
        return
    written = read_version(folders["registration"])
    settings = settings.model_copy(update={"model_name": written["name"]})
    with connect(settings, again="gkd verify") as store, tempfile.TemporaryDirectory(prefix="gkd-") as place:
        try:
            version = store.version(str(written["version"]))
        except GkdError as error:
            raise Broken(f"{folders['registration'] / 'version.json'}: {error}") from None
        yield from _tags(version, folders["deploy"])
        yield from _registered_file(store, version, folders["deploy"], Path(place))
        try:
            yield from _kept_deploy(store, version, Path(place))
            yield from _kept_gate(store, version, Path(place))
        except GkdError as error:
            exact = f"{MODELS}{store.name}/{version.number}"
            raise Broken(_of_version(str(error), Path(place), exact)) from None


def _tags(version: Any, deploy: Path) -> Iterator[Link]:
    manifest, tags = read_manifest(deploy), version.tags
    wanted = {tag: manifest[key] for tag, key in TAGS.items()}
    wanted |= {"gkd.manifest": file_digest(deploy / "manifest.json"), "gkd.model": manifest["model"]["sha256"]}
    for tag, value in wanted.items():
        if tags.get(tag) != value:
            raise Broken(f"registry: the tag {tag} of version {version.number} is not what {deploy} says")
    yield Link("manifest → registry", f"{len(wanted)} tags of version {version.number}")


def _registered_file(store: Any, version: Any, deploy: Path, place: Path) -> Iterator[Link]:
    digest = read_manifest(deploy)["model"]["sha256"]
    model = store.download_model(version, place / "registered")
    if model is None or file_digest(model) != digest:
        what = "has no ONNX file" if model is None else f"holds another ONNX file than {deploy}"
        raise Broken(f"registry: version {version.number} {what}")
    yield Link("registry → file", f"{digest[:12]} is what version {version.number} serves")


def _kept_deploy(store: Any, version: Any, place: Path) -> Iterator[Link | Gap]:
    """The deploy folder kept with the version's run: what `gkd serve models:/…` takes."""
    deploy = store.download(version, DEPLOY, place)
    if deploy is None:
        raise Broken(f"registry: version {version.number} came without its deploy folder, so nothing can serve it")
    if (deploy / SIDECAR).exists():
        yield from check_files(deploy, f"registry: {DEPLOY}")
    else:
        yield Gap(f"registry: {DEPLOY}: files", f"it came without {SIDECAR}")
    read_manifest(deploy)  # compares the models' bytes
    if (digest := file_digest(deploy / "manifest.json")) != version.tags.get("gkd.manifest"):
        raise Broken(f"{deploy / 'manifest.json'} is not the one whose digest the tag gkd.manifest holds")
    yield Link("registry → deploy", f"{digest[:12]} is what version {version.number} was registered with")


def _kept_gate(store: Any, version: Any, place: Path) -> Iterator[Link | Gap]:
    """What the version got right on the test images: a later challenger is compared with it."""
    if (digest := version.tags.get(CORRECT_TAG)) is None:
        yield Gap("registry → gate", f"version {version.number} was registered without a digest of {GATE}/{CORRECT}")
        return
    correct = store.download(version, f"{GATE}/{CORRECT}", place)
    if correct is None or file_digest(correct) != digest:
        what = "is missing" if correct is None else "was changed"
        raise Broken(f"{place / GATE / CORRECT} {what}: the tag {CORRECT_TAG} holds its sha256")
    yield Link("registry → gate", f"{digest[:12]} is what version {version.number} got right")


def _ask(chain: Chain, folders: dict[str, Path], server: str | None, name: Callable[[], str]) -> None:
    if server is None:
        chain.gaps.append(Gap("manifest → server", "no --server was named", wanted=False))
    elif "deploy" not in folders:
        chain.gaps.append(Gap("manifest → server", "there is no deploy folder"))
    else:
        chain.walk(_served(server, folders, name))


def _served(server: str, folders: dict[str, Path], name: Callable[[], str]) -> Iterator[Link]:
    """What a running server says of the model it serves (Open Inference Protocol v2, model metadata)."""
    manifest = read_manifest(folders["deploy"])
    address = server if "/v2/models/" in server else f"{server}/v2/models/{urllib.parse.quote(name(), safe='')}"
    reply = _get(address)
    facts = reply.get("parameters")
    if not isinstance(facts, dict):
        raise Broken(f"{address} says nothing of its model's lineage")
    precision = facts.get("precision", "fp32")
    entry = manifest["model"] if precision == "fp32" else manifest.get(precision)
    if precision not in FILES or not isinstance(entry, dict) or "sha256" not in entry:
        raise Broken(f"{address} serves the precision {precision!r}, which {folders['deploy']} does not have")
    wanted = {key: manifest[key] for key in (*LINEAGE, "classes")} | {"model_sha256": entry["sha256"]}
    for key, value in wanted.items():
        said = facts.get(key)
        if key == "classes" and isinstance(said, str):  # parameters are plain values with some servers
            value = json.dumps(value, ensure_ascii=False)
        if said != value:
            raise Broken(f"{address} serves another model: its {key} is not the one in {folders['deploy']}")
    yield Link("manifest → server", f"{entry['sha256'][:12]} ({precision}) answers at {address}")


def _address(server: str) -> str:
    try:
        parts = urllib.parse.urlsplit(server if "://" in server else f"http://{server}")
        host, _ = parts.hostname, parts.port  # looked at here: a port that is none is said when it is asked for
    except ValueError:
        host = None
    if not host or parts.scheme not in ("http", "https") or "@" in parts.netloc or not re.fullmatch(r"[!-~]+", server):
        raise GkdError(
            f"--server {redact(server)!r} is no address: write it as http://HOST:PORT (a token goes into {VARIABLE})"
        )
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/"), "", ""))


def _served_name(target: str, folders: dict[str, Path]) -> str:
    """What the server calls the model: the registered name, where one is known, or the bundle's."""
    if "registration" not in folders:
        from components.model_source import default_name  # the server's own rule

        return default_name(target)
    return str(read_version(folders["registration"])["name"])


class _Here(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: the token is for the server that was named, and for no other."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _get(address: str) -> dict[str, Any]:
    token = read_token(None)
    request = urllib.request.Request(address, headers={"User-Agent": "gkd", "Accept": "application/json"})
    if token is not None:
        request.add_header("Authorization", token.header)
    try:
        with urllib.request.build_opener(_Here).open(request, timeout=TIMEOUT_SECONDS) as answer:
            content = json.loads(answer.read(LARGEST_REPLY))
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            raise GkdError(f"{address} refuses us ({error.code}): set {VARIABLE} to the server's token") from None
        if 300 <= error.code < 400:
            raise Broken(f"{address} sends us elsewhere ({error.code}): name the server itself by --server") from None
        hint = ": is it served under another name? pass --name" if error.code == 404 else ""
        raise Broken(f"{address} does not serve the model: it answers {error.code} {error.reason}{hint}") from None
    except (OSError, http.client.HTTPException, ValueError, RecursionError) as error:
        reason = getattr(error, "reason", None) or error
        raise Broken(f"{address} gives no metadata ({reason}): see that the server runs there") from None
    if not isinstance(content, dict):
        raise Broken(f"{address} gives no metadata: its reply is no JSON object")
    return content
