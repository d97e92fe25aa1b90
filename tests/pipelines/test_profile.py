"""Profiles: the shipped ones are valid, and what is wrong in one's own is told in a sentence."""

import pytest
import yaml

from gkd_core.errors import GkdError
from pipelines.kubeflow.profile import SHIPPED, Profile, load_profile, names


def test_what_is_allowed_at_the_edges():
    pod = {"memory_request": "4096Mi", "memory_limit": "4Gi", "shared_memory": "4Gi", "cpu_request": "100m"}
    accelerator = {"type": "nvidia.com/mig-1g.5gb"}
    profile = Profile.model_validate(
        {"training": pod | {"accelerator": accelerator}, "work": {"claim": "w", "mount": "/w/"}}
    )
    assert profile.work.mount == "/w"
    assert profile.training.accelerator.type == "nvidia.com/mig-1g.5gb"


def test_what_kubernetes_calls_names_is_allowed():
    profile = Profile.model_validate(
        {
            "env": {"no_proxy": "x", "OMP_NUM_THREADS": "4", "NCCL_DEBUG": "INFO"},
            "training": {"node_selector": {"cloud.google.com/gke-accelerator": "nvidia-tesla-t4", "spot": ""}},
            "secrets": [{"name": "a.b", "env": {"tls.crt": "CERTIFICATE", "_k-1": "aws_profile"}}],
        }
    )
    assert profile.sets("aws_profile")


def test_four_profiles_come_with_the_package():
    assert names() == ["cpu", "gpu", "multi-gpu", "multi-node"]
    assert [load_profile(name).devices for name in names()] == [1, 1, 4, 4]
    assert load_profile("multi-node").nodes.count == 2
    assert load_profile("cpu").training.accelerator is None


@pytest.mark.parametrize("name", names())
def test_every_profile_keeps_checkpoints_tries_again_and_is_never_root(name):
    profile = load_profile(name)
    assert profile.work.claim == "gkd-work"
    assert profile.training.retries.count >= 1
    assert profile.training.retries.backoff_seconds > 0
    assert profile.security.run_as_user != 0
    assert {"register"} <= set(profile.secrets[0].steps)


