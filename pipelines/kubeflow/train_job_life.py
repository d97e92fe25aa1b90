"""The life of a TrainJob: created through the `kubeflow` SDK's client, followed, removed.

The waiting is ours because the SDK's `wait_for_job_status` ends at the first question that goes unanswered.
"""

import contextlib
import json
import logging
import os
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from components.mlflow_store import KFP_PAGE, KFP_RUN
from gkd_core.errors import GkdError
from pipelines.kubeflow.profile import QUEUE_LABEL, Pod
from pipelines.kubeflow.quota import Clock, is_held, kueue_says
from pipelines.kubeflow.task import RUN_LABEL, TRACKING, own_sentence
from pipelines.kubeflow.train_job import GROUP, NODE, PLURAL, SPEC_DIGEST, VERSION, TrainJob, manifest

if TYPE_CHECKING:
    from kubeflow.trainer import TrainerClient

# What the waiting task knows of its run, for the job's pods. A next try that knows it otherwise joins the job, too.
HANDED_ON = (TRACKING, KFP_RUN, KFP_PAGE, "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_TRACKING_URI")
LAST_LINES = 20
LAUNCHER_REPORT = re.compile(r"torch/distributed/elastic/multiprocessing/api\.py:\d+\] failed \(exitcode")
POLL_SECONDS = 5
REMOVAL_SECONDS = 300  # for an earlier job to go away, whose pods may hang on a node that is lost
PATIENCE = 10  # questions in a row to the cluster that may go unanswered
TIMES = {"_request_timeout": (10, 60)}  # seconds to connect, and to answer


class JobEnded(GkdError):
    """The job failed, or its time was over: it works no more, and a next try starts another."""


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def launch(
    job: TrainJob,
    *,
    timeout_seconds: float,
    complete: Callable[[], bool] = lambda: True,
    say: Callable[[str], None] = _to_stderr,
) -> None:
    """Run the job to its end, or find it running and wait with it.

    A task that is started again (its own pod was preempted, the training was not) meets a job of its name: the same job
    still at work is joined, a complete one is taken as it is, a failed one or one that asks for something else is
    replaced. A job that failed stays in the cluster to be looked at, any other is removed at the end.

    Args:
        timeout_seconds: for all of it but the time in which it is suspended, which `quota_timeout_seconds` limits.
        complete: whether the result of a job that was complete before is still there; if not, it is replaced too.
        say: told what happens and what node 0 prints; stderr unless given.
    Raises:
        GkdError: no cluster can be reached, Trainer or the runtime is not installed there, the job is refused, or it
            failed; then with its last lines, as a JobEnded. Another JobEnded says that it got no quota.
    """
    nodes, pod = job.profile.nodes, job.profile.training
    assert nodes is not None
    clock = Clock(timeout_seconds, pod.quota_timeout_seconds, now=time.monotonic())
    with _in_words(f"TrainJob {job.name}"):
        client = _client()
        known = {name: value for name in HANDED_ON if (value := os.environ.get(name))}
        wanted = manifest(job, runtime_kind=_runtime_kind(client, nodes.runtime), run_id=_run_id(client), known=known)
        found = _get(client, job.name)
        lost = found is not None and _end(found) == "Complete" and not complete()
        if found is not None and (lost or _end(found) == "Failed" or not _same(found, wanted)):
            say(f"TrainJob {job.name} of an earlier try is replaced")
            _remove(client, job.name)
            _wait_until_gone(client, job.name, time.monotonic() + min(clock.left, REMOVAL_SECONDS))
            clock.spend(time.monotonic())
            found = None
        joined = found is not None
        if not joined:
            _create(client, wanted, say)
        say(
            f"TrainJob {job.name}: {nodes.count} nodes × {job.profile.devices} processes{' (joined)' if joined else ''}"
        )
        follower = _Follower(client, job.name, say)
        try:
            end = _wait(client, job, clock, say)
        except _Deleted:
            if not joined:
                raise
            # It was of another run, which was stopped.
            say(f"TrainJob {job.name} was deleted while it worked: it is started once more")
            _create(client, wanted, say)
            end = _wait(client, job, clock, say)
        follower.stop()
        if end == "Complete":
            _remove(client, job.name)
            return
        if end is None and clock.held:
            words = kueue_says(client, _get(client, job.name) or wanted, **TIMES)
            _remove(client, job.name)
            raise JobEnded(
                f"TrainJob {job.name} waited {clock.waited:.0f} seconds for quota{_of_queue(pod)} in vain"
                f"{f' (Kueue says: {words})' if words else ''}: ask for less (training.accelerator, nodes.count), have "
                "the quota raised, or wait longer with training.quota_timeout_seconds of the profile"
            )
        reason = _reason(client, job.name, end, timeout_seconds)
        lines = _last_lines(client, job.name) or list(follower.last)
        killed = _out_of_memory(client, job) if end == "Failed" else None
        if end is None:
            _remove(client, job.name)
    raise JobEnded(_failure(job.name, reason, lines, killed))


