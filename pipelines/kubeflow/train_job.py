"""A training on several nodes, for Kubernetes: a TrainJob of Kubeflow Trainer v2 (trainer.kubeflow.org/v1alpha1).

The controller sets PET_* in the job's containers, so that a plain `python -m torch.distributed.run …` there knows the
other nodes. The manifest is ours because the SDK's `TrainerClient.train` takes no variables from secrets, no processes
per node and no labels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from gkd_core.files import json_digest
from pipelines.kubeflow.profile import Pod, Profile
from pipelines.kubeflow.task import RUN_LABEL

GROUP, VERSION, PLURAL = "trainer.kubeflow.org", "v1alpha1", "trainjobs"
MANAGER = "gkd/pipeline"  # whose patch of the runtime it is
SPEC_DIGEST = "gkd/spec-sha256"
NODE = "node"  # what Trainer calls the replicated job and the container that train
AFTER_WORKERS_SECONDS = 10  # of the grace, for torchrun itself to end when its processes have, or were killed


@dataclass(frozen=True)
class TrainJob:
    """What is to run, and on what.

    Attributes:
        name: of the job; pods are called after it. At most 40 small letters, digits and hyphens.
        step: the training step, whose secrets it gets.
        profile: what the cluster gives; it has `nodes` and `work`.
        image: container image.
        command: runs on each node, as it is, without a shell.
    """

    name: str
    step: str
    profile: Profile
    image: str
    command: tuple[str, ...]


def manifest(
    job: TrainJob,
    *,
    runtime_kind: str = "ClusterTrainingRuntime",
    run_id: str | None = None,
    known: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """The TrainJob as Kubernetes takes it.

    Variables stand in `spec.trainer`, since a patch must not set any for the container `node`; volumes, node selection
    and who runs are a patch of the runtime (`runtimePatches`; Trainer before 2.2 called it podSpecOverrides). The label
    with the run's identifier is how the job is found when the run ends before it. Kueue's labels are the job's alone,
    since its pods get their quota together; and Kueue suspends it, not we: where there is no Kueue it starts.
    `known` are variables that make it no other job.
    """
    profile, pod = job.profile, job.profile.training
    assert profile.nodes is not None
    assert profile.work is not None
    requests = {"cpu": pod.cpu_request, "memory": pod.memory_request}
    limits = {"cpu": pod.cpu_limit, "memory": pod.memory_limit}
    if pod.accelerator:
        for amounts in (requests, limits):
            amounts[pod.accelerator.type] = str(pod.accelerator.count)
    patience = str(profile.nodes.grace_seconds - AFTER_WORKERS_SECONDS)  # torchrun's own is 30 seconds
    plain = {"GKD_WORK": profile.work.mount, "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": patience}
    plain |= profile.threads(pod, profile.devices) | profile.env
    variables: list[dict[str, Any]] = [{"name": name, "value": value} for name, value in sorted(plain.items())]
    for secret in profile.secrets_of(job.step):
        for key, name in secret.env.items():
            reference = {"name": secret.name, "key": key, "optional": secret.optional}
            variables.append({"name": name, "valueFrom": {"secretKeyRef": reference}})

    given = (profile.work, *profile.volumes)
    # One volume a claim: a pod with two of the same claim never starts (kubernetes/kubernetes issue 127004).
    claims = {claim: f"claim-{n}" for n, claim in enumerate(dict.fromkeys(volume.claim for volume in given))}
    volumes: list[dict[str, Any]] = [
        {"name": name, "persistentVolumeClaim": {"claimName": claim}} for claim, name in claims.items()
    ]
    mounts = [
        {"name": claims[volume.claim], "mountPath": volume.mount}
        | ({"subPath": volume.sub_path} if volume.sub_path else {})
        for volume in given
    ]
    if pod.shared_memory:
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": pod.shared_memory}})
        mounts.append({"name": "shm", "mountPath": "/dev/shm"})
    # A cluster that gives out users itself gives out the volumes' group as well.
    user, group = profile.security.run_as_user, profile.security.run_as_group
    who = {"runAsUser": user, "runAsGroup": group, "fsGroup": group if user else None}
    secure = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    container = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    pod_patch: dict[str, Any] = {
        "volumes": volumes,
        "nodeSelector": dict(pod.node_selector),
        "terminationGracePeriodSeconds": profile.nodes.grace_seconds,
        "tolerations": [toleration.model_dump(exclude_none=True) for toleration in pod.tolerations],
        "affinity": _affinity(pod),
        "imagePullSecrets": [{"name": name} for name in profile.image_pull_secrets],
        "securityContext": secure | {key: value for key, value in who.items() if value is not None},
        "containers": [{"name": NODE, "volumeMounts": mounts, "securityContext": container}],
    }
    own = {"labels": dict(profile.labels), "annotations": dict(profile.annotations)}
    metadata = {key: value for key, value in own.items() if value}
    pod_template: dict[str, Any] = {"metadata": metadata} if metadata else {}
    pod_template["spec"] = {key: value for key, value in pod_patch.items() if value}
    job_template = {"spec": {"template": pod_template}}
    runtime_spec = {"template": {"spec": {"replicatedJobs": [{"name": NODE, "template": job_template}]}}}
    spec = {
        "runtimeRef": {"apiGroup": GROUP, "kind": runtime_kind, "name": profile.nodes.runtime},
        "trainer": {
            "image": job.image,
            "command": list(job.command),
            "env": variables,
            "numNodes": profile.nodes.count,
            "numProcPerNode": profile.devices,
            "resourcesPerNode": {"requests": requests, "limits": {k: v for k, v in limits.items() if v is not None}},
        },
        "runtimePatches": [{"manager": MANAGER, "trainingRuntimeSpec": runtime_spec}],
        "activeDeadlineSeconds": pod.timeout_seconds,
    }
    labels = {"app.kubernetes.io/managed-by": "gkd"} | profile.labels | pod.queue_labels
    asked = spec | ({"labels": pod.queue_labels} if pod.queue else {})  # a job in another queue is another job
    digest, named = json_digest(asked), {variable["name"] for variable in variables}
    variables += [{"name": name, "value": value} for name, value in known.items() if name not in named]
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "TrainJob",
        "metadata": {
            "name": job.name,
            "labels": labels | ({RUN_LABEL: run_id} if run_id else {}),
            "annotations": profile.annotations | {SPEC_DIGEST: digest},
        },
        "spec": spec,
    }


def _affinity(pod: Pod) -> dict[str, Any]:
    """The profile's rules as Kubernetes writes them; empty for none."""
    required, preferred = pod.node_affinity
    affinity: dict[str, Any] = {}
    if required:
        terms = {"nodeSelectorTerms": [{"matchExpressions": required}]}
        affinity["requiredDuringSchedulingIgnoredDuringExecution"] = terms
    if preferred:
        affinity["preferredDuringSchedulingIgnoredDuringExecution"] = [
            {"weight": weight, "preference": {"matchExpressions": [expression]}} for weight, expression in preferred
        ]
    return {"nodeAffinity": affinity} if affinity else {}