def test_a_training_that_runs_elsewhere_leaves_its_task_a_light_pod():
    assert load_profile("multi-gpu").pod("teacher").accelerator.count == 4
    assert load_profile("multi-node").pod("teacher").accelerator is None


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"trainin": {}}, ["profile key 'trainin' is unknown", "did you mean 'training'?"]),
        ({"training": {"acelerator": {}}}, ["'training.acelerator' is unknown", "'training.accelerator'"]),
        ({"nodes": {"count": 2, "namespace": "other"}}, ["'nodes.namespace' is unknown"]),
        ({"training": {"retries": {"backoff_factor": 1.5}}}, ["training.retries.backoff_factor"]),
        ({"training": {"memory_limit": "4GB"}}, ["training.memory_limit", "4Gi (not 4GB)"]),
        ({"training": {"accelerator": {"count": 0}}}, ["training.accelerator.count", "0"]),
        ({"training": {"tolerations": [{"operator": "Equal", "key": "a"}]}}, ["Equal goes with a value"]),
        ({"light": {"tolerations": [{"kee": "a"}]}}, ["'light.tolerations.0.kee'", "'light.tolerations.0.key'"]),
        ({"secrets": [{"env": {}}]}, ["secrets.0.name is missing"]),
        ({"secrets": [{"name": "a", "env": {}, "steps": ["registr"]}]}, ["secrets.0.steps.0", "'registr'"]),
        ({"env": {"AWS_SECRET_ACCESS_KEY": "x"}}, ["AWS_SECRET_ACCESS_KEY", "name a Kubernetes secret"]),
        ({"env": {"PATH": "/bin"}}, ["PATH is set by the pipeline or the image itself"]),
        ({"secrets": [{"name": "a", "env": {"k": "PET_NNODES"}}]}, ["PET_NNODES is set by"]),
        ({"env": {"NOT-A-NAME": "x"}}, ["'NOT-A-NAME' is no name of an environment variable"]),
        ({"secrets": [{"name": "a", "env": {"a key": "KEY"}}]}, ["secrets.0.env", "no key of a Kubernetes secret"]),
        ({"env": {"X": "1"}, "secrets": [{"name": "a", "env": {"k": "X"}}]}, ["the variable X is given twice"]),
        ({"training": {"node_selector": {"a label": "x"}}}, ["training.node_selector", "[DOMAIN/]NAME"]),
        ({"training": {"node_selector": {"pool": "-gpu"}}}, ["training.node_selector", "no label's value"]),
        ({"work": {"claim": "Gkd_Work", "mount": "/w"}}, ["work.claim", "small letters"]),
        ({"work": {"claim": "w", "mount": "w"}}, ["work.mount", "start it with /"]),
        ({"work": {"claim": "w", "mount": "/w", "sub_path": "/a"}}, ["work.sub_path", "from the volume's root"]),
        ({"work": {"claim": "w", "mount": "/w", "sub_path": "a/../../b"}}, ["work.sub_path", "no folder in a volume"]),
        (
            {"volumes": [{"claim": "w", "mount": "/w", "sub_path": "."}]},
            ["volumes.0.sub_path", "no folder in a volume"],
        ),
        ({"labels": {"a team": "x"}}, ["labels.a team: 'a team' is no label: write [DOMAIN/]NAME"]),
        ({"labels": {"team": "a b"}}, ["labels.team", "no label's value"]),
        (
            {"labels": {"pipeline/runid": "x"}},
            ["labels", "pipeline/runid is set by the pipeline or the cluster itself"],
        ),
        (
            {"labels": {"kueue.x-k8s.io/queue-name": "x"}},
            ["labels", "a key of its own: write queue in light and training"],
        ),
        ({"annotations": {"gkd/spec-sha256": "x"}}, ["annotations", "gkd/spec-sha256 is set by"]),
        ({"annotations": {"note": "{{workflow.name}}"}}, ["annotations.note", "Argo would take for a template"]),
        ({"training": {"queue": "Gpus"}}, ["training.queue", "'Gpus' is no name in Kueue"]),
        ({"training": {"priority_class": "low"}}, ["priority_class is low but queue is null", "name a queue"]),
        ({"training": {"quota_timeout_seconds": 0}}, ["training.quota_timeout_seconds", "0"]),
        ({"training": {"affinity": [{"key": "a"}]}}, ["training.affinity.0", "operator In needs values"]),
        (
            {"training": {"affinity": [{"key": "a", "operator": "Exists", "values": ["b"]}]}},
            ["Exists goes without values"],
        ),
        ({"training": {"affinity": [{"key": "a", "operator": "Gt", "values": ["b"]}]}}, ["Gt needs one value"]),
        (
            {"training": {"affinity": [{"key": "a", "values": ["b"], "weight": 101}]}},
            ["training.affinity.0.weight", "101"],
        ),
        ({"work": {"claim": "w", "mount": "/dev/shm"}}, ["work.mount", "the container needs itself"]),
        ({"volumes": [{"claim": "w", "mount": "//w/../etc"}]}, ["volumes.0.mount", "the container needs itself"]),
        ({"training": {"memory_request": "8Gi", "memory_limit": "8G"}}, ["memory_request is 8Gi, more than", "8G"]),
        ({"light": {"memory_request": "0Gi"}}, ["memory_request is 0Gi"]),
        ({"training": {"shared_memory": "5Gi", "memory_limit": "4Gi"}}, ["shared_memory is 5Gi, more than"]),
        ({"training": {"accelerator": {"type": "gpu"}}}, ["training.accelerator.type", "no resource of Kubernetes"]),
        ({"nodes": {"count": 2}}, ["nodes is given but work is null"]),
        ({"security": {"run_as_user": 0}}, ["security.run_as_user", "0"]),
        (
            {"work": {"claim": "a", "mount": "/w"}, "volumes": [{"claim": "b", "mount": "/w/"}]},
            ["two volumes are mounted at /w"],
        ),
    ],
)
def test_what_is_wrong_in_a_profile_is_one_sentence(tmp_path, change, parts):
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump(change))
    with pytest.raises(GkdError) as caught:
        load_profile(str(file))
    assert "\n" not in str(caught.value)
    for part in ["own.yaml", *parts]:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ("", ["--profile '' is unknown", "cpu, gpu"]),
        ("gpuu", ["--profile 'gpuu' is unknown", "did you mean 'gpu'?", "cpu, gpu, multi-gpu, multi-node"]),
        ("nowhere.yaml", ["nowhere.yaml does not exist", "--profile FILE"]),
    ],
)
def test_a_profile_that_is_not_there(given, parts):
    with pytest.raises(GkdError) as caught:
        load_profile(given)
    for part in parts:
        assert part in str(caught.value)


def test_no_shipped_profile_holds_more_than_names_of_secrets():
    for file in SHIPPED.glob("*.yaml"):
        assert all(
            set(secret) <= {"name", "env", "steps", "optional"}
            for secret in yaml.safe_load(file.read_text())["secrets"]
        )
    assert Profile().secrets == []