class _Deleted(GkdError):
    """Somebody removed the job that was waited for."""


def remove_jobs(say: Callable[[str], None] = _to_stderr) -> None:
    """Remove the TrainJobs of the run that this pod belongs to which still work: nobody waits for them any more.

    Those that failed stay to be looked at; they hold no GPUs.

    Args:
        say: told what is removed; stderr unless given.
    Raises:
        GkdError: no cluster can be reached, or it does not allow it.
    """
    with _in_words("the run's TrainJobs"):
        client = _client()
        if (run_id := _run_id(client)) is None:
            return
        api = client.backend
        found = api.custom_api.list_namespaced_custom_object(
            GROUP, VERSION, api.namespace, PLURAL, label_selector=f"{RUN_LABEL}={run_id}", **TIMES
        )
        for job in found["items"]:
            if _end(job) is None:
                say(f"TrainJob {job['metadata']['name']} is removed: its run has ended")
                _remove(client, job["metadata"]["name"])


def _run_id(client: "TrainerClient") -> str | None:
    """The run that this pod belongs to; None outside a pod, and where the pod cannot be read.

    Not an argument of the task, which would be a part of the cache's key.
    """
    from kubernetes.client import ApiException

    name = os.environ.get("KFP_POD_NAME") or os.environ.get("HOSTNAME", "")
    if "KUBERNETES_SERVICE_HOST" not in os.environ or not name:
        return None
    try:
        pod = client.backend.core_api.read_namespaced_pod(name, client.backend.namespace, **TIMES)
    except ApiException as error:
        if error.status in (403, 404):
            return None
        raise
    labels: dict[str, str] = pod.metadata.labels or {}
    return labels.get(RUN_LABEL)


@contextlib.contextmanager
def _in_words(what: str) -> Iterator[None]:
    """The SDK's and Kubernetes' errors as one sentence each."""
    from kubernetes.client import ApiException
    from kubernetes.config import ConfigException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except ConfigException:
        raise GkdError(
            f"{what}: no cluster is at hand (no kubeconfig, and this is not a pod): run inside the cluster, or set "
            "KUBECONFIG"
        ) from None
    except ApiException as error:
        raise GkdError(f"{what}: {_refusal(error)}") from None
    except (HTTPError, OSError, RuntimeError, TimeoutError) as error:
        cause = error.__cause__
        if isinstance(cause, ApiException):
            raise GkdError(f"{what}: {_refusal(cause)}") from None
        words = " ".join(str(cause or error).split())[:300]
        raise GkdError(f"{what}: the Kubernetes API cannot be asked ({words}): check the cluster's address") from None


def _refusal(error: Any) -> str:
    try:
        words = str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        words = str(error.reason)
    words = " ".join(words.split())[:600]
    if error.status in (401, 403):
        return f"the cluster does not allow it ({words}): give the service account the role in docs/kubernetes.md"
    return f"the cluster refuses it ({words})"


def _client() -> "TrainerClient":
    """In this pod's namespace, or that of the kubeconfig's context."""
    from kubeflow.trainer import KubernetesBackendConfig, TrainerClient

    logging.getLogger("kubeflow").setLevel(logging.ERROR)  # it warns of a control plane that does not tell its version
    return TrainerClient(KubernetesBackendConfig())


