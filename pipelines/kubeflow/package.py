"""What is to run on a cluster: a compiled pipeline and its arguments, checked before anything is sent."""

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from components.mlflow_store import KFP_PAGE
from gkd_core.config import Params
from gkd_core.errors import GkdError
from gkd_core.yaml_text import dump_documents
from pipelines.kubeflow.checks import (
    has_registry,
    plugins_wanted,
    refuse_arguments,
    refuse_no_image,
    refuse_other_devices,
    refuse_own_store,
    refuse_password,
    refuse_places,
    refuse_source,
    resolve,
    with_devices,
    without_null,
)
from pipelines.kubeflow.compile import LOST
from pipelines.kubeflow.profile import QUEUE_LABEL, Profile
from pipelines.kubeflow.variables import tracking_variable, with_variables

DEFAULT_EXPERIMENT = "gkd"


@dataclass(frozen=True)
class Work:
    """What is to run: a compiled pipeline and its arguments.

    Attributes:
        package: YAML file of `gkd pipeline compile`.
        arguments: by name; those the pipeline does not have are refused.
        name: of the run or schedule, as the web interface shows it.
        experiment: the group it stands in; made when it is not there.
        pipeline: upload the file as a version of the pipeline of this name and run that; None sends the file along.
        service_account: the cluster's account that the tasks run as; None leaves it to the server.
        caching: False runs every task again, whatever the compiled file says; True leaves it to the file.
    """

    package: Path
    arguments: dict[str, Any]
    name: str
    experiment: str = DEFAULT_EXPERIMENT
    pipeline: str | None = None
    service_account: str | None = None
    caching: bool = True


def check(work: Work, say: Callable[[str], None]) -> Work:
    """See that the file is a compiled pipeline, and the arguments are its, of their types, make sense; none is missing.

    Args:
        say: told what may go wrong all the same.
    Returns:
        The same, with the number of devices that the file was compiled for in parameters that do not say it.
    Raises:
        GkdError: something is not as it must be.
    """
    if work.package.suffix not in (".yaml", ".yml"):
        raise GkdError(f"{work.package} is not a .yaml file: compile one with `gkd pipeline compile -o pipeline.yaml`")
    try:
        documents = _read(work.package)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or "it is not YAML"
        raise GkdError(f"{work.package} cannot be read ({reason}): compile it again") from None
    spec: Any = documents[0] if documents else None
    if not isinstance(spec, dict) or "root" not in spec or "pipelineInfo" not in spec:
        raise GkdError(f"{work.package} is not a compiled pipeline: make one with `gkd pipeline compile`")
    refuse_password(work.arguments)
    known = spec["root"].get("inputDefinitions", {}).get("parameters", {})
    refuse_arguments(known, work.arguments)
    missing = [
        name
        for name, kind in known.items()
        if name not in work.arguments and "defaultValue" not in kind and not kind.get("isOptional")
    ]
    if missing:
        raise GkdError(f"the pipeline wants {', '.join(missing)}: pass --argument {missing[0]}=…")
    defaults = {name: kind["defaultValue"] for name, kind in known.items() if "defaultValue" in kind}
    devices = _devices(spec)
    if devices and devices > 1 and isinstance(params := work.arguments.get("params"), dict):
        resolve(params)  # so that what follows finds sections where sections belong
        work = replace(work, arguments=work.arguments | {"params": with_devices(without_null(params), devices)})
    given = defaults | work.arguments
    refuse_password(given)
    params = _check_content(given, documents)
    for warning in _warnings(given, params, documents, work.caching):
        say(f"gkd: {warning}")
    return work


def _read(package: Path) -> list[Any]:
    """The documents of a compiled file, which the parser in Python would read for a second."""
    return [*yaml.load_all(package.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)]


