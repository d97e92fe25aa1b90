"""TrainJobs: the manifest against Trainer's schema, their lives against a cluster's API, a training on two nodes."""

import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from kubernetes.config import kube_config
from torch.distributed.launcher.api import LaunchConfig

from gkd_core.errors import GkdError
from gkd_core.files import folder_digest, read_json, whole_folder
from pipelines.kubeflow import nodes, train_job
from pipelines.kubeflow.profile import Profile, load_profile
from pipelines.kubeflow.task import Task
from pipelines.kubeflow.train_job import JobEnded, TrainJob, launch, manifest
from tests.conftest import small
from tests.pipelines.kubernetes_server import KubernetesServer, refusal_of

ROOT = Path(__file__).parents[2]
NODES = {
    "training": {"cpu_request": "1", "memory_request": "1Gi", "memory_limit": None, "timeout_seconds": 200},
    "nodes": {"count": 2},
    "work": {"claim": "gkd-work", "mount": "/gkd/work"},
}
COMMAND = ("python", "-m", "pipelines.kubeflow.nodes")
NAME = "gkd-distill-1"


def job_of(profile: Profile, step: str = "distill", image: str = "gkd:1") -> TrainJob:
    return TrainJob(NAME, step, profile, image, COMMAND)


@pytest.fixture
def job() -> TrainJob:
    return job_of(Profile.model_validate(NODES))


@pytest.fixture
def queued() -> TrainJob:
    training = NODES["training"] | {"queue": "gpus", "quota_timeout_seconds": 300}
    return job_of(Profile.model_validate(NODES | {"training": training}))


@pytest.fixture
def cluster(monkeypatch, tmp_path):
    """Starts a cluster and points the kubeconfig to it."""

    @contextmanager
    def start(*arguments, **options):
        with KubernetesServer(*arguments, **options) as server:
            monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(server.kubeconfig(tmp_path / "kube")))
            yield server

    return start


