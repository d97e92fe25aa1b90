"""What the checks of a cluster are told, by environment variables: where it is, and what may be used there."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from components.image import image, serve_image
from gkd_core.errors import GkdError


@dataclass(frozen=True)
class Variable:
    """An environment variable: its name, what it is when it is not set, what it says."""

    name: str
    default: str
    meaning: str


VARIABLES = (
    Variable("KUBECONFIG", "", "the cluster; must be given, so that it is no cluster by accident"),
    Variable("KF_PIPELINES_ENDPOINT", "", "address of Kubeflow Pipelines' API, as for gkd pipeline; must be given"),
    Variable("GKD_IMAGE", "gkd:VERSION", "the image as the nodes pull it"),
    Variable("GKD_SERVE_IMAGE", "gkd-serve:VERSION", "the server's image; else named after GKD_IMAGE"),
    Variable("GKD_CLUSTER_NAMESPACE", "the context's, else kubeflow", "namespace of the pipeline's pods"),
    Variable("GKD_CLUSTER_PROFILE", "cpu", "profile of the runs, a name or a file; its `nodes` are left out"),
    Variable("GKD_CLUSTER_NODES_PROFILE", "the same, if it has nodes", "profile of the run on several nodes"),
    Variable("GKD_CLUSTER_SERVICE_ACCOUNT", "pipeline-runner, or default-editor", "who the tasks' pods are"),
    Variable("GKD_CLUSTER_MLFLOW", "", "address of MLflow as pods reach it; without it nothing is served"),
    Variable("GKD_CLUSTER_EPOCHS", "200", "epochs of the trainings that are interrupted: a minute's worth or more"),
    Variable("GKD_CLUSTER_TIMEOUT", "1800", "seconds that a run, or a pod, may take at most"),
    Variable("GKD_CLUSTER_KEEP", "", "yes leaves everything where it is, to be looked at"),
)


@dataclass(frozen=True)
class Settings:
    """As VARIABLES says; `poll_seconds` lie between two looks.

    Attributes:
        service_account: None is what the server gives tasks.
        mlflow: None is none.
        nodes_profile: None is `profile`.
    """

    kubeconfig: str
    endpoint: str
    image: str
    serve_image: str
    namespace: str | None
    profile: str
    nodes_profile: str | None
    service_account: str | None
    mlflow: str | None
    epochs: int
    timeout_seconds: float
    keep: bool
    poll_seconds: float = 5.0


def read(environment: Mapping[str, str] = os.environ) -> Settings:
    """The settings.

    Raises:
        GkdError: no cluster is named, or a number is none.
    """

    def given(name: str) -> str | None:
        return environment.get(name) or None

    missing = [name for name in ("KUBECONFIG", "KF_PIPELINES_ENDPOINT") if not given(name)]
    if missing:
        raise GkdError(
            f"there is no cluster to check: set {' and '.join(missing)} "
            "(docs/kubernetes.md, 'Is my cluster ready?', has all variables)"
        )
    files = environment["KUBECONFIG"]  # several, perhaps, as kubectl takes them
    if not any(Path(file).is_file() for file in files.split(os.pathsep)):
        raise GkdError(f"there is no cluster to check: KUBECONFIG is {files}, which is no file")
    if given("GKD_CLUSTER_KEEP") not in (None, "yes"):
        raise GkdError(f"GKD_CLUSTER_KEEP is {given('GKD_CLUSTER_KEEP')!r}, but must be yes, or not set")
    return Settings(
        kubeconfig=files,
        endpoint=environment["KF_PIPELINES_ENDPOINT"],
        image=image(),
        serve_image=serve_image(),
        namespace=given("GKD_CLUSTER_NAMESPACE"),
        profile=given("GKD_CLUSTER_PROFILE") or "cpu",
        nodes_profile=given("GKD_CLUSTER_NODES_PROFILE"),
        service_account=given("GKD_CLUSTER_SERVICE_ACCOUNT"),
        mlflow=given("GKD_CLUSTER_MLFLOW"),
        epochs=_number(environment, "GKD_CLUSTER_EPOCHS", 200),
        timeout_seconds=_number(environment, "GKD_CLUSTER_TIMEOUT", 1800),
        keep=bool(given("GKD_CLUSTER_KEEP")),
    )


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name) or str(default)
    if not text.isdecimal() or int(text) < 1:
        raise GkdError(f"{name} is {text!r}, but must be a whole number above 0")
    return int(text)


def table() -> str:
    """The variables as lines of help."""
    lines = [f"  {v.name:28} {v.meaning}{f' [{v.default}]' if v.default else ''}" for v in VARIABLES]
    return "\n".join(lines)
