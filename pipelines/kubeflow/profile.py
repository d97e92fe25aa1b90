"""A profile says what a cluster gives the pipeline's tasks: nodes, memory, volumes, secrets by name, patience.

`profiles/` holds four; a file of one's own is validated the same way. Nothing secret belongs into one: secrets are
named, their values stay in the cluster.
"""

import math
import posixpath
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from components.graph import STEPS
from gkd_core.config import read_sections
from gkd_core.errors import GkdError, unknown
from gkd_core.mistakes import mistakes

SHIPPED = Path(__file__).with_name("profiles")
TASKS = ("settings", *(step.name for step in STEPS), "ended")
TRAINING = tuple(step.name for step in STEPS if step.trains)


# Where a volume would hide what the image, the kernel or Kubernetes itself has there.
_SYSTEM = ("/bin", "/boot", "/dev", "/etc", "/lib", "/lib64", "/opt/gkd", "/proc", "/run", "/sbin", "/sys", "/usr")
_TAKEN = frozenset({"/", "/opt", "/root", "/tmp", "/var", *_SYSTEM})


def _written(pattern: str, sentence: str) -> AfterValidator:
    """Text that matches the pattern; `sentence` says what else is wrong with it."""

    def check(value: str) -> str:
        if not re.fullmatch(pattern, value, re.ASCII):
            raise ValueError(f"{value!r} {sentence}")
        return value

    return AfterValidator(check)


def _task(value: str) -> str:
    if value not in TASKS:
        raise ValueError(unknown("the task", value, TASKS))
    return value


def _absolute(value: str) -> str:
    if not value.startswith("/"):
        raise ValueError(f"{value!r} is no place in a container: start it with /")
    place = posixpath.normpath("/" + value.lstrip("/"))
    if place in _TAKEN or any(place.startswith(f"{folder}/") for folder in _SYSTEM):
        raise ValueError(f"{value!r} is a place the container needs itself: take one of its own, such as /gkd/work")
    return place


def _folder(value: str) -> str:
    place = posixpath.normpath(value)
    if value.startswith("/") or ".." in value.split("/") or place == "." or "\\" in value:
        raise ValueError(f"{value!r} is no folder in a volume: write its way from the volume's root, such as team/gkd")
    return place


# What the image, Python's launcher, Kubeflow, Trainer and gkd itself set: another value would mislead them.
_RESERVED = re.compile(
    r"PATH|PYTHON(PATH|HOME)|(LD|PET|GKD|KFP|ARGO|KUBERNETES|TORCHELASTIC)_.*|(LOCAL_|GROUP_)?(RANK|WORLD_SIZE)|"
    r"MASTER_(ADDR|PORT)|NVIDIA_VISIBLE_DEVICES"
)


def _not_reserved(value: str) -> str:
    if _RESERVED.fullmatch(value):
        raise ValueError(f"{value} is set by the pipeline or the image itself: leave it out")
    return value


QUEUE_LABEL, _PRIORITY_LABEL = "kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class"
# Labels and annotations that Kubeflow Pipelines, Argo, Trainer, JobSet and gkd itself set.
_SET = re.compile(
    r"(pipeline|pipelines\.kubeflow\.org|workflows\.argoproj\.io|trainer\.kubeflow\.org|jobset\.sigs\.k8s\.io|"
    r"batch\.kubernetes\.io|gkd)/.*"
)


def _free(value: str) -> str:
    if _SET.fullmatch(value):
        raise ValueError(f"{value} is set by the pipeline or the cluster itself: leave it out")
    if value in (QUEUE_LABEL, _PRIORITY_LABEL):
        key = "queue" if value == QUEUE_LABEL else "priority_class"
        raise ValueError(f"{value} has a key of its own: write {key} in light and training")
    return value


def _plain(value: str) -> str:
    if "{{" in value:
        raise ValueError(f"{value!r} has {{{{ in it, which Argo would take for a template of its own: leave it out")
    return value


