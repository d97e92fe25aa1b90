"""From a profile to the pods of a pipeline's tasks."""

from kfp import kubernetes
from kfp.dsl import PipelineTask

from components.image import image
from components.mlflow_store import KFP_RUN
from pipelines.kubeflow.profile import TRAINING, Profile, Retries, Volume
from pipelines.kubeflow.task import RUN_LABEL

READING = ("prepare", "evaluate", "register")  # of those that do not train, they read places that parameters name
MARGIN_SECONDS = 600  # for a task that waits for a TrainJob: to copy its inputs and its result, and to tell of its end
WAITING_SECONDS = 86400  # that a try may wait for a node and the image; it counts where tries are counted


def configure(task: PipelineTask, step: str, profile: Profile | None) -> PipelineTask:
    """Give a task's pod what the profile says; without a profile the task stays as it is.

    Args:
        task: of a pipeline under construction.
        step: whose task it is.
        profile: of the cluster.
    """
    if profile is None:
        return task
    pod = profile.pod(step)
    task.set_cpu_request(pod.cpu_request).set_memory_request(pod.memory_request)
    if pod.cpu_limit:
        task.set_cpu_limit(pod.cpu_limit)
    if pod.memory_limit:
        task.set_memory_limit(pod.memory_limit)
    if pod.accelerator:
        task.set_accelerator_type(pod.accelerator.type).set_accelerator_limit(pod.accelerator.count)
    for label, value in pod.node_selector.items():
        kubernetes.add_node_selector(task, label, value)
    for toleration in pod.tolerations:
        kubernetes.add_toleration(task, toleration.key, toleration.operator, toleration.value, toleration.effect)
    required, preferred = pod.node_affinity
    if required:  # in one term: Kubernetes takes a node that fits any of several
        kubernetes.add_node_affinity(task, match_expressions=required)
    for weight, expression in preferred:
        kubernetes.add_node_affinity(task, match_expressions=[expression], weight=weight)
    queued = pod.queue_labels if step != "ended" else {}  # what frees quota must not wait for some
    for label, value in (profile.labels | queued).items():
        kubernetes.add_pod_label(task, label, value)
    for name, value in profile.annotations.items():
        kubernetes.add_pod_annotation(task, name, value)
    if pod.shared_memory:
        kubernetes.empty_dir_mount(
            task, volume_name="shm", mount_path="/dev/shm", medium="Memory", size_limit=pod.shared_memory
        )
    # A task that waits for a TrainJob waits as long as the training may take, and for its quota before.
    patient = profile.training if step in TRAINING else pod
    elsewhere = profile.nodes is not None and step in TRAINING
    deadline = patient.timeout_seconds + (patient.quota_timeout_seconds + MARGIN_SECONDS if elsewhere else 0)
    waiting = WAITING_SECONDS + (pod.quota_timeout_seconds if queued else 0)
    kubernetes.set_timeout(task, deadline)
    if patient.retries.count:
        task.set_retry(
            num_retries=patient.retries.count,
            backoff_duration=f"{patient.retries.backoff_seconds}s",
            backoff_factor=patient.retries.backoff_factor,
            backoff_max_duration=f"{retry_window(patient.retries, deadline, waiting)}s",
        )
    if profile.work and step in (*TRAINING, *READING):
        _mount(task, profile.work)
    if profile.work and step in TRAINING:
        task.set_env_variable("GKD_WORK", profile.work.mount)
    if step in (*TRAINING, "register"):  # what they log in MLflow says whose run it was; no part of the cache's key
        kubernetes.use_field_path_as_env(task, KFP_RUN, f"metadata.labels['{RUN_LABEL}']")
    if profile.nodes and step in TRAINING:
        task.set_env_variable("GKD_IMAGE", image())  # the TrainJob's pods run in the image the task runs in
    for volume in profile.volumes:
        _mount(task, volume)
    for secret in profile.secrets_of(step):
        kubernetes.use_secret_as_env(task, secret.name, secret.env, optional=secret.optional)
    for name, value in (profile.threads(pod) | profile.env).items():
        task.set_env_variable(name, value)
    kubernetes.set_image_pull_policy(task, profile.image_pull_policy)
    if profile.image_pull_secrets:
        kubernetes.set_image_pull_secrets(task, list(profile.image_pull_secrets))
    kubernetes.set_security_context(
        task,
        run_as_user=profile.security.run_as_user,
        run_as_group=profile.security.run_as_group,
        run_as_non_root=True,
    )
    return task


def _mount(task: PipelineTask, volume: Volume) -> None:
    kubernetes.mount_pvc(task, pvc_name=volume.claim, mount_path=volume.mount, sub_path=volume.sub_path or "")


def retry_window(retries: Retries, deadline: int, waiting: int = WAITING_SECONDS) -> int:
    """Seconds from the first try's beginning in which the last one must have ended.

    Kubeflow makes Argo's `retryStrategy.backoff.maxDuration` of it, which limits no single pause but all tries
    together, with their waiting for a node (kubeflow/pipelines issue 14245): a try that begins later never does.
    Whichever tries the cluster repeats (see Retries), one may have used all its time before: each is counted in full.

    Args:
        retries: how often, with which pauses.
        deadline: seconds after which one try is stopped.
        waiting: seconds that one may wait before it starts.
    """
    return (retries.count + 1) * (deadline + waiting) + retries.pauses_seconds
