"""TrainJobs: their lives against a cluster's API."""

from contextlib import contextmanager
from dataclasses import replace

import pytest
from kubernetes.config import kube_config

from gkd_core.errors import GkdError
from pipelines.kubeflow import train_job_life
from pipelines.kubeflow.profile import Profile
from pipelines.kubeflow.train_job import TrainJob, manifest
from pipelines.kubeflow.train_job_life import JobEnded, launch
from tests.pipelines.kubernetes_server import KubernetesServer, refusal_of
from tests.pipelines.train_jobs import NAME, NODES, job_of


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
    monkeypatch.setattr(train_job_life, "time", clock := Clock())
    return clock


def run(job: TrainJob, **options) -> list[str]:
    said: list[str] = []
    launch(job, **{"timeout_seconds": 60, "say": said.append} | options)
    return said


def test_a_job_that_completes(cluster, job):
    with cluster("Complete", {0: ["epoch 1", "epoch 2"]}) as server:
        said = run(job)
        assert refusal_of(server.created[0]) is None
        assert server.created[0]["spec"]["runtimeRef"]["kind"] == "ClusterTrainingRuntime"
        assert server.deleted == ["gkd-distill-1"]
    assert said[0] == "TrainJob gkd-distill-1: 2 nodes × 1 processes"
    assert said[1:] == ["epoch 1", "epoch 2"]


def test_a_failed_job_ends_with_its_last_lines(cluster, job):
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


def test_a_failure_nobody_expected_shows_its_traceback(cluster, job):
    lines = ["epoch 1", "Traceback (most recent call last):", "ValueError: boom"]
    report = "E1121 12:14:57 1 torch/distributed/elastic/multiprocessing/api.py:1002] failed (exitcode: 1) of x"
    with cluster("Failed", {0: [*lines, report, *["noise"] * 30]}), pytest.raises(GkdError) as raised:
        run(job)
    assert str(raised.value).endswith("; its last lines:\n  " + "\n  ".join(lines))


def test_a_node_that_is_killed_for_want_of_memory_cannot_say_so(cluster, job):
    pod = job.profile.training.model_copy(update={"memory_limit": "8Gi"})
    job = replace(job, profile=job.profile.model_copy(update={"training": pod}))
    with cluster("Failed", {0: ["epoch 1"]}) as server:
        server.out_of_memory = True
        with pytest.raises(JobEnded, match=r": a node ran out of memory \(exit 137, limit 8Gi\): raise training\."):
            run(job)


def test_a_retried_task_replaces_a_failed_job(cluster, job):
    with cluster("Failed") as server:
        with pytest.raises(JobEnded, match="it left no log"):
            run(job)
        server.ends = "Complete"
        said = run(job)
        assert len(server.created) == 2
    assert said[0] == "TrainJob gkd-distill-1 of an earlier try is replaced"


def test_a_retried_task_joins_a_job_at_work(cluster, job):
    """The waiting pod was preempted, the training was not."""
    with cluster() as server:
        server.create(manifest(job))
        assert run(job)[0].endswith("(joined)")
        assert len(server.created) == 1


def test_a_complete_job_is_taken_as_it_is_unless_its_result_is_lost(cluster, job):
    with cluster() as server:
        for complete, created in ((True, 1), (False, 3)):
            server.create(manifest(job))
            server.end(NAME)
            run(job, complete=lambda complete=complete: complete)
            assert len(server.created) == created


def test_a_job_that_asks_for_something_else_is_replaced(cluster, job):
    with cluster() as server:
        server.create(manifest(replace(job, image="gkd:2")))
        run(job)
        assert [made["spec"]["trainer"]["image"] for made in server.created] == ["gkd:2", "gkd:1"]


def test_an_old_job_that_does_not_go_away_is_not_waited_for_as_long_as_a_training(cluster, job, clock):
    with cluster("Failed") as server:
        with pytest.raises(JobEnded):
            run(job)
        server.lingers = True
        with pytest.raises(GkdError, match="of an earlier try does not go away: its pods may be on a node"):
            run(job, timeout_seconds=10**6)
        assert len(server.created) == 1
    assert clock.now < 1000