def _devices(spec: dict[str, Any]) -> int | None:
    """Accelerators that a training of a compiled pipeline has, on all its nodes; None where it has none."""
    executors = spec.get("deploymentSpec", {}).get("executors", {})
    if (given := _profile(spec)) is not None:
        return given.all_devices
    for name in ("exec-distill", "exec-run-trial", "exec-search-worker"):
        accelerator = executors.get(name, {}).get("container", {}).get("resources", {}).get("accelerator", {})
        if count := accelerator.get("resourceCount") or accelerator.get("count"):
            return int(count)
    return None


def _profile(spec: dict[str, Any]) -> Profile | None:
    """What the tasks that start TrainJobs are given; None where none does."""
    for dag in (part["dag"] for part in spec.get("components", {}).values() if "dag" in part):
        for task in dag.get("tasks", {}).values():
            profile = task.get("inputs", {}).get("parameters", {}).get("profile", {}).get("runtimeValue", {})
            if text := profile.get("constant"):
                try:
                    return Profile.model_validate_json(text)
                except ValidationError:
                    raise GkdError(
                        "the compiled pipeline holds a profile that this version of gkd does not read: compile it again"
                    ) from None
    return None


def _mounts(documents: list[Any]) -> list[str]:
    """Where the prepare task has volumes."""
    pods = [document.get("platforms", {}).get("kubernetes", {}) for document in documents[1:]]
    found = [pod.get("deploymentSpec", {}).get("executors", {}).get("exec-prepare", {}) for pod in pods]
    return [claim["mountPath"] for pod in found for claim in pod.get("pvcMount", [])]


def _check_content(given: dict[str, Any], documents: list[Any]) -> Params | None:
    """What the pipeline's first task would refuse.

    Args:
        given: the arguments with the file's defaults.
        documents: the file's: the pipeline, and what the profile gave it.
    Returns:
        The configuration that the run will have, None where the pipeline has none.
    """
    for image in _images(documents):
        refuse_no_image(image)
    if not isinstance(given.get("params"), dict):
        return None
    overrides, mlflow = given.get("overrides", []), given.get("mlflow", "")
    for override in overrides:
        if not isinstance(override, str):
            raise GkdError(f"overrides has {override!r}, which is no section.key=value: write it as text")
    params = resolve(given["params"], overrides, data_source=given.get("data_source", ""), mlflow=mlflow)
    refuse_own_store("mlflow" if mlflow else "tracking.uri", params.tracking.uri or "")
    refuse_source(params, *(given.get(name, "") for name in ("dvc_repo", "dvc_path", "dvc_rev")))
    mounts, devices = _mounts(documents), _devices(documents[0])
    refuse_places(params, mounts, given.get("dvc_repo", ""))
    if devices:
        refuse_other_devices(params, devices)
    if "methods" in given:
        from pipelines.kubeflow.grid import refuse_sweep

        # What was compiled by an earlier version knows neither another metric than top-1 nor contenders.
        names = ("methods", "pairs", "seeds", "reference", "metric", "contenders")
        refuse_sweep(params, mounts, devices, **{name: given[name] for name in names if name in given})
    if "space" in given:
        from pipelines.kubeflow.study import STORAGE, refuse_own_database, refuse_search

        refuse_own_database(given["storage"], given=_sets(documents, STORAGE))
        searched = ("space", "trials", "minutes", "each", "seeds", "storage", "study", "sampler_seed", "prune")
        refuse_search(params, mounts, devices, **{name: given[name] for name in (*searched, "workers")})
    return params


