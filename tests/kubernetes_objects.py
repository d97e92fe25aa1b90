"""Whether an API server would take a Kubernetes object: the published OpenAPI, strictly, and rules that it cannot say.

PyPI's `kubernetes-validate` carries the schemas of each version; strict ones know no field that Kubernetes does not.
"""

import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from typing import Any

import jsonschema
from kubernetes_validate.utils import schema_contents
from referencing import Registry, Resource

VERSIONS = ("1.34", "1.35", "1.36", "1.37")
QUANTITY = r"[+-]?(\d+|\d+\.\d*|\.\d+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?\d+)?"
LABEL = r"([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?"
VALUE = r"([A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?)?"
NAME = r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?"


@cache
def _definitions(version: str) -> Registry[Any]:
    contents = schema_contents(f"kubernetes-json-schema/v{version}.0-local-strict/_definitions.json", version)
    return Resource.from_contents(contents) @ Registry()


@cache
def _validator(version: str, kind: str, api_version: str) -> jsonschema.Draft202012Validator:
    group = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", api_version)  # rbac.authorization.k8s.io/v1 is rbac-v1 there
    file = f"kubernetes-json-schema/v{version}.0-local-strict/{kind.lower()}-{group}.json"
    schema = schema_contents(file, version)
    return jsonschema.Draft202012Validator(schema, registry=Resource.from_contents(schema) @ _definitions(version))


def refusal(content: dict[str, Any]) -> str | None:
    """Why one of the versions would not take an object; None when all would.

    Raises:
        FileNotFoundError: no such kind is Kubernetes' own.
    """
    for version in VERSIONS:
        validator = _validator(version, content["kind"], content["apiVersion"])
        error = jsonschema.exceptions.best_match(validator.iter_errors(content))
        if error:
            return f"{version}: {'.'.join(map(str, error.absolute_path))}: {error.message}"
    return next(_broken_rules(content), None)


def _broken_rules(content: dict[str, Any]) -> Iterator[str]:
    for part in _parts(content):
        metadata = part.get("metadata")
        if isinstance(metadata, dict):
            labels, annotations = metadata.get("labels", {}), metadata.get("annotations", {})
            yield from (f"label {key}" for key in (*labels, *annotations) if not re.fullmatch(LABEL, key, re.ASCII))
            yield from (f"label {key}: {v}" for key, v in labels.items() if not re.fullmatch(VALUE, v, re.ASCII))
            if not re.fullmatch(NAME, metadata.get("name", "x"), re.ASCII):
                yield f"name {metadata['name']}"
        for amounts in (part.get("requests"), part.get("limits")):
            for key, amount in amounts.items() if isinstance(amounts, dict) else ():
                if not re.fullmatch(QUANTITY, str(amount)):
                    yield f"{key}: {amount} is no quantity"
        if isinstance(part.get("containers"), list):
            yield from _broken_in_pod(part)


def _broken_in_pod(pod: dict[str, Any]) -> Iterator[str]:
    volumes = pod.get("volumes", [])
    yield from _twice([volume["name"] for volume in volumes], "volume")
    claims = [volume["persistentVolumeClaim"]["claimName"] for volume in volumes if "persistentVolumeClaim" in volume]
    yield from _twice(claims, "claim")  # accepted, but the pod never starts
    for container in pod["containers"]:
        mounts = container.get("volumeMounts", [])
        yield from _twice([mount["mountPath"] for mount in mounts], "mount")
        yield from _twice([variable["name"] for variable in container.get("env", [])], "variable")
        for mount in mounts:
            if mount["name"] not in [volume["name"] for volume in volumes]:
                yield f"no volume {mount['name']}"
            if mount.get("subPath", "x").startswith("/") or ".." in mount.get("subPath", "").split("/"):
                yield f"subPath {mount['subPath']}"


def _twice(names: list[str], what: str) -> Iterator[str]:
    yield from (f"two of {what} {name}" for name, count in Counter(names).items() if count > 1)


def _parts(content: Any) -> Iterator[dict[str, Any]]:
    """Every mapping in it."""
    if isinstance(content, dict):
        yield content
        content = list(content.values())
    for one in content if isinstance(content, list) else ():
        yield from _parts(one)