def test_time_that_is_over_removes_the_job(cluster, job):
    with cluster(None) as server:
        with pytest.raises(JobEnded, match=r"is not through after 60 seconds; the cluster says: .* Insufficient"):
            run(job)
        assert not server.jobs


def test_a_job_that_waits_for_quota_uses_none_of_its_time_to_work(cluster, queued, clock):
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


def test_time_to_work_adds_up_over_preemptions(cluster, queued, clock):
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
def test_a_quota_that_never_comes_ends_in_one_sentence(cluster, queued, clock, version):
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


def test_a_queue_that_nobody_keeps_is_told_of(cluster, queued):
    with cluster() as server:
        said = run(queued)
        assert server.deleted == [NAME]
    assert said[0] == (
        f"TrainJob {NAME} names the queue gpus, but nothing held it back: Kueue is not there, or does not "
        "manage TrainJobs"
    )


def test_a_job_that_waits_in_another_queue_is_replaced(cluster, queued):
    with cluster() as server:
        server.create(manifest(queued))
        pod = queued.profile.training.model_copy(update={"queue": "others"})
        run(replace(queued, profile=queued.profile.model_copy(update={"training": pod})))
        queues = [made["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] for made in server.created]
    assert queues == ["gpus", "others"]


def test_what_a_stopped_run_left_at_work_is_removed(cluster, job, monkeypatch):
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("KFP_POD_NAME", "gkd-x7k2p-system-container-impl-1")
    said = []
    with cluster(None) as server:
        train_job_life.remove_jobs(said.append)
        server.run_ids["gkd-x7k2p-system-container-impl-1"] = "run-1"
        with pytest.raises(JobEnded):
            run(job)
        assert server.created[0]["metadata"]["labels"]["pipeline/runid"] == "run-1"
        for name, run_id in (("working", "run-1"), ("failed", "run-1"), ("other", "run-2")):
            server.create(manifest(replace(job, name=name), run_id=run_id))
        server.end("failed", "Failed")
        train_job_life.remove_jobs(said.append)
        assert list(server.jobs) == ["failed", "other"]
    assert said == ["TrainJob working is removed: its run has ended"]


def test_a_job_of_another_run_that_is_stopped_is_started_once_more(cluster, job):
    with cluster() as server:
        server.create(manifest(job))
        run(job, say=lambda line: line.endswith("(joined)") and server.jobs.clear())
        assert len(server.created) == 2


def test_a_cluster_that_stumbles(cluster, job):
    with cluster(None) as server:
        seen = []

        def stumble(line: str) -> None:
            if not seen:
                server.broken, server.ends = 4, "Complete"
            seen.append(line)

        run(job, say=stumble)
        assert server.broken == 0


def test_a_cluster_without_trainer(cluster, job):
    with cluster() as server:
        server.runtimes = {}
        with pytest.raises(GkdError, match=r"no training runtime 'torch-distributed': install Kubeflow Trainer"):
            run(job)


def test_a_service_account_without_the_right(cluster, job):
    with cluster() as server:
        server.allowed = False
        with pytest.raises(GkdError, match=r"does not allow it .*cannot create.*docs/kubernetes.md"):
            run(job)


def test_what_the_cluster_refuses(cluster, job):
    with cluster(), pytest.raises(GkdError, match=r"refuses it .*PET_X.* are Trainer's own"):
        run(replace(job, profile=job.profile.model_copy(update={"env": {"PET_X": "1"}})))


def test_no_cluster_at_hand(job, monkeypatch, tmp_path):
    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))
    with pytest.raises(GkdError, match="no cluster is at hand"):
        run(job)


def test_a_cluster_that_is_gone(cluster, job):
    with cluster() as server:
        pass
    with pytest.raises(GkdError, match="cannot be asked"):
        run(job)
    assert not server.created