def _warnings(given: dict[str, Any], params: Params | None, documents: list[Any], caching: bool) -> Iterator[str]:
    """What would be lost, what no node may find, and what the cluster's cache, going by names, would not notice."""
    registers = "mlflow" in given and "space" not in given
    if params and registers and not params.tracking.uri and not _sets(documents, "MLFLOW_TRACKING_URI"):
        yield LOST
    for image in _images(documents):
        if params:
            yield from plugins_wanted(params, image)
        if not has_registry(image):
            yield (
                f"the image {image} names no registry, so the cluster's nodes must have it already: push it and give "
                "its whole name in GKD_IMAGE"
            )
    if caching and given.get("dvc_repo") and not given.get("dvc_rev"):
        yield (
            "dvc_repo is given without dvc_rev, so the cluster's cache takes the images of an earlier run though there "
            "are newer ones: name a tag or a commit, or pass --no-cache"
        )
    source = (params and params.teacher.source) or ""
    if caching and source.startswith("models:/") and "@" in source:
        yield (
            f"teacher.source is {source}, and the cluster's cache takes the teacher that an earlier run found there: "
            "name a version (models:/NAME/NUMBER), or pass --no-cache"
        )


def _sets(documents: list[Any], variable: str) -> bool:
    """Whether tasks have an environment variable, as it is or from a secret."""
    environments = [container.get("env", []) for container in _containers(documents)]
    return f'"{variable}"' in json.dumps([*environments, *documents[1:]])


def unchecked(work: Work) -> str:
    """What `check` cannot see, since only the cluster's pods reach it, in one sentence."""
    documents = _read(work.package)
    pods = [
        pod
        for document in documents[1:]
        for pod in document["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values()
    ]
    claims = sorted({_place(claim) for pod in pods for claim in pod.get("pvcMount", [])})
    queues = {pod.get("podMetadata", {}).get("labels", {}).get(QUEUE_LABEL) for pod in pods}
    if (elsewhere := _profile(documents[0])) is not None:
        queues.add(elsewhere.training.queue)
    named = sorted(queue for queue in queues if queue)
    secrets = sorted({secret["secretName"] for pod in pods for secret in pod.get("secretAsEnv", [])})
    parts = [f"the image {image}" for image in _images(documents)]
    parts += [f"the claim{'s' * (len(claims) > 1)} {', '.join(claims)}"] * bool(claims)
    parts += [f"Kueue's queue{'s' * (len(named) > 1)} {', '.join(named)}"] * bool(named)
    parts += [f"the secret{'s' * (len(secrets) > 1)} {', '.join(secrets)}"] * bool(secrets)
    return f"not looked at from here: {', '.join(parts)}, and the MLflow server, which the first task asks"


def _place(claim: dict[str, Any]) -> str:
    return str(claim["constant"]) + (f" (folder {claim['subPath']})" if claim.get("subPath") else "")


def _containers(documents: list[Any]) -> list[dict[str, Any]]:
    executors = documents[0].get("deploymentSpec", {}).get("executors", {})
    return [executor["container"] for executor in executors.values() if "container" in executor]


def _images(documents: list[Any]) -> list[str]:
    return sorted({container["image"] for container in _containers(documents)})


@contextlib.contextmanager
def as_sent(work: Work, page: str = "") -> Iterator[Work]:
    """The work with the file that is sent: a copy where that is not the one that was compiled.

    Its trainings are told of these arguments' tracking server and of the run's page. Without caching no task has any;
    kfp's own option reaches the tasks on top alone, and no file that is uploaded.

    Args:
        page: address of a run in the web interface, KFP_PLACE where its identifier goes.
    """
    documents = _read(work.package)
    spec = documents[0]
    known = spec["root"].get("inputDefinitions", {}).get("parameters", {})
    given = {name: kind.get("defaultValue") for name, kind in known.items()} | work.arguments
    variables = {KFP_PAGE: page} if page else {}
    if isinstance(given.get("params"), dict):
        params = resolve(given["params"], given.get("overrides") or [], mlflow=given.get("mlflow") or "")
        variables |= tracking_variable(params)
    changed = with_variables(documents, variables)
    if work.caching and not changed:
        yield work
        return
    if not work.caching:
        for part in [spec["root"], *spec.get("components", {}).values()]:
            for task in part.get("dag", {}).get("tasks", {}).values():
                task["cachingOptions"] = {}
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "pipeline.yaml"
        package.write_text(dump_documents(documents), encoding="utf-8")
        yield replace(work, package=package)