_NAME, _WORD = r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?", r"[A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?"
Quantity = Annotated[str, _written(r"\d+(\.\d+)?(m|[EPTGMK]i?)?", "is no amount: write 2, 500m, 4G or 4Gi (not 4GB)")]
Name = Annotated[str, _written(_NAME, "is no Kubernetes name: small letters, digits, - and .")]
Resource = Annotated[
    str,
    _written(f"{_NAME}/{_WORD}", "is no resource of Kubernetes: write it as the device plugin does, nvidia.com/gpu"),
]
Label = Annotated[
    str, _written(f"({_NAME}/)?{_WORD}", "is no label: write [DOMAIN/]NAME, at most 63 letters, digits, -, _ and .")
]
LabelValue = Annotated[str, _written(f"({_WORD})?", "is no label's value: at most 63 letters, digits, -, _ and .")]
FreeLabel = Annotated[Label, AfterValidator(_free)]
Text = Annotated[str, AfterValidator(_plain)]
Queue = Annotated[
    str,
    _written(r"[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?", "is no name in Kueue: at most 63 small letters, digits, - and ."),
]
Folder = Annotated[str, AfterValidator(_folder)]
Key = Annotated[
    str, _written(r"(?!\.\.?$)[-\w.]{1,253}", "is no key of a Kubernetes secret: letters, digits, -, _ and . alone")
]
Variable = Annotated[
    str,
    _written(r"[A-Za-z_]\w*", "is no name of an environment variable: letters, digits and _, no digit first"),
    AfterValidator(_not_reserved),
]
Place = Annotated[str, AfterValidator(_absolute)]
Task = Annotated[str, AfterValidator(_task)]


_UNITS = {suffix: 1000.0**power for power, suffix in enumerate("KMGTPE", start=1)}
_UNITS |= {f"{suffix}i": 1024.0**power for power, suffix in enumerate("KMGTPE", start=1)} | {"m": 0.001, "": 1.0}


def _amount(quantity: str) -> float:
    """A quantity as a number: of cores, or of bytes.

    >>> _amount("500m"), _amount("2Ki")
    (0.5, 2048.0)
    """
    digits = quantity.rstrip("EPTGMKim")
    return float(digits) * _UNITS[quantity[len(digits) :]]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class Accelerator(_Part):
    """What a training pod asks for."""

    type: Resource = "nvidia.com/gpu"
    """Resource name."""
    count: Annotated[int, Field(ge=1, le=64)] = 1
    """How many a pod; with more than one, `train.devices` is set to it unless params.yaml says otherwise."""


class Toleration(_Part):
    """Of a taint."""

    key: Label | None = None
    operator: Literal["Equal", "Exists"] = "Exists"
    value: LabelValue | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> "Toleration":
        if (self.operator == "Equal") != (self.value is not None):
            raise ValueError("a toleration's operator Equal goes with a value, and Exists without")
        if self.key is None and self.operator == "Equal":
            raise ValueError("a toleration's operator Equal needs a key")
        return self


class NodeRule(_Part):
    """What is asked of a node's label beyond `node_selector`: one part of a node affinity."""

    key: Label
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"] = "In"
    values: list[LabelValue] = []
    weight: Annotated[int, Field(ge=1, le=100)] | None = None
    """null must hold. A number: nodes for which it holds come first, the more the larger it is."""

    @model_validator(mode="after")
    def _consistent(self) -> "NodeRule":
        if self.operator in ("Exists", "DoesNotExist") and self.values:
            raise ValueError(f"an affinity's operator {self.operator} goes without values")
        if self.operator in ("In", "NotIn") and not self.values:
            raise ValueError(f"an affinity's operator {self.operator} needs values")
        if self.operator in ("Gt", "Lt") and (len(self.values) != 1 or not re.fullmatch(r"\d+", self.values[0])):
            raise ValueError(f"an affinity's operator {self.operator} needs one value, a whole number in quotes")
        return self

    @property
    def expression(self) -> dict[str, Any]:
        """As Kubernetes writes it."""
        return {"key": self.key, "operator": self.operator} | ({"values": self.values} if self.values else {})


class Retries(_Part):
    """How often a task is tried again; a preempted training goes on from its checkpoint in `work`.

    What for is the cluster's choice. Kubeflow Pipelines 2.17's own manifests have Argo's `retryPolicy: OnError`: a pod
    that was deleted is tried again, a container that failed, ran out of memory or out of time is not. Without that
    default it is the other way round (`OnFailure`). docs/kubernetes.md says how to see which, and how to change it.
    """

    count: Annotated[int, Field(ge=0, le=10)] = 2
    """Further tries; 0 is none."""
    backoff_seconds: Annotated[int, Field(ge=0)] = 60
    """Pause before the first."""
    backoff_factor: Annotated[int, Field(ge=1, le=10)] = 2
    """Each pause is so many times the one before; a whole number, since Argo reads no other."""

    @property
    def pauses_seconds(self) -> int:
        """All pauses together.

        >>> Retries(count=3, backoff_seconds=60).pauses_seconds
        420
        """
        return sum(self.backoff_seconds * self.backoff_factor**number for number in range(self.count))


class Pod(_Part):
    """What one kind of task gets."""

    cpu_request: Quantity = "1"
    """Rounded up it is how many cores the task counts on (OMP_NUM_THREADS), unless `env` has that variable."""
    cpu_limit: Quantity | None = None
    """None is no limit."""
    memory_request: Quantity = "2Gi"
    memory_limit: Quantity | None = "4Gi"
    accelerator: Accelerator | None = None
    """null is the processor alone."""
    node_selector: dict[Label, LabelValue] = {}
    """Labels a node must have."""
    tolerations: list[Toleration] = []
    """Taints it may have."""
    affinity: list[NodeRule] = []
    """What its labels must be, or had better be: all rules without a weight hold together."""
    queue: Queue | None = None
    """LocalQueue of Kueue that gives the quota: its label on the pods, or on the TrainJob where the profile has nodes.
    null starts without asking."""
    priority_class: Queue | None = None
    """Kueue's WorkloadPriorityClass: who comes first in the queue, and who is preempted. Not a pod's own
    priorityClassName, for which neither Kubeflow Pipelines nor Trainer has a field."""
    quota_timeout_seconds: Annotated[int, Field(ge=1)] = 86400
    """How long a TrainJob may wait for quota, all its waits together; `timeout_seconds` stands meanwhile. For a pod,
    which Kueue holds back as long as it takes, it is the room that the window of its tries has for waiting."""
    shared_memory: Quantity | None = None
    """Size of /dev/shm, taken from the pod's memory; null leaves the container's 64 MB."""
    retries: Retries = Retries()
    timeout_seconds: Annotated[int, Field(ge=1)] = 3600
    """A pod that runs longer is stopped; whether it is tried again is the cluster's choice (see Retries)."""

    @model_validator(mode="after")
    def _consistent(self) -> "Pod":
        for name in ("cpu_request", "cpu_limit", "memory_request", "memory_limit", "shared_memory"):
            if (amount := getattr(self, name)) is not None and _amount(amount) <= 0:
                raise ValueError(f"{name} is {amount}: give more than nothing")
        for less, more in (
            ("cpu_request", "cpu_limit"),
            ("memory_request", "memory_limit"),
            ("shared_memory", "memory_limit"),
        ):
            small, large = getattr(self, less), getattr(self, more)
            if small is not None and large is not None and _amount(small) > _amount(large):
                raise ValueError(f"{less} is {small}, more than {more}, {large}: lower it, or raise {more}")
        if self.priority_class and not self.queue:
            raise ValueError(
                f"priority_class is {self.priority_class} but queue is null: the class is Kueue's, for its queues; "
                "name a queue, or leave priority_class out"
            )
        return self

    @property
    def queue_labels(self) -> dict[str, str]:
        """By which Kueue knows a pod or a TrainJob; empty without a queue."""
        given = {QUEUE_LABEL: self.queue, _PRIORITY_LABEL: self.priority_class}
        return {label: value for label, value in given.items() if value}

    @property
    def node_affinity(self) -> tuple[list[dict[str, Any]], list[tuple[int, dict[str, Any]]]]:
        """Expressions that must hold together, and those that had better hold, with their weights."""
        required = [rule.expression for rule in self.affinity if rule.weight is None]
        return required, [(rule.weight, rule.expression) for rule in self.affinity if rule.weight is not None]


class Volume(_Part):
    """A persistent volume claim that exists."""

    claim: Name
    mount: Place
    """Place in the container."""
    sub_path: Folder | None = None
    """Folder of the volume that is mounted instead of all of it. It must be there: Kubernetes would make it root's."""


class Secret(_Part):
    """Keys of a Kubernetes secret as environment variables; their values never leave the cluster."""

    name: Name
    env: dict[Key, Variable]
    """Variable by key of the secret."""
    steps: list[Task] = ["prepare", "teacher", "register"]
    """Tasks that need it; no other sees it, but for `settings`, which has MLflow's where `register` has."""
    optional: bool = False
    """Whether tasks start without it."""


class Security(_Part):
    """Who runs in the containers: never root."""

    run_as_user: Annotated[int, Field(ge=1)] | None = 10001
    """User; null leaves it to the cluster, as OpenShift wants."""
    run_as_group: Annotated[int, Field(ge=0)] | None = 0
    """Group; the image's files belong to group 0."""


class Nodes(_Part):
    """Trainings on several nodes, as a TrainJob of Kubeflow Trainer."""

    count: Annotated[int, Field(ge=2, le=64)]
    """Nodes; each gives `training.accelerator`."""
    runtime: Name = "torch-distributed"
    """ClusterTrainingRuntime. The job itself is in the pipeline's own namespace, where the claims are."""
    grace_seconds: Annotated[int, Field(ge=30, le=3600)] = 120
    """Between SIGTERM and the end of a pod that must go: for the step at work and its checkpoint. Nodes that vanish
    sooner (a spot instance's warning) give less."""


class Profile(_Part):
    """What a cluster gives the pipeline's tasks."""

    light: Pod = Pod()
    """Every task that does not train."""
    training: Pod = Pod()
    """teacher, baseline, kd and distill."""
    nodes: Nodes | None = None
    """null trains in the task's own pod."""
    work: Volume | None = None
    """For checkpoints, in the tasks that train; in prepare, evaluate and register too, since `data.root`,
    `decide.unknown` and what was measured elsewhere may be in it. null: a task that is started again trains from the
    beginning."""
    volumes: list[Volume] = []
    """More of them, in every task: images for `data.root`, say."""
    secrets: list[Secret] = []
    """By name."""
    env: dict[Variable, str] = {}
    """Environment variables that are no secret, in every task."""
    labels: dict[FreeLabel, LabelValue] = {}
    """Of every task's pod, of TrainJobs and their pods."""
    annotations: dict[FreeLabel, Text] = {}
    """The same."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    image_pull_secrets: list[Name] = []
    security: Security = Security()

    @model_validator(mode="after")
    def _consistent(self) -> "Profile":
        if self.nodes is not None and self.work is None:
            raise ValueError("nodes is given but work is null: the nodes meet in that volume, so name a claim")
        for name in self.env:
            if re.search("PASSWORD|SECRET|TOKEN|CREDENTIAL|ACCESS_KEY|API_KEY", name.upper()):
                raise ValueError(f"env names {name}, which looks like a secret: name a Kubernetes secret in secrets")
        given = [*self.env, *(variable for secret in self.secrets for variable in secret.env.values())]
        for name in given:
            if given.count(name) > 1:
                raise ValueError(f"the variable {name} is given twice, in secrets or in env: name it once")
        mounts = [volume.mount for volume in [*([self.work] if self.work else []), *self.volumes]]
        for mount in mounts:
            if mounts.count(mount) > 1:
                raise ValueError(f"two volumes are mounted at {mount}: give each its own place")
        return self

    def pod(self, step: str) -> Pod:
        """What a step's task gets; with `nodes` the training itself runs elsewhere, and its task only waits."""
        return self.training if step in TRAINING and self.nodes is None else self.light

    def secrets_of(self, step: str) -> list[Secret]:
        """What a step's task is given; `settings` gets MLflow's as `register` does, since it asks the server first."""
        asks = step == "settings"
        return [
            secret
            for secret in self.secrets
            if step in secret.steps
            or (asks and "register" in secret.steps and any(v.startswith("MLFLOW_") for v in secret.env.values()))
        ]

    def sets(self, variable: str) -> bool:
        """Whether an environment variable is given, as it is or from a secret."""
        return variable in self.env or any(variable in secret.env.values() for secret in self.secrets)

    def threads(self, pod: Pod, processes: int = 1) -> dict[str, str]:
        """OMP_NUM_THREADS for each of a pod's processes; nothing where the profile says otherwise.

        A request is no limit that a process could see: without a word from us each would count on all the node's cores.
        """
        if self.sets("OMP_NUM_THREADS"):
            return {}
        return {"OMP_NUM_THREADS": str(max(1, math.ceil(_amount(pod.cpu_request)) // processes))}

    @property
    def devices(self) -> int:
        """Accelerators of one training pod, at least 1."""
        return self.training.accelerator.count if self.training.accelerator else 1

    @property
    def all_devices(self) -> int:
        """Those of one training, on all its nodes."""
        return self.devices * (self.nodes.count if self.nodes else 1)


def names() -> list[str]:
    """The profiles that come with the package."""
    return sorted(file.stem for file in SHIPPED.glob("*.yaml"))


def load_profile(which: str) -> Profile:
    """A profile by its name, or from a file.

    Args:
        which: one of `names()`, or the path of a YAML file.
    Raises:
        GkdError: there is no such profile, or something in it is wrong.
    """
    path = Path(which)
    if which in names():
        path = SHIPPED / f"{which}.yaml"
    elif not which or (path.suffix not in (".yaml", ".yml") and not path.exists()):
        raise GkdError(unknown("--profile", which, names()) + ", or a YAML file")
    content = read_sections(path, holds="a profile (light, training, work, …)", option="--profile")
    try:
        return Profile.model_validate(content)
    except ValidationError as error:
        wrong = mistakes(error, Profile, what="profile key")
        raise GkdError("\n".join(f"{which}: {mistake.sentence}" for mistake in wrong)) from None
