"""What a pipeline of Kubeflow may be given: valid parameters, addresses without passwords, no place of this machine.

The first task checks the parameters once more, in the cluster; `gkd pipeline compile`, `run` and `submit` check them
before anything is made or sent, by the same functions.
"""

import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from components.graph import STEPS, addresses
from components.places import may_be_file
from gkd_core.config import Params, override, parse_params
from gkd_core.config.schema import FILES
from gkd_core.errors import GkdError, unknown
from gkd_core.plugins import modules_of
from gkd_core.redact import address_with_secret

Content = TypeVar("Content")
# [HOST[:PORT]/]NAME[:TAG][@DIGEST], as container registries take it (distribution/reference).
_IMAGE = re.compile(
    r"(?:(?:[a-zA-Z0-9](?:[-.a-zA-Z0-9]*[a-zA-Z0-9])?(?::\d+)?)/)?"
    r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*"
    r"(?::\w[\w.-]{0,127})?(?:@sha256:[0-9a-f]{64})?",
    re.ASCII,
)

ONLY_SWEPT = "--contenders names what a sweep trains: add --pipeline sweep"
ONLY_SEARCHED = "--space says what a search draws from: add --pipeline search"


def resolve(
    params: dict[str, Any], overrides: Sequence[str] = (), *, data_source: str = "", mlflow: str = ""
) -> Params:
    """The configuration a run of the pipeline has.

    Args:
        params: content of params.yaml.
        overrides: `section.key=value`.
        data_source: replaces `data.source` unless empty.
        mlflow: replaces `tracking.uri` unless empty.
    Raises:
        GkdError: something is not valid, the networks or hyperparameters are unknown, or an address holds a password.
    """
    replaced = {"data.source": data_source, "tracking.uri": mlflow}
    more = [override(key, value) for key, value in replaced.items() if value]
    refuse_password([params, [*overrides, *more]])
    return parse_params(params, [*overrides, *more])


def without_null(content: Content) -> Content:
    """JSON content without what is null, at any depth.

    Kubeflow knows no null: its compiler has none in an argument, its launcher none in an artifact's metadata.

    >>> without_null({"alias": None, "counts": {"train": 3, "test": None}, "seen": [None, 1]})
    {'counts': {'train': 3}, 'seen': [1]}
    """
    found: Any = content
    if isinstance(content, dict):
        found = {key: without_null(value) for key, value in content.items() if value is not None}
    elif isinstance(content, list):
        found = [without_null(value) for value in content if value is not None]
    return cast(Content, found)


def with_devices(content: dict[str, Any], devices: int) -> dict[str, Any]:
    """Content of params.yaml with the number of devices that its trainings have, unless it says one itself."""
    teacher = content.get("teacher", {})
    teacher = teacher | {"train": {"devices": devices} | teacher.get("train", {})}
    return content | {"train": {"devices": devices} | content.get("train", {}), "teacher": teacher}


def refuse_password(given: Any) -> None:
    """See that what the user interface and the compiled file show to everybody holds no password.

    Args:
        given: text, or parameters and arguments however nested.
    Raises:
        GkdError: an address in it has a password or a token.
    """
    if isinstance(given, dict):
        given = [*given.keys(), *given.values()]
    if isinstance(given, list | tuple):
        for part in given:
            refuse_password(part)
    elif isinstance(given, str) and (address := address_with_secret(given)):
        raise GkdError(
            f"the address {address} holds a password or a token, which everybody who sees the pipeline would see: "
            "leave it out, and give it from a secret that the profile names (MLflow's as MLFLOW_TRACKING_URI)"
        )


# Kubeflow's kinds of parameters, as they come out of YAML; text that looks like a number must stay text.
_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "STRING": ((str,), "text"),
    "NUMBER_INTEGER": ((int,), "a whole number"),
    "NUMBER_DOUBLE": ((int, float), "a number"),
    "BOOLEAN": ((bool,), "true or false"),
    "LIST": ((list,), "a list"),
    "STRUCT": ((dict,), "keys and values"),
}


def refuse_arguments(known: dict[str, Any], given: dict[str, Any]) -> None:
    """See that a pipeline has the arguments, and their values are of its kinds.

    Args:
        known: `root.inputDefinitions.parameters` of the compiled pipeline.
        given: values by name.
    Raises:
        GkdError: there is no such argument, or it is of another kind.
    """
    for name, value in given.items():
        if name not in known and name == "contenders":
            raise GkdError(ONLY_SWEPT)
        if name not in known and name == "space":
            raise GkdError(ONLY_SEARCHED)
        if name not in known:
            raise GkdError(unknown("--argument", name, sorted(known)))
        types, words = _KINDS[known[name]["parameterType"]]
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            shown = json.dumps(value, default=str)
            quotes = f", with quotes: --argument '{name}=\"{shown}\"'" if words == "text" else ""
            raise GkdError(f"--argument {name} is {shown}, but must be {words}{quotes}")


def refuse_own_store(name: str, uri: str) -> None:
    """See that the results of a run go to a server: a file would be in a pod, and gone with it.

    Args:
        name: what the address is called where it was given.
        uri: address of the tracking store; empty is none.
    Raises:
        GkdError: it is a file or a folder, or an address without http:// or the like.
    """
    if uri and (
        re.match(r"(sqlite|file)\b", uri, re.IGNORECASE) or (":" not in uri and uri not in ("databricks", "uc"))
    ):
        raise GkdError(
            f"{name} is {uri}, a file on this machine, which a cluster's pods do not have: give the address of an "
            "MLflow server"
        )
    if uri and "://" not in uri and not re.fullmatch(r"databricks(-uc)?|uc(:.*)?", uri):
        raise GkdError(f"{name} is {uri}, which is no address of an MLflow server: write http://{uri}, or https://")


