"""A model that the runs registered, served in the namespace: the bundle's objects, requests, a rolling restart."""

import json
from datetime import UTC, datetime
from typing import Any

import yaml

from tests.cluster.ground import MODEL, Failed, Ground, NotRun

RESTARTED = "kubectl.kubernetes.io/restartedAt"  # what `kubectl rollout restart` sets


def serve(ground: Ground) -> str:
    """The bundle's `kubernetes/` is applied, becomes ready, and answers a request."""
    if not ground.settings.mlflow:
        raise NotRun("no MLflow (GKD_CLUSTER_MLFLOW): what the runs registered was lost with their pods")
    name = ground.experiment
    ground.say("a model of the same kind is trained here, for the bundle's manifests")
    made, params = ground.folder / "made-here", str(ground.files()["params"])
    database = f"sqlite:///{ground.folder / 'mlflow.db'}"
    ground.gkd("pipeline", "run", "--params", params, "--out", str(made), MLFLOW_TRACKING_URI=database)
    folders = [word for part in ("data", "student", "deploy", "report") for word in (f"--{part}", str(made / part))]
    ground.gkd(
        "bundle", str(ground.folder / "bundle"), *folders, "--no-registration", "--name", name, "--registry-uri",
        f"models:/{MODEL}@champion",
    )  # fmt: skip
    place = ground.folder / "bundle" / "kubernetes"
    for file in yaml.safe_load((place / "kustomization.yaml").read_text())["resources"]:
        ground.api.make(_of_this_test(ground, yaml.safe_load((place / file).read_text())))
    ground.facts["served"] = name
    ground.until(lambda: _rolled_out(ground, name), f"deployment {name} is ready{_says(ground, name)}")
    said = ground.in_pod("ask", "ask", _address(ground, name), name)
    if said["error"]:
        raise Failed(f"a request from a pod of the namespace is answered with {said['error']}")
    return f"{len(_pods(ground, name))} pods, a request answered"


def roll(ground: Ground) -> str:
    """`kubectl rollout restart` with requests all the while, of which none is refused."""
    name = ground.facts["served"]
    client = ground.start_pod("ask-on", "ask-on", _address(ground, name), name)

    def counts() -> dict[str, Any]:
        lines = ground.api.log(client, "main").splitlines()
        found: dict[str, Any] = json.loads(lines[-1]) if lines else {"answered": 0, "refused": 0, "line": -1}
        return found

    ground.until(lambda: counts()["answered"], "a first request is answered", pod=client)
    before = {pod["metadata"]["name"] for pod in _pods(ground, name)}
    annotations = {"annotations": {RESTARTED: datetime.now(UTC).isoformat()}}
    ground.api.patch("Deployment", name, {"spec": {"template": {"metadata": annotations}}})

    def replaced() -> bool:
        there = {pod["metadata"]["name"] for pod in _pods(ground, name)}
        return _rolled_out(ground, name) and bool(there) and not there & before

    ground.until(replaced, f"all pods of deployment {name} are new ones")
    line = counts()["line"]
    ground.until(lambda: counts()["line"] > line + 1, "the requests go on after it")
    found = counts()
    ground.api.delete("Pod", client)
    if found["refused"]:
        asked = found["refused"] + found["answered"]
        raise Failed(f"{found['refused']} of {asked} requests were refused; the first: {found['first']}")
    return f"none of {found['answered']} requests refused"


def _of_this_test(ground: Ground, content: dict[str, Any]) -> dict[str, Any]:
    """An object of the bundle as the engineer would apply it, but with this test's label and MLflow, and no token.

    The secrets of the namespace are for what is really served there: theirs is another address of MLflow, perhaps, and
    a token that no client of ours has.
    """
    if content["kind"] == "Deployment":
        template = content["spec"]["template"]
        template["metadata"]["labels"] |= ground.label
        (container,) = template["spec"]["containers"]
        kept = [one for one in container["env"] if one["name"] not in ("MLFLOW_TRACKING_URI", "GKD_TOKEN")]
        container["env"] = [{"name": "MLFLOW_TRACKING_URI", "value": ground.settings.mlflow}, *kept]
        profile = ground.profile()
        template["spec"]["imagePullSecrets"] = [{"name": secret} for secret in profile.image_pull_secrets]
        container["imagePullPolicy"] = profile.image_pull_policy
    return content


def _address(ground: Ground, name: str) -> str:
    return f"{name}.{ground.api.namespace}.svc:80"


def _pods(ground: Ground, name: str) -> list[dict[str, Any]]:
    return ground.api.all("Pod", **{"app.kubernetes.io/instance": name})


def _rolled_out(ground: Ground, name: str) -> bool:
    """As `kubectl rollout status` sees it."""
    found = ground.api.get("Deployment", name) or {}
    status, wanted = found.get("status", {}), found.get("spec", {}).get("replicas", 1)
    return bool(
        found
        and status.get("observedGeneration", 0) >= found["metadata"]["generation"]
        and status.get("updatedReplicas", 0)
        == status.get("replicas", 0)
        == status.get("availableReplicas", 0)
        == wanted
    )


def _says(ground: Ground, name: str) -> str:
    return f" (kubectl -n {ground.api.namespace} describe deployment {name})"