class Clock:
    """The clock of who waits for a job: sleeping takes no time, and is as long as it says."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture(autouse=True)
def clock(monkeypatch) -> Clock:
    monkeypatch.setattr(train_job, "time", clock := Clock())
    return clock


def run(job: TrainJob, **options) -> list[str]:
    said: list[str] = []
    launch(job, **{"timeout_seconds": 60, "say": said.append} | options)
    return said


def pod_of(made: dict) -> dict:
    """What the manifest patches of the nodes' pods."""
    (patch,) = made["spec"]["runtimePatches"]
    (node,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    assert node["name"] == "node"
    return node["template"]["spec"]["template"]["spec"]


class TestManifest:
    def test_of_the_shipped_profile(self):
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

    def test_a_step_sees_its_own_secrets_only(self):
        made = manifest(job_of(load_profile("multi-node"), "kd"))
        names = [variable["name"] for variable in made["spec"]["trainer"]["env"]]
        tracking = ["MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"]
        assert names == ["GKD_WORK", "OMP_NUM_THREADS", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT", *tracking]

    def test_torchrun_waits_for_a_checkpoint_as_long_as_the_pod_may(self):
        made = manifest(job_of(Profile.model_validate(NODES | {"nodes": {"count": 2, "grace_seconds": 300}})))
        assert refusal_of(made) is None
        variables = {variable["name"]: variable.get("value") for variable in made["spec"]["trainer"]["env"]}
        assert pod_of(made)["terminationGracePeriodSeconds"] == 300
        assert variables["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] == "290"
        assert LaunchConfig(1, 1, 1, shutdown_timeout=None).shutdown_timeout == 30, "what it is without the variable"

    def test_what_the_waiting_task_knows_of_its_run_is_handed_on_and_makes_no_other_job(self):
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
    def test_the_processes_of_a_node_share_the_cores_that_it_asks_for(self, training, env, expected):
        made = manifest(job_of(Profile.model_validate(NODES | {"training": training, "env": env})))
        variables = {variable["name"]: variable.get("value") for variable in made["spec"]["trainer"]["env"]}
        assert variables["OMP_NUM_THREADS"] == expected

    def test_what_a_profile_gives_every_task_the_nodes_have_too(self):
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

    def test_what_a_shared_cluster_asks_for(self):
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

    def test_two_folders_of_one_claim_are_one_volume(self):
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

    def test_of_a_processor_and_a_cluster_that_gives_out_users(self):
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
    def test_the_schema_refuses_what_a_cluster_would(self, job, path, value, part):
        made = manifest(job)
        place = made
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        assert part in refusal_of(made)


class TestLife:
    def test_a_job_that_completes(self, cluster, job):
        with cluster("Complete", {0: ["epoch 1", "epoch 2"]}) as server:
            said = run(job)
            assert refusal_of(server.created[0]) is None
            assert server.created[0]["spec"]["runtimeRef"]["kind"] == "ClusterTrainingRuntime"
            assert server.deleted == ["gkd-distill-1"]
        assert said[0] == "TrainJob gkd-distill-1: 2 nodes × 1 processes"
        assert said[1:] == ["epoch 1", "epoch 2"]

    def test_a_failed_job_ends_with_its_last_lines(self, cluster, job):
        """As torch.distributed.run leaves it: a long report of its own after what the training said."""
        said = ["gkd: begins: distill", *(f"epoch {n}" for n in range(30))]
        said += ["gkd: the teacher has 100 classes", "gkd: ends: distill"]
        report = "E1121 12:14:57.042 1 torch/distributed/elastic/multiprocessing/api.py:1002] failed (exitcode: 2) of x"
        lines = [
            *said,
            report,
            *(f"  File launcher line {n}" for n in range(40)),
            "traceback : To enable traceback see",
        ]
        with cluster("Failed", {0: ["RuntimeError: Connection closed by peer"], 1: lines}) as server:
            with pytest.raises(GkdError) as raised:
                run(job)
            assert server.deleted == [], "it stays to be looked at"
            assert "gkd-distill-1" in server.jobs
        first, *rest = str(raised.value).splitlines()
        assert first == (
            "TrainJob gkd-distill-1 failed (FailedJobs: jobset failed due to one or more job failures): "
            "the teacher has 100 classes; its last lines:"
        )
        assert [line.strip() for line in rest] == said[-20:]

    def test_a_failure_nobody_expected_shows_its_traceback(self, cluster, job):
        lines = ["epoch 1", "Traceback (most recent call last):", "ValueError: boom"]
        report = "E1121 12:14:57 1 torch/distributed/elastic/multiprocessing/api.py:1002] failed (exitcode: 1) of x"
        with cluster("Failed", {0: [*lines, report, *["noise"] * 30]}), pytest.raises(GkdError) as raised:
            run(job)
        assert str(raised.value).endswith("; its last lines:\n  " + "\n  ".join(lines))

    def test_a_node_that_is_killed_for_want_of_memory_cannot_say_so(self, cluster, job):
        pod = job.profile.training.model_copy(update={"memory_limit": "8Gi"})
        job = replace(job, profile=job.profile.model_copy(update={"training": pod}))
        with cluster("Failed", {0: ["epoch 1"]}) as server:
            server.out_of_memory = True
            with pytest.raises(JobEnded, match=r": a node ran out of memory \(exit 137, limit 8Gi\): raise training\."):
                run(job)

    def test_a_retried_task_replaces_a_failed_job(self, cluster, job):
        with cluster("Failed") as server:
            with pytest.raises(JobEnded, match="it left no log"):
                run(job)
            server.ends = "Complete"
            said = run(job)
            assert len(server.created) == 2
        assert said[0] == "TrainJob gkd-distill-1 of an earlier try is replaced"

    def test_a_retried_task_joins_a_job_at_work(self, cluster, job):
        """The waiting pod was preempted, the training was not."""
        with cluster() as server:
            server.create(manifest(job))
            assert run(job)[0].endswith("(joined)")
            assert len(server.created) == 1

    def test_a_complete_job_is_taken_as_it_is_unless_its_result_is_lost(self, cluster, job):
        with cluster() as server:
            for complete, created in ((True, 1), (False, 3)):
                server.create(manifest(job))
                server.end(NAME)
                run(job, complete=lambda complete=complete: complete)
                assert len(server.created) == created

    def test_a_job_that_asks_for_something_else_is_replaced(self, cluster, job):
        with cluster() as server:
            server.create(manifest(replace(job, image="gkd:2")))
            run(job)
            assert [made["spec"]["trainer"]["image"] for made in server.created] == ["gkd:2", "gkd:1"]

    def test_an_old_job_that_does_not_go_away_is_not_waited_for_as_long_as_a_training(self, cluster, job, clock):
        with cluster("Failed") as server:
            with pytest.raises(JobEnded):
                run(job)
            server.lingers = True
            with pytest.raises(GkdError, match="of an earlier try does not go away: its pods may be on a node"):
                run(job, timeout_seconds=10**6)
            assert len(server.created) == 1
        assert clock.now < 1000

    def test_time_that_is_over_removes_the_job(self, cluster, job):
        with cluster(None) as server:
            with pytest.raises(JobEnded, match=r"is not through after 60 seconds; the cluster says: .* Insufficient"):
                run(job)
            assert not server.jobs

    def test_a_job_that_waits_for_quota_uses_none_of_its_time_to_work(self, cluster, queued, clock):
        """Suspended when it is created, resumed, preempted, resumed: only what it worked counts."""
        with cluster(None, {0: ["epoch 1"]}) as server:
            server.kueue = "couldn't assign flavors to pod set node: insufficient unused quota"
            moments = {150: server.resume, 170: server.suspend, 300: server.resume}

            def sleep(seconds: float) -> None:
                clock.now += seconds
                if act := moments.get(clock.now):
                    act(NAME)
                if clock.now > 320:
                    server.ends = "Complete"

            clock.sleep = sleep
            said = run(queued)  # 60 seconds of work
            assert clock.now > 320
            assert server.created[0]["spec"].get("suspend") is None, "that is Kueue's business"
        waiting = f"TrainJob {NAME} is waiting for quota of queue gpus: until it has it the clock of "
        assert [line for line in said if "quota" in line] == [
            f"{waiting}training.timeout_seconds stands",
            f"TrainJob {NAME}: Kueue says: {server.kueue}",
            f"TrainJob {NAME} has its quota, after 150 seconds in all",
            f"{waiting}training.timeout_seconds stands",
            f"TrainJob {NAME} has its quota, after 280 seconds in all",
        ]

    def test_time_to_work_adds_up_over_preemptions(self, cluster, queued, clock):
        with cluster(None) as server:
            server.kueue = ""
            moments = {100: server.resume, 140: server.suspend, 200: server.resume}

            def sleep(seconds: float) -> None:
                clock.now += seconds
                if act := moments.get(clock.now):
                    act(NAME)

            clock.sleep = sleep
            with pytest.raises(JobEnded, match="is not through after 60 seconds"):
                run(queued)
        assert clock.now == 220

    @pytest.mark.parametrize("version", ["v1beta2", "v1beta1", "v2"])
    def test_a_quota_that_never_comes_ends_in_one_sentence(self, cluster, queued, clock, version):
        with cluster() as server:
            server.kueue, server.kueue_version = "LocalQueue gpus doesn't exist", version
            with pytest.raises(JobEnded) as raised:
                run(queued)
            assert not server.jobs, "it gives up its place in the queue"
        kueue = "" if version == "v2" else " (Kueue says: LocalQueue gpus doesn't exist)"
        assert str(raised.value) == (
            f"TrainJob {NAME} waited 300 seconds for quota of queue gpus in vain{kueue}: ask for less "
            "(training.accelerator, nodes.count), have the quota raised, or wait longer with "
            "training.quota_timeout_seconds of the profile"
        )

    def test_a_queue_that_nobody_keeps_is_told_of(self, cluster, queued):
        with cluster() as server:
            said = run(queued)
            assert server.deleted == [NAME]
        assert said[0] == (
            f"TrainJob {NAME} names the queue gpus, but nothing held it back: Kueue is not there, or does not "
            "manage TrainJobs"
        )

    def test_a_job_that_waits_in_another_queue_is_replaced(self, cluster, queued):
        with cluster() as server:
            server.create(manifest(queued))
            pod = queued.profile.training.model_copy(update={"queue": "others"})
            run(replace(queued, profile=queued.profile.model_copy(update={"training": pod})))
            queues = [made["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] for made in server.created]
        assert queues == ["gpus", "others"]

    def test_what_a_stopped_run_left_at_work_is_removed(self, cluster, job, monkeypatch):
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
        monkeypatch.setenv("KFP_POD_NAME", "gkd-x7k2p-system-container-impl-1")
        said = []
        with cluster(None) as server:
            train_job.remove_jobs(said.append)
            server.run_ids["gkd-x7k2p-system-container-impl-1"] = "run-1"
            with pytest.raises(JobEnded):
                run(job)
            assert server.created[0]["metadata"]["labels"]["pipeline/runid"] == "run-1"
            for name, run_id in (("working", "run-1"), ("failed", "run-1"), ("other", "run-2")):
                server.create(manifest(replace(job, name=name), run_id=run_id))
            server.end("failed", "Failed")
            train_job.remove_jobs(said.append)
            assert list(server.jobs) == ["failed", "other"]
        assert said == ["TrainJob working is removed: its run has ended"]

    def test_a_job_of_another_run_that_is_stopped_is_started_once_more(self, cluster, job):
        with cluster() as server:
            server.create(manifest(job))
            run(job, say=lambda line: line.endswith("(joined)") and server.jobs.clear())
            assert len(server.created) == 2

    def test_a_cluster_that_stumbles(self, cluster, job):
        with cluster(None) as server:
            seen = []

            def stumble(line: str) -> None:
                if not seen:
                    server.broken, server.ends = 4, "Complete"
                seen.append(line)

            run(job, say=stumble)
            assert server.broken == 0

    def test_a_cluster_without_trainer(self, cluster, job):
        with cluster() as server:
            server.runtimes = {}
            with pytest.raises(GkdError, match=r"no training runtime 'torch-distributed': install Kubeflow Trainer"):
                run(job)

    def test_a_service_account_without_the_right(self, cluster, job):
        with cluster() as server:
            server.allowed = False
            with pytest.raises(GkdError, match=r"does not allow it .*cannot create.*docs/kubernetes.md"):
                run(job)

    def test_what_the_cluster_refuses(self, cluster, job):
        with cluster(), pytest.raises(GkdError, match=r"refuses it .*PET_X.* are Trainer's own"):
            run(replace(job, profile=job.profile.model_copy(update={"env": {"PET_X": "1"}})))

    def test_no_cluster_at_hand(self, job, monkeypatch, tmp_path):
        monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))
        with pytest.raises(GkdError, match="no cluster is at hand"):
            run(job)

    def test_a_cluster_that_is_gone(self, cluster, job):
        with cluster() as server:
            pass
        with pytest.raises(GkdError, match="cannot be asked"):
            run(job)
        assert not server.created


TASK = """
import sys
from pathlib import Path
from pipelines.kubeflow.task import running
from pipelines.kubeflow.nodes import train
here = Path(sys.argv[1])
profile = (here / "profile.json").read_text()
with running("baseline", sys.argv[2]) as task:
    train(task, profile, out=str(here / "baseline"), data=str(here / "data"))
"""


@pytest.mark.slow
def test_two_nodes_train_one_network(few_digits, tmp_path):
    """The task starts a TrainJob; its nodes are processes here, started as Trainer would, that meet in the volume."""
    shutil.copytree(few_digits, tmp_path / "data")
    profile = NODES | {"work": {"claim": "gkd-work", "mount": str(tmp_path / "work")}}
    (tmp_path / "profile.json").write_text(Profile.model_validate(profile).model_dump_json())
    params = small(train={"epochs": 1, "batch_size": 20, "device": "cpu"})
    settings = params.model_dump_json(include={"student", "train", "references"})
    with KubernetesServer("processes") as server:
        server.environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": _path()}
        environment = {
            "GKD_WORK": str(tmp_path / "work"),
            "PYTHONPATH": str(ROOT),
            "KUBECONFIG": str(server.kubeconfig(tmp_path / "kube")),
        }
        result = subprocess.run(
            [sys.executable, "-c", TASK, str(tmp_path), settings], cwd=tmp_path, capture_output=True, text=True,
            timeout=250, env=os.environ | environment,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        (made,) = server.created
    assert made["spec"]["trainer"]["command"][:4] == ["python", "-m", "torch.distributed.run", "-m"]
    facts = read_json(tmp_path / "baseline" / "training.json", "the result")
    assert (facts["trained"], facts["processes"]) == (True, 2)
    assert (tmp_path / "baseline" / "model.safetensors").is_file()
    assert not list((tmp_path / "work" / "nodes").iterdir()), "the volume is left as it was"
    assert "2 nodes × 1 processes" in result.stderr


class TestTheVolume:
    """What lies on it, with a training that is no training."""

    @pytest.fixture
    def wait(self, few_digits, tmp_path, monkeypatch):
        """A function that is the waiting task: what the job leaves is given; how often it was started is counted."""
        profile = Profile.model_validate(NODES).model_dump_json()
        started: list[Path] = []

        def launched(job, *, complete, **_):
            place = Path(job.command[-2])
            started.append(place)
            assert not complete()
            with whole_folder(place / "out") as folder:
                (folder / "training.json").write_text('{"epochs": 3}')
                (folder / "model.safetensors").write_bytes(b"weights")
            nodes.finish(place)

        monkeypatch.setattr(train_job, "launch", launched)

        def wait(out: str = "baseline") -> list[Path]:
            task = Task("baseline", "{}", small(), tmp_path / "work", tmp_path)
            nodes.train(task, profile, out=str(tmp_path / out), data=str(few_digits))
            assert (tmp_path / out / "model.safetensors").read_bytes() == b"weights"
            return started

        return wait

    @pytest.mark.parametrize("lost", ["model.safetensors", "training.json", "a byte"])
    def test_a_half_deleted_result_is_no_result(self, wait, tmp_path, monkeypatch, lost):

        with monkeypatch.context() as patch:
            patch.setattr(nodes, "_take_away", lambda folder: None)  # killed before it cleaned up
            (place,) = wait()
        if lost == "a byte":
            (place / "out" / "model.safetensors").write_bytes(b"weight.")
        else:
            (place / "out" / lost).unlink()
        assert wait("again") == [place, place], "trained once more"
        assert list((tmp_path / "work" / "nodes").iterdir()) == []

    def test_a_whole_one_is_taken_and_inputs_that_are_not_whole_are_copied_again(self, wait, monkeypatch):
        with monkeypatch.context() as patch:
            patch.setattr(nodes, "_take_away", lambda folder: None)
            (place,) = wait()
            whole = folder_digest(place / "data")
            assert wait("again") == [place]
        for folder in (place / "out", place / "data"):
            next(file for file in folder.rglob("*.npy" if folder.name == "data" else "*.json")).unlink()
        with monkeypatch.context() as patch:
            keep = nodes._take_away
            patch.setattr(nodes, "_take_away", lambda folder: None if folder == place else keep(folder))
            assert len(wait("third")) == 2
            assert folder_digest(place / "data") == whole

    def test_what_is_being_deleted_has_another_name_and_is_deleted_by_the_next(self, wait, tmp_path, monkeypatch):
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "rmtree", lambda *_, **__: None)  # killed in the middle
            (place,) = wait()
        assert not place.exists()
        assert [path.name.startswith(".gone-") for path in place.parent.iterdir()] == [True]
        wait("again")
        assert list(place.parent.iterdir()) == []

    def test_a_failed_job_leaves_no_copies_and_one_that_may_still_work_does(self, wait, monkeypatch):

        place = wait()[0]
        for error, left in ((train_job.JobEnded("failed"), False), (GkdError("cannot be asked"), True)):

            def launched(*_, error=error, **__):
                raise error

            monkeypatch.setattr(train_job, "launch", launched)
            with pytest.raises(GkdError, match=str(error)):
                wait("again")
            assert (place / "data").exists() is left


def _path() -> str:
    """`python` is this one, as in the image."""
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def test_a_reference_that_is_off_needs_no_nodes(few_digits, tmp_path):
    task = Task("baseline", "", small(references={"baseline": False}), tmp_path, tmp_path)
    nodes.train(task, "a profile", out=str(tmp_path / "baseline"), data=str(few_digits))
    assert '"trained": false' in (tmp_path / "baseline" / "training.json").read_text()
