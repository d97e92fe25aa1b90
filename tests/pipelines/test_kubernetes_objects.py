"""Kubernetes' and Trainer's published schemas take what the documents show and what profiles make.

The bundle's manifests are checked the same way where a bundle is made, in tests/components/test_bundle.py.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.kubeflow.compile import compile_pipeline
from pipelines.kubeflow.profile import Pod, Profile, load_profile, names
from pipelines.kubeflow.train_job import TrainJob, manifest
from tests.kubernetes_objects import refusal
from tests.pipelines.kubernetes_server import refusal_of

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
RULES = [{"key": "gpu", "values": ["a", "b"]}, {"key": "n", "operator": "Gt", "values": ["3"], "weight": 5}]
POD = {
    "cpu_request": "1500m", "cpu_limit": "2", "memory_request": "3Gi", "memory_limit": "5Gi", "shared_memory": "1Gi",
    "accelerator": {"type": "nvidia.com/gpu", "count": 2}, "node_selector": {"pool": "gpu"},
    "tolerations": [{"key": "a", "operator": "Equal", "value": "b", "effect": "NoExecute"}, {"operator": "Exists"}],
    "affinity": RULES, "queue": "gpus", "priority_class": "low", "quota_timeout_seconds": 100, "timeout_seconds": 50,
    "retries": {"count": 1},
}  # fmt: skip
EVERY_KEY: dict[str, Any] = {
    "light": POD, "training": POD, "nodes": {"count": 2},
    "work": {"claim": "shared", "mount": "/w", "sub_path": "team/gkd"},
    "volumes": [{"claim": "shared", "mount": "/photos", "sub_path": "photos"}, {"claim": "more", "mount": "/more"}],
    "secrets": [{"name": "mlflow", "env": {"password": "MLFLOW_TRACKING_PASSWORD"}, "optional": True}],
    "env": {"NCCL_DEBUG": "INFO"}, "labels": {"team": "vision"}, "annotations": {"example.org/cost": "17 & 4"},
    "image_pull_policy": "Always", "image_pull_secrets": ["registry"],
    "security": {"run_as_user": 4711, "run_as_group": 815},
}  # fmt: skip


def documents() -> list[tuple[str, Any]]:
    """Each document in the pages' YAML blocks, with the page's name."""
    found = []
    for page in PAGES:
        for block in re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL):
            found += [(page.name, content) for content in yaml.safe_load_all(block)]
    return found


def test_what_the_documents_show_an_api_server_takes():
    shown = [(page, content) for page, content in documents() if isinstance(content, dict) and "kind" in content]
    for page, content in shown:
        assert refusal(content) is None, f"{page}: {content['kind']}: {refusal(content)}"
    assert {content["kind"] for _, content in shown} == {
        "ClusterRole", "ClusterRoleBinding", "Job", "PersistentVolumeClaim", "Pod", "Secret", "ServiceAccount",
    }  # fmt: skip


def test_the_other_blocks_about_clusters_are_parts_of_a_profile():
    shown = [content for page, content in documents() if page == "kubernetes.md" and "kind" not in content]
    assert len(shown) >= 4
    for content in shown:
        Profile.model_validate(content)


def test_the_pod_that_a_command_asks_for():
    ((text,),) = [re.findall(r"--overrides '(.*?)'", (ROOT / "docs/kubernetes.md").read_text(), re.DOTALL)]
    assert refusal({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "fill"}} | json.loads(text)) is None


def kubeflows_pod(container: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """What Kubeflow Pipelines' driver makes of a task: backend/src/v2/driver/k8s.go, extendPodSpecPatch."""
    secrets = [
        {
            "name": entry["envVar"],
            "valueFrom": {
                "secretKeyRef": {
                    "name": secret["secretName"], "key": entry["secretKey"], "optional": secret.get("optional", False)
                }
            },
        }
        for secret in config.get("secretAsEnv", [])
        for entry in secret["keyToEnv"]
    ]  # fmt: skip
    asked, resources = container["resources"], {"requests": {}, "limits": {}}
    for kind in ("Cpu", "Memory"):
        for amounts, word in (("requests", "Request"), ("limits", "Limit")):
            if amount := asked.get(f"resource{kind}{word}"):
                resources[amounts][kind.lower()] = amount
    if accelerator := asked.get("accelerator"):
        resources["limits"][accelerator["resourceType"]] = accelerator["resourceCount"]
    claims, memories = config.get("pvcMount", []), config.get("emptyDirMounts", [])
    mounts = [{"name": c["constant"], "mountPath": c["mountPath"], "subPath": c.get("subPath", "")} for c in claims]
    mounts += [{"name": memory["volumeName"], "mountPath": memory["mountPath"]} for memory in memories]
    volumes = {c["constant"]: {"persistentVolumeClaim": {"claimName": c["constant"]}} for c in claims}  # merged by name
    volumes |= {m["volumeName"]: {"emptyDir": {"medium": m["medium"], "sizeLimit": m["sizeLimit"]}} for m in memories}
    affinity: dict[str, Any] = {}
    for rule in config.get("nodeAffinity", []):
        term = {"matchExpressions": rule["matchExpressions"]}
        if "weight" in rule:
            wishes = affinity.setdefault("preferredDuringSchedulingIgnoredDuringExecution", [])
            wishes.append({"weight": rule["weight"], "preference": term})
        else:
            must = affinity.setdefault("requiredDuringSchedulingIgnoredDuringExecution", {"nodeSelectorTerms": []})
            must["nodeSelectorTerms"].append(term)
    security = config["securityContext"]
    main = {
        "name": "main",
        "image": container["image"],
        "command": container["command"],
        "args": container["args"],
        "env": [*container.get("env", []), *secrets],
        "resources": resources,
        "volumeMounts": mounts,
        "imagePullPolicy": config["imagePullPolicy"],
        "securityContext": {"runAsUser": int(security["runAsUser"]), "runAsGroup": int(security["runAsGroup"])},
    }
    spec = {
        "containers": [main],
        "volumes": [{"name": name} | source for name, source in volumes.items()],
        "nodeSelector": config.get("nodeSelector", {}).get("labels", {}),
        "tolerations": config.get("tolerations", []),
        "affinity": {"nodeAffinity": affinity},
        "imagePullSecrets": [{"name": secret["secretName"]} for secret in config.get("imagePullSecret", [])],
        "activeDeadlineSeconds": int(config["activeDeadlineSeconds"]),
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "task"} | config.get("podMetadata", {}),
        "spec": spec,
    }