def refuse_unknown(params: Params) -> None:
    """Raises: GkdError: `data.source` names none."""
    from gkd_core.data.sources import KNOWN

    name, colon, rest = params.data.source.partition(":")
    if colon and name == "torchvision":
        with contextlib.suppress(ImportError):  # where nothing is trained; the prepare task looks again
            from gkd_core.data.sources.torchvision_set import known_sets

            wanted = rest.partition("?")[0]
            if wanted not in (sets := known_sets()) and wanted not in ("CIFAR10", "CIFAR100"):
                raise GkdError(unknown("data.source: the torchvision set", wanted, sets))
    elif params.data.source not in KNOWN:
        raise GkdError(unknown("data.source", params.data.source, KNOWN))


def plugins_wanted(params: Params, image: str) -> Iterator[str]:
    """What nobody can look at from here: that the image holds the plugins; a sentence where there are any."""
    if modules := sorted({*params.plugins, *modules_of(params.names(*Params.model_fields))}):
        yield (
            f"the image {image} must hold the plugins {', '.join(modules)}, else the run ends in its first "
            "task: build it as docs/plugins.md says, and name it in GKD_IMAGE"
        )


def refuse_source(params: Params, repo: str, path: str, rev: str) -> None:
    """See that what is said of the images goes together.

    Raises:
        GkdError: half of a DVC repository is given, its files would not be read, or there are neither files nor a
            place for them.
    """
    refuse_unknown(params)
    if not repo:
        if path or rev:
            raise GkdError("dvc_path or dvc_rev is given, but no dvc_repo: name the repository, or leave all three out")
        if params.data.source in FILES and params.data.root is None:
            raise GkdError(
                f"data.source is {params.data.source} but data.root names none: set data.root to an address such as "
                "s3://BUCKET/photos or a place in a volume of the profile, or give dvc_repo and dvc_path"
            )
        return
    if not path:
        raise GkdError(f"dvc_repo is given, but not what to fetch from it: set dvc_path to the data's place in {repo}")
    if params.data.source == "digits":
        raise GkdError(
            "data.source is digits, which reads no files, but dvc_repo is given: set data.source to folder, list, "
            "huggingface, cifar10, cifar100 or torchvision:NAME, or leave dvc_repo out"
        )


def refuse_no_image(name: str) -> None:
    """Raises: GkdError: it is no name that a container image can have."""
    if not _IMAGE.fullmatch(name):
        raise GkdError(
            f"GKD_IMAGE is {name!r}, which is no name of a container image: write it as the registry does, such as "
            "registry.example.org/team/gkd:1.0"
        )


def has_registry(image: str) -> bool:
    """Whether an image's name says where it lies; a cluster looks for others at its nodes' default.

    >>> has_registry("registry.example:5000/gkd:1"), has_registry("team/gkd:1"), has_registry("gkd:1")
    (True, False, False)
    """
    host, slash, _ = image.partition("/")
    return bool(slash) and (host == "localhost" or "." in host or ":" in host)


def refuse_other_devices(params: Params, accelerators: int) -> None:
    """Raises: GkdError: a training would not start one process for each of its accelerators, on all its nodes."""
    trainings = {"train": params.train, "teacher.train": params.teacher.train}
    for name, devices in ((f"{section}.devices", training.devices) for section, training in trainings.items()):
        if devices != accelerators:
            raise GkdError(
                f"{name} is {devices}, but a training under this profile has {accelerators} "
                f"device{'s' * (accelerators > 1)} (accelerator.count × nodes.count): leave {name} out, or change the "
                "profile"
            )


def refuse_places(params: Params, mounts: Sequence[str], dvc_repo: str = "") -> None:
    """See that data, its repository, teacher, weights, measurements and tracking store are no places on this machine.

    Args:
        mounts: where the profile's volumes are.
        dvc_repo: of the pipeline's argument.
    Raises:
        GkdError: one of them is.
    """
    places = {
        "data.root": (
            params.data.root,
            "set it to null and pass dvc_repo, dvc_path and dvc_rev to the run, give an address such as "
            "s3://BUCKET/photos",
        ),
        "data.unlabelled": (params.data.unlabelled, "set it to null"),
        "dvc_repo": (dvc_repo.removeprefix("file://"), "give an address that git clones"),
    }
    for step in STEPS:
        for name, given in addresses(params, step).items():
            instead = "set it to null"
            if name == "teacher.source":
                instead += " and register it, then give models:/NAME@ALIAS"
            if name.endswith(".weights"):
                if not may_be_file(given):  # the name of published weights
                    continue
                instead = "give pretrained, hf-hub:OWNER/NAME or models:/NAME@ALIAS"
            places[name] = (given, instead)
    for name, (place, instead) in places.items():
        if not place or re.match(r"[^/]+:", place) or any(Path(place).is_relative_to(mount) for mount in mounts):
            continue
        shown = dvc_repo if name == "dvc_repo" else place
        raise GkdError(
            f"{name} is {shown}, a place on this machine, which a cluster's pods do not have: {instead}, or name a "
            "place in a volume of the profile"
        )
    refuse_own_store("tracking.uri", params.tracking.uri or "")
