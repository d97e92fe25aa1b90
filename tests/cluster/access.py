"""What must be there before anything runs: our rights, the volume, the rights of the tasks."""

import posixpath

from tests.cluster.api import LABEL, ApiError
from tests.cluster.ground import Failed, Ground, NotRun

CORE, APPS, TRAINER = "", "apps", "trainer.kubeflow.org"
MINE = (
    *((verb, CORE, "pods") for verb in ("create", "get", "list", "delete")),
    ("get", CORE, "pods/log"),
    ("get", CORE, "persistentvolumeclaims"),
    *((verb, CORE, "services") for verb in ("create", "list", "delete")),
    *((verb, APPS, "deployments") for verb in ("create", "get", "list", "patch", "delete")),
    *((verb, "autoscaling", "horizontalpodautoscalers") for verb in ("create", "list", "delete")),
    *((verb, "policy", "poddisruptionbudgets") for verb in ("create", "list", "delete")),
)
MINE_OF_TRAINER = tuple((verb, TRAINER, "trainjobs") for verb in ("list", "delete"))
# The role of docs/kubernetes.md for the service account of the tasks.
THEIRS = (
    *((verb, TRAINER, "trainjobs") for verb in ("create", "delete", "get", "list")),
    ("get", TRAINER, "trainingruntimes"),
    ("get", TRAINER, "clustertrainingruntimes"),
    *((verb, CORE, resource) for resource in ("pods", "pods/log", "events") for verb in ("get", "list")),
)
OF_KUEUE = ("list", "kueue.x-k8s.io", "workloads")


def rights(ground: Ground) -> str:
    """Whoever runs this may make and remove what it makes."""
    asked = [*MINE, *(MINE_OF_TRAINER if ground.api.has_trainer() else ())]
    missing = [right for right in asked if not ground.api.may(*right)]
    if missing:
        raise Failed(f"KUBECONFIG's user may not {_listed(missing)} in namespace {ground.api.namespace}")
    return f"{len(asked)} rights in namespace {ground.api.namespace}"


def volume(ground: Ground) -> str:
    """The profile's work volume: it is there, bound, and a pod like the tasks' writes into it."""
    work = ground.profile().work
    if work is None:
        raise NotRun("the profile has no work volume")
    if ground.api.get("PersistentVolumeClaim", work.claim) is None:
        raise Failed(f"claim {work.claim} is not in namespace {ground.api.namespace}: docs/kubernetes.md makes it")
    place = posixpath.join(work.sub_path or "", f"{LABEL}-{ground.api.test}")
    ground.facts["claim"] = work.claim  # from now on there may be something to remove in it
    ground.facts["to_remove"] = place
    said = ground.in_pod("volume", "make", f"/volume/{place}", volume=work.claim)
    if said["error"]:
        raise Failed(
            f"user {said['user']} cannot write ({said['error']}): open the volume as docs/kubernetes.md says ('A fresh "
            "volume may belong to root')"
        )
    found = ground.api.get("PersistentVolumeClaim", work.claim) or {}
    if (phase := found.get("status", {}).get("phase")) != "Bound":
        raise Failed(f"claim {work.claim} is {phase}, not Bound")
    modes = found["spec"].get("accessModes", [])
    if ground.profile(nodes=True).nodes and "ReadWriteMany" not in modes:
        raise Failed(f"claim {work.claim} is {', '.join(modes)}: several nodes need ReadWriteMany")
    ground.facts["place"] = place  # the runs' own folder of it
    return f"claim {work.claim}, {', '.join(modes)}; user {said['user']} writes"


def roles(ground: Ground) -> str:
    """The service account of the tasks may do what docs/kubernetes.md's role gives it."""
    profile = ground.profile(nodes=True)
    if not profile.nodes:
        raise NotRun("no profile with nodes (GKD_CLUSTER_NODES_PROFILE): other tasks need no right")
    if not ground.api.has_trainer():
        raise NotRun("no Trainer")
    who = ground.service_account
    asked = [*THEIRS, *([OF_KUEUE] if profile.training.queue else [])]
    try:
        missing = [right for right in asked if not ground.api.may(*right, service_account=who)]
    except ApiError as error:
        if error.status != 403:
            raise
        raise NotRun(f"you may not ask in the name of service account {who} (verb impersonate)") from None
    if missing:
        raise Failed(f"service account {who} may not {_listed(missing)}: give it the role of docs/kubernetes.md")
    return f"service account {who} has {len(asked)} rights"


def _listed(rights: list[tuple[str, str, str]]) -> str:
    return ", ".join(f"{verb} {resource}{f'.{group}' if group else ''}" for verb, group, resource in rights)