def _runtime_kind(client: "TrainerClient", name: str) -> str:
    from kubernetes.client import ApiException

    try:
        return client.get_runtime(name).kind.value
    except RuntimeError as error:
        if isinstance(error.__cause__, ApiException) and error.__cause__.status == 404:
            raise GkdError(
                f"the cluster has no training runtime {name!r}: install Kubeflow Trainer 2.2 or later with its "
                "runtimes, or name another in the profile's nodes.runtime"
            ) from None
        raise


def _create(client: "TrainerClient", wanted: dict[str, Any], say: Callable[[str], None]) -> None:
    api = client.backend
    made = api.custom_api.create_namespaced_custom_object(GROUP, VERSION, api.namespace, PLURAL, wanted, **TIMES)
    queue = wanted["metadata"]["labels"].get(QUEUE_LABEL)
    if queue and not is_held(made):
        say(
            f"TrainJob {wanted['metadata']['name']} names the queue {queue}, but nothing held it back: Kueue is not "
            "there, or does not manage TrainJobs"
        )


def _of_queue(pod: Pod) -> str:
    return f" of queue {pod.queue}" if pod.queue else ""


def _get(client: "TrainerClient", name: str) -> dict[str, Any] | None:
    """The job as the cluster has it, None when there is none."""
    from kubernetes.client import ApiException

    api = client.backend
    try:
        found: dict[str, Any] = api.custom_api.get_namespaced_custom_object(
            GROUP, VERSION, api.namespace, PLURAL, name, **TIMES
        )
        return found
    except ApiException as error:
        if error.status == 404:
            return None
        raise


def _remove(client: "TrainerClient", name: str) -> None:
    """Delete the job, after its pods; the SDK's own deletion is of the job first."""
    from kubernetes.client import ApiException, V1DeleteOptions

    api = client.backend
    options = V1DeleteOptions(propagation_policy="Foreground")
    try:
        api.custom_api.delete_namespaced_custom_object(
            GROUP, VERSION, api.namespace, PLURAL, name, body=options, **TIMES
        )
    except ApiException as error:
        if error.status != 404:
            raise


def _wait_until_gone(client: "TrainerClient", name: str, give_up: float) -> None:
    while _get(client, name) is not None:
        if time.monotonic() > give_up:
            raise GkdError(
                f"TrainJob {name} of an earlier try does not go away: its pods may be on a node that is lost, look at "
                "them with kubectl"
            )
        time.sleep(POLL_SECONDS)


