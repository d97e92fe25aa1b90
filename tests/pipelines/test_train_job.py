"""TrainJobs: the manifest against Trainer's schema."""

import pytest
from torch.distributed.launcher.api import LaunchConfig

from pipelines.kubeflow.profile import Profile, load_profile
from pipelines.kubeflow.train_job import manifest
from tests.pipelines.kubernetes_server import refusal_of
from tests.pipelines.train_jobs import COMMAND, NODES, job_of


def pod_of(made: dict) -> dict:
    """What the manifest patches of the nodes' pods."""
    (patch,) = made["spec"]["runtimePatches"]
    (node,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    assert node["name"] == "node"
    return node["template"]["spec"]["template"]["spec"]


def test_the_manifest_of_the_shipped_profile():
    made = manifest(job_of(load_profile("multi-node"), "teacher"))
    assert refusal_of(made) is None
    trainer = made["spec"]["trainer"]
    assert (trainer["numNodes"], trainer["numProcPerNode"], trainer["image"]) == (2, 4, "gkd:1")
    assert trainer["command"] == list(COMMAND)
    assert trainer["resourcesPerNode"]["limits"] == {"memory": "128Gi", "nvidia.com/gpu": "4"}
    assert trainer["resourcesPerNode"]["requests"] == {"cpu": "16", "memory": "64Gi", "nvidia.com/gpu": "4"}
    variables = {variable["name"]: variable for variable in trainer["env"]}
    secret = variables["MLFLOW_TRACKING_PASSWORD"]["valueFrom"]["secretKeyRef"]
    assert secret == {"name": "gkd-mlflow", "key": "password", "optional": True}
    pod = pod_of(made)
    claim, memory = pod["volumes"]
    assert claim["persistentVolumeClaim"] == {"claimName": "gkd-work"}
    assert memory["emptyDir"] == {"medium": "Memory", "sizeLimit": "32Gi"}
    (container,) = pod["containers"]
    places = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert places == {claim["name"]: "/gkd/work", memory["name"]: "/dev/shm"}
    assert pod["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
    assert pod["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert "podSpecOverrides" not in str(made)


def test_a_step_sees_its_own_secrets_only():
    made = manifest(job_of(load_profile("multi-node"), "kd"))
    names = [variable["name"] for variable in made["spec"]["trainer"]["env"]]
    tracking = ["MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"]
    assert names == ["GKD_WORK", "OMP_NUM_THREADS", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT", *tracking]


def test_torchrun_waits_for_a_checkpoint_as_long_as_the_pod_may():
    made = manifest(job_of(Profile.model_validate(NODES | {"nodes": {"count": 2, "grace_seconds": 300}})))
    assert refusal_of(made) is None
    variables = {variable["name"]: variable.get("value") for variable in made["spec"]["trainer"]["env"]}
    assert pod_of(made)["terminationGracePeriodSeconds"] == 300
    assert variables["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] == "290"
    assert LaunchConfig(1, 1, 1, shutdown_timeout=None).shutdown_timeout == 30, "what it is without the variable"


def test_what_the_waiting_task_knows_of_its_run_is_handed_on_and_makes_no_other_job():
    job = job_of(load_profile("multi-node"))
    plain, told = manifest(job), manifest(job, known={"MLFLOW_RUN_ID": "f" * 32})
    assert {"name": "MLFLOW_RUN_ID", "value": "f" * 32} in told["spec"]["trainer"]["env"]
    assert told["metadata"] == plain["metadata"]
    assert refusal_of(told) is None


@pytest.mark.parametrize(
    ("training", "env", "expected"),
    [
        ({"cpu_request": "16", "accelerator": {"count": 4}}, {}, "4"),
        ({"cpu_request": "3500m"}, {}, "4"),
        ({"cpu_request": "1", "accelerator": {"count": 4}}, {}, "1"),
        ({"cpu_request": "16"}, {"OMP_NUM_THREADS": "3"}, "3"),
    ],
)
def test_the_processes_of_a_node_share_the_cores_that_it_asks_for(training, env, expected):
    made = manifest(job_of(Profile.model_validate(NODES | {"training": training, "env": env})))
    variables = {variable["name"]: variable.get("value") for variable in made["spec"]["trainer"]["env"]}
    assert variables["OMP_NUM_THREADS"] == expected


def test_what_a_profile_gives_every_task_the_nodes_have_too():
    more = {
        "volumes": [{"claim": "photos", "mount": "/photos"}],
        "image_pull_secrets": ["registry"],
        "env": {"NCCL_DEBUG": "INFO"},
        "security": {"run_as_user": 4711, "run_as_group": 815},
    }
    made = manifest(job_of(Profile.model_validate(NODES | more)))
    assert refusal_of(made) is None
    pod = pod_of(made)
    claims = {volume["name"]: volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"]}
    places = {mount["mountPath"]: claims[mount["name"]] for mount in pod["containers"][0]["volumeMounts"]}
    assert places == {"/gkd/work": "gkd-work", "/photos": "photos"}
    assert pod["imagePullSecrets"] == [{"name": "registry"}]
    security = pod["securityContext"]
    assert (security["runAsUser"], security["runAsGroup"], security["fsGroup"]) == (4711, 815, 815)
    assert {"name": "NCCL_DEBUG", "value": "INFO"} in made["spec"]["trainer"]["env"]


def test_what_a_shared_cluster_asks_for():
    rules = [
        {"key": "nvidia.com/gpu.product", "values": ["A100", "H100"]},
        {"key": "spot", "operator": "DoesNotExist"},
        {"key": "zone", "values": ["b"], "weight": 7},
    ]
    training = NODES["training"] | {"queue": "gpus", "priority_class": "low", "affinity": rules}
    more = {"training": training, "labels": {"team": "vision"}, "annotations": {"example.org/cost": "17 & 4"}}
    made = manifest(job_of(Profile.model_validate(NODES | more)), run_id="run-1")
    assert refusal_of(made) is None
    assert made["metadata"]["labels"] == {
        "app.kubernetes.io/managed-by": "gkd", "team": "vision", "pipeline/runid": "run-1",
        "kueue.x-k8s.io/queue-name": "gpus", "kueue.x-k8s.io/priority-class": "low",
    }  # fmt: skip
    assert made["metadata"]["annotations"]["example.org/cost"] == "17 & 4"
    node = made["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"][0]
    assert node["template"]["spec"]["template"]["metadata"] == {
        "labels": {"team": "vision"}, "annotations": {"example.org/cost": "17 & 4"},
    }, "its pods get their quota together, by the job"  # fmt: skip
    affinity = pod_of(made)["affinity"]["nodeAffinity"]
    (term,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert term["matchExpressions"] == [
        {"key": "nvidia.com/gpu.product", "operator": "In", "values": ["A100", "H100"]},
        {"key": "spot", "operator": "DoesNotExist"},
    ]
    (wish,) = affinity["preferredDuringSchedulingIgnoredDuringExecution"]
    assert (wish["weight"], wish["preference"]["matchExpressions"][0]["key"]) == (7, "zone")


def test_two_folders_of_one_claim_are_one_volume():
    """A pod with two volumes of one claim never starts."""
    more = {
        "work": {"claim": "shared", "mount": "/gkd/work", "sub_path": "team/gkd"},
        "volumes": [{"claim": "shared", "mount": "/photos", "sub_path": "photos"}],
    }
    made = manifest(job_of(Profile.model_validate(NODES | more)))
    assert refusal_of(made) is None
    pod = pod_of(made)
    (volume,) = pod["volumes"]
    assert volume["persistentVolumeClaim"] == {"claimName": "shared"}
    assert pod["containers"][0]["volumeMounts"] == [
        {"name": volume["name"], "mountPath": "/gkd/work", "subPath": "team/gkd"},
        {"name": volume["name"], "mountPath": "/photos", "subPath": "photos"},
    ]


def test_the_manifest_of_a_processor_and_of_a_cluster_that_gives_out_users():
    made = manifest(job_of(Profile.model_validate(NODES | {"security": {"run_as_user": None}})))
    assert refusal_of(made) is None
    assert made["spec"]["trainer"]["resourcesPerNode"]["limits"] == {}
    assert pod_of(made)["securityContext"] == {
        "runAsNonRoot": True, "runAsGroup": 0, "seccompProfile": {"type": "RuntimeDefault"},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("path", "value", "part"),
    [
        (["spec", "podSpecOverrides"], [], "podSpecOverrides"),
        (["spec", "trainer", "resourcesPerNode", "limits"], {"memory": "4GB"}, "4GB"),
        (["spec", "trainer", "env"], [{"name": "PET_NNODES", "value": "2"}], "Trainer's own"),
    ],
)
def test_the_schema_refuses_what_a_cluster_would(path, value, part):
    made = manifest(job_of(Profile.model_validate(NODES)))
    place = made
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    assert part in refusal_of(made)
