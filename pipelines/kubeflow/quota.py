"""A TrainJob that is suspended until a queue has quota for it: its clock, and what Kueue says of it.

Kueue suspends a job that bears the label of a queue when it is created, resumes it when there is quota, and suspends it
again when it is preempted. Trainer starts `activeDeadlineSeconds` anew at each resumption; here what it worked adds up.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kubeflow.trainer import TrainerClient

GROUP, PLURAL = "kueue.x-k8s.io", "workloads"
VERSIONS = ("v1beta2", "v1beta1")
JOB_LABEL = "kueue.x-k8s.io/job-uid"


class Clock:
    """Two times that a job has, to work and to wait for quota: while one runs the other stands.

    Args:
        work_seconds: how long it may work.
        quota_seconds: how long it may wait for quota.
        now: the time.

    >>> clock = Clock(60, 100, now=0)
    >>> clock.held = True
    >>> clock.spend(90)
    >>> clock.held = False
    >>> clock.spend(140)
    >>> clock.waited, clock.over
    (90.0, False)
    >>> clock.spend(150)
    >>> clock.over
    True
    """

    def __init__(self, work_seconds: float, quota_seconds: float, *, now: float) -> None:
        self.held = False  # as the job was seen last
        self.worked = self.waited = 0.0
        self._work_seconds, self._quota_seconds, self._now = work_seconds, quota_seconds, now

    def spend(self, now: float) -> None:
        """Count the time since the last call for what the job did."""
        if self.held:
            self.waited += now - self._now
        else:
            self.worked += now - self._now
        self._now = now

    @property
    def over(self) -> bool:
        """The time of what it does now is used up."""
        return self.waited >= self._quota_seconds if self.held else self.worked >= self._work_seconds

    @property
    def left(self) -> float:
        """Seconds that it may still work."""
        return self._work_seconds - self.worked


def is_held(job: dict[str, Any]) -> bool:
    """Whether a TrainJob is suspended."""
    return bool(job["spec"].get("suspend"))


def kueue_says(client: "TrainerClient", job: dict[str, Any], **times: Any) -> str:
    """Why Kueue gives a job no quota, of the Workload that it made for it; empty where nothing can be read.

    Args:
        times: how long a question may take, as Kubernetes' client has it.
    """
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    api = client.backend
    selector = f"{JOB_LABEL}={job['metadata'].get('uid', '')}"
    for version in VERSIONS:
        try:
            found = api.custom_api.list_namespaced_custom_object(
                GROUP, version, api.namespace, PLURAL, label_selector=selector, **times
            )
        except ApiException as error:
            if error.status == 404:  # another version of Kueue, or none
                continue
            return ""
        except HTTPError:
            return ""
        for workload in found["items"]:
            for condition in (workload.get("status") or {}).get("conditions") or []:
                if condition["type"] in ("QuotaReserved", "Admitted") and condition["status"] == "False":
                    return " ".join(str(condition.get("message") or "").split())
        return ""
    return ""