def _same(found: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Whether both ask for the same; the cluster fills in defaults, so what we asked is compared by its digest."""
    digests = [(job["metadata"].get("annotations") or {}).get(SPEC_DIGEST) for job in (found, wanted)]
    return digests[0] == digests[1] and "deletionTimestamp" not in found["metadata"]


def _conditions(found: dict[str, Any]) -> list[dict[str, Any]]:
    return (found.get("status") or {}).get("conditions") or []


def _end(found: dict[str, Any]) -> str | None:
    """ "Complete", "Failed", or None while it works."""
    return next(
        (c["type"] for c in _conditions(found) if c["type"] in ("Complete", "Failed") and c["status"] == "True"), None
    )


def _wait(client: "TrainerClient", job: TrainJob, clock: Clock, say: Callable[[str], None]) -> str | None:
    """How the job ended; None when time was over first. The SDK's own wait ends at the first unanswered question."""
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    unanswered, told = 0, ""
    while True:
        try:
            found = _get(client, job.name)
            unanswered = 0
        except (ApiException, HTTPError) as error:
            unanswered += 1
            refused = isinstance(error, ApiException) and error.status in (401, 403)
            if refused or unanswered >= PATIENCE:
                raise
        else:
            if found is None:
                raise _Deleted(f"TrainJob {job.name} was deleted while it worked: start the task again")
            if end := _end(found):
                return end
            if is_held(found) != clock.held:
                clock.held = not clock.held
                say(
                    f"TrainJob {job.name} is waiting for quota{_of_queue(job.profile.training)}: until it has it the "
                    "clock of training.timeout_seconds stands"
                    if clock.held
                    else f"TrainJob {job.name} has its quota, after {clock.waited:.0f} seconds in all"
                )
            if clock.held and (words := kueue_says(client, found, **TIMES)) not in ("", told):
                say(f"TrainJob {job.name}: Kueue says: {words}")
                told = words
        if clock.over:
            return None
        time.sleep(POLL_SECONDS)
        clock.spend(time.monotonic())


def _reason(client: "TrainerClient", name: str, end: str | None, timeout_seconds: float) -> str:
    """What the cluster says of the end."""
    if end is None:
        events = []
        with contextlib.suppress(Exception):  # events only help; without them the sentence is still true
            events = [event.message for event in client.get_job_events(name)]
        seen = f"; the cluster says: {' '.join(events[-1].split())}" if events else ""
        return f"is not through after {timeout_seconds:g} seconds{seen}"
    found = _get(client, name) or {}
    said = next((c for c in _conditions(found) if c["type"] == end), {})
    words = " ".join(f"{said.get('reason') or ''}: {said.get('message') or ''}".split()).strip(": ")
    return f"failed ({words})" if words else "failed"


def _last_lines(client: "TrainerClient", name: str) -> list[str]:
    """What a failed node printed last, one that says in a sentence of ours why before the others.

    Empty when no log can be read.
    """
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    lines: list[str] = []
    try:
        steps = client.get_job(name).steps
        for step in [step.name for step in steps if step.status == "Failed"] or [f"{NODE}-0"]:
            tail = list(deque(client.get_job_logs(name, step=step), maxlen=LAST_LINES * 10))
            if own_sentence(tail):
                return tail
            lines = lines or tail
    except (ApiException, HTTPError, RuntimeError, TimeoutError):
        pass
    return lines


def _out_of_memory(client: "TrainerClient", job: TrainJob) -> str | None:
    """That a node was killed for want of memory, which no log says; None if none was, or nothing can be read."""
    api, limit = client.backend, job.profile.training.memory_limit
    with contextlib.suppress(Exception):  # it only helps; the job failed in any case
        selector = f"jobset.sigs.k8s.io/jobset-name={job.name}"
        for pod in api.core_api.list_namespaced_pod(api.namespace, label_selector=selector, **TIMES).items:
            for status in pod.status.container_statuses or []:
                ended = [state.terminated for state in (status.state, status.last_state) if state is not None]
                if any(end is not None and end.reason == "OOMKilled" for end in ended):
                    shown = f", limit {limit}" if limit else ""
                    return f"a node ran out of memory (exit 137{shown}): raise training.memory_limit in the profile"
    return None


def _failure(name: str, reason: str, lines: list[str], killed: str | None) -> str:
    """The job's own sentence first, then its last lines, without what torch.distributed.run reports of the end.

    Args:
        killed: what no process could say itself; it comes before what the others said of the lost connection.
    """
    own = killed or own_sentence(lines)
    head = f"TrainJob {name} {reason}{': ' + own if own else ''}"
    if not lines:
        return f"{head}; it left no log"
    report = next((number for number, line in enumerate(lines) if LAUNCHER_REPORT.search(line)), None)
    return "\n  ".join([f"{head}; its last lines:", *(lines[:report] or lines)[-LAST_LINES:]])


class _Follower:
    """Repeats what node 0 prints while the job works."""

    def __init__(self, client: "TrainerClient", name: str, say: Callable[[str], None]) -> None:
        self.last: deque[str] = deque(maxlen=LAST_LINES)
        self._client, self._name, self._say = client, name, say
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, name=f"log of {name}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """After the job's end: what is still on its way is waited for a moment."""
        self._over.set()
        self._thread.join(timeout=60)

    def _follow(self) -> None:
        told = 0  # lines, since a broken stream begins again at the first
        while True:
            over = self._over.is_set()
            read = 0
            with contextlib.suppress(Exception):  # a log that cannot be followed must not end the training
                for line in self._client.get_job_logs(self._name, follow=not over):
                    read += 1
                    if read > told:
                        told = read
                        self.last.append(line)
                        self._say(line)
                if 0 < read < told:
                    told = 0  # another pod: the job began again
            if over:
                return
            self._over.wait(POLL_SECONDS)