def trainers_pod(job: dict[str, Any]) -> dict[str, Any]:
    """What Trainer makes of the runtime, the job's `trainer` and its patch."""
    (patch,) = job["spec"]["runtimePatches"]
    (node,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    template, trainer = node["template"]["spec"]["template"], job["spec"]["trainer"]
    (container,) = template["spec"]["containers"]
    own = {"image": trainer["image"], "command": trainer["command"], "env": trainer["env"]}
    main = container | own | {"resources": trainer["resourcesPerNode"]}
    metadata = {"name": job["metadata"]["name"]} | template.get("metadata", {})
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"] | {"containers": [main]}}


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("profile") / "every-key.yaml"
    file.write_text(json.dumps(EVERY_KEY))
    return file


def test_the_profile_with_every_key_has_every_key():
    given = Profile.model_validate(EVERY_KEY)
    for model, plain in ((given, Profile()), (given.training, Pod()), (given.light, Pod())):
        same = [name for name in type(model).model_fields if getattr(model, name) == getattr(plain, name)]
        assert same == []


@pytest.mark.parametrize("name", [*names(), "every key", "every key, one node", "a sweep"])
def test_the_pods_of_a_profiles_tasks(compiled, parts_of, own, tmp_path, name):
    if name in names() or name == "a sweep":
        file = compiled("gpu", "sweep") if name == "a sweep" else compiled(name)
    else:
        file, profile = tmp_path / "pipeline.yaml", own
        if name.endswith("one node"):
            profile = tmp_path / "one-node.yaml"
            profile.write_text(json.dumps(EVERY_KEY | {"nodes": None}))
        compile_pipeline(file, params=ROOT / "params.yaml", profile=str(profile))
    spec, pods = parts_of(file)
    executors = spec["deploymentSpec"]["executors"]
    assert set(executors) == set(pods)
    for task, executor in executors.items():
        pod = kubeflows_pod(executor["container"], pods[task])
        assert refusal(pod) is None, f"{task}: {refusal(pod)}"


@pytest.mark.parametrize("name", ["multi-node", "every key"])
@pytest.mark.parametrize("step", ["teacher", "distill"])
def test_the_train_jobs_of_a_profile_and_their_pods(own, name, step):
    profile = load_profile(name if name in names() else str(own))
    job = manifest(TrainJob("gkd-job-1", step, profile, "registry.example/gkd:1", ("python",)), run_id="run-1")
    assert refusal_of(job) is None
    assert refusal(trainers_pod(job)) is None, refusal(trainers_pod(job))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"priorityClass": "low"}, "priorityClass"),
        ({"tolerations": [{"kee": "a"}]}, "kee"),
        ({"activeDeadlineSeconds": "50"}, "50"),
        ({"containers": [{"image": "x"}]}, "name"),
        ({"containers": [{"name": "x", "resources": {"limits": {"memory": "4GB"}}}]}, "4GB is no quantity"),
        ({"containers": [{"name": "x", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}]}, "no volume v"),
        ({"volumes": [{"name": n, "persistentVolumeClaim": {"claimName": "c"}} for n in "ab"]}, "two of claim c"),
    ],
)
def test_what_an_api_server_would_refuse_is_refused(change, said):
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": {"containers": [{"name": "x"}]}}
    assert refusal(pod) is None
    assert said in (refusal(pod | {"spec": pod["spec"] | change}) or "")
    assert "label" in (refusal(pod | {"metadata": {"name": "x", "labels": {"a": "b c"}}}) or "")
