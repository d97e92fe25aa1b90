"""TrainJobs for tests: two nodes that ask for little."""

from pipelines.kubeflow.profile import Profile
from pipelines.kubeflow.train_job import TrainJob

NODES = {
    "training": {"cpu_request": "1", "memory_request": "1Gi", "memory_limit": None, "timeout_seconds": 200},
    "nodes": {"count": 2},
    "work": {"claim": "gkd-work", "mount": "/gkd/work"},
}
COMMAND = ("python", "-m", "pipelines.kubeflow.nodes")
NAME = "gkd-distill-1"


def job_of(profile: Profile, step: str = "distill", image: str = "gkd:1") -> TrainJob:
    return TrainJob(NAME, step, profile, image, COMMAND)
