"""A small Kubernetes API over real HTTP, with as much of Kubeflow Trainer v2 as a TrainJob's life takes.

A TrainJob is checked by the schema that the published package of Trainer's API carries (`kubeflow_trainer_api`, made
from its OpenAPI description), made strict: no field that it does not know, no null. Besides, by rules of the custom
resource definition that a schema of types cannot say. Pods either tell what they are told to, or are real processes of
this machine with the PET_* variables that Trainer's controller sets.
"""

import json
import os
import re
import socket
import subprocess
import threading
from copy import deepcopy
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jsonschema
from kubeflow_trainer_api import models

from tests.pipelines.json_server import KubernetesApi

GROUP = "/apis/trainer.kubeflow.org/v1alpha1"
QUANTITY = r"^[+-]?(\d+|\d+\.\d*|\.\d+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?\d+)?$"
RUNTIME = {
    "apiVersion": "trainer.kubeflow.org/v1alpha1",
    "kind": "ClusterTrainingRuntime",
    "metadata": {"name": "torch-distributed", "labels": {"trainer.kubeflow.org/framework": "torch"}},
    "spec": {
        "mlPolicy": {"numNodes": 1, "torch": {}},
        "template": {
            "spec": {
                "replicatedJobs": [
                    {
                        "name": "node",
                        "template": {
                            "metadata": {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}},
                            "spec": {"template": {"spec": {"containers": [{"name": "node", "image": "torch"}]}}},
                        },
                    }
                ]
            }
        },
    },
}


def strict_schema() -> dict[str, Any]:
    """JSON Schema of a TrainJob as a strict API server has it."""
    schema = models.TrainerV1alpha1TrainJob.model_json_schema(by_alias=True)
    schema["$defs"]["IoK8sApimachineryPkgApiResourceQuantity"] = {"type": ["string", "number"], "pattern": QUANTITY}
    for definition in [schema, *schema["$defs"].values()]:
        if "properties" in definition:
            definition["additionalProperties"] = False
        for content in definition.get("properties", {}).values():
            content["anyOf"] = [kind for kind in content.get("anyOf", [{}]) if kind != {"type": "null"}]
    return schema


SCHEMA = strict_schema()


def refusal_of(job: dict[str, Any]) -> str | None:
    """Why an API server would not take a TrainJob; None when it would."""
    error = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(SCHEMA).iter_errors(job))
    if error:
        return f"{'.'.join(map(str, error.absolute_path))}: {error.message}"
    spec = job["spec"]
    for patch in spec.get("runtimePatches", []):
        for replicated in patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]:
            pod = replicated["template"]["spec"]["template"]["spec"]
            for container in pod.get("containers", []):
                if container["name"] == "node" and container.get("env"):
                    return "env of the container node can only be set by spec.trainer"
    names = [variable["name"] for variable in spec["trainer"].get("env", [])]
    if len(set(names)) < len(names):
        return "spec.trainer.env: two of one name"
    if reserved := [name for name in names if name.startswith("PET_")]:
        return f"spec.trainer.env: {reserved} are Trainer's own"
    return None


class KubernetesServer(KubernetesApi):
    """A cluster to use as a context manager.

    Attributes:
        ends: what becomes of a job: "Complete", "Failed", None (it goes on), or "processes": its command really runs.
        logs: what each node prints, by its number, unless it really runs.
        jobs: by name, as they are now; created: every manifest taken; deleted: names.
        out_of_memory: a node that failed was killed by the kernel.
        run_ids: the run that a pod of a pipeline's task belongs to.
        lingers: deleted jobs do not go away, since a pod of theirs cannot end.
        kueue: jobs with a queue are suspended when they are created, as Kueue's webhook does it; what its Workload says
            then. None: no Kueue.
        kueue_version: of its API.
        broken: so many requests from now on are answered with 500.
    """

    def __init__(self, ends: str | None = "Complete", logs: dict[int, list[str]] | None = None) -> None:
        self.ends, self.logs = ends, logs or {}
        self.runtimes = {"torch-distributed": RUNTIME}
        self.jobs: dict[str, dict[str, Any]] = {}
        self.created: list[dict[str, Any]] = []
        self.deleted: list[str] = []
        self.allowed = True  # to create jobs
        self.out_of_memory = False
        self.run_ids: dict[str, str] = {}
        self.broken = 0
        self.lingers = False
        self.kueue: str | None = None
        self.kueue_version = "v1beta2"
        self.looks = 0
        self.environment: dict[str, str] = {}
        self.processes: list[subprocess.Popen[str]] = []
        super().__init__()

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        super().__exit__()

    def answer(self, verb: str, target: str, headers: Any, body: bytes) -> tuple[int, Any]:
        status, reply = self._reply(verb, target, headers, json.loads(body) if body else None)
        if status != 200 and isinstance(reply, str):
            reply = {"kind": "Status", "status": "Failure", "message": reply, "code": status}
        return status, reply

    def _reply(self, verb: str, target: str, headers: Any, body: Any) -> tuple[int, Any]:
        parts = urlsplit(target)
        if self.broken:
            self.broken -= 1
            return 500, "etcd is away"
        if not self.knows(headers):
            return 401, "Unauthorized"
        match (verb, parts.path.removeprefix(GROUP).removeprefix("/namespaces/team").split("/")[1:]):
            case "GET", ["trainingruntimes", name]:
                return 404, f"trainingruntimes {name} not found"
            case "GET", ["clustertrainingruntimes", name]:
                found = self.runtimes.get(name)
                return (200, found) if found else (404, f"clustertrainingruntimes {name} not found")
            case "POST", ["trainjobs"]:
                return self.create(body)
            case "GET", ["trainjobs"]:
                label, _, value = parse_qs(parts.query)["labelSelector"][0].partition("=")
                found = [job for job in self.jobs.values() if job["metadata"]["labels"].get(label) == value]
                return 200, {"kind": "TrainJobList", "items": found}
            case "GET", ["trainjobs", name]:
                return (200, self._advanced(name)) if name in self.jobs else (404, f"trainjobs {name} not found")
            case "DELETE", ["trainjobs", name]:
                if name not in self.jobs:
                    return 404, f"trainjobs {name} not found"
                self.deleted.append(name)
                if self.lingers:
                    self.jobs[name]["metadata"]["deletionTimestamp"] = "2026-11-21T12:31:00Z"
                    return 200, self.jobs[name]
                del self.jobs[name]
                return 200, {"kind": "Status", "status": "Success"}
        if parts.path == f"/apis/kueue.x-k8s.io/{self.kueue_version}/namespaces/team/workloads":
            return self._workloads(parse_qs(parts.query)["labelSelector"][0])
        match (verb, parts.path.removeprefix("/api/v1/namespaces/team").split("/")[1:]):
            case "GET", ["pods"]:
                (name,) = re.findall(r"jobset-name=([\w-]+)", parse_qs(parts.query)["labelSelector"][0])
                return 200, {"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": self._pods(name)}
            case "GET", ["pods", pod]:
                if pod not in self.run_ids:
                    return 404, f'pods "{pod}" not found'
                labels = {"pipeline/runid": self.run_ids[pod]}
                return 200, {"kind": "Pod", "apiVersion": "v1", "metadata": {"name": pod, "labels": labels}}
            case "GET", ["pods", pod, "log"]:
                return 200, "".join(f"{line}\n" for line in self.logs.get(int(pod.rpartition("-")[2]), []))
            case "GET", ["events"]:
                event = {
                    "reason": "FailedScheduling",
                    "message": "0/3 nodes are available:\n3 Insufficient nvidia.com/gpu",
                }
                first = {
                    "metadata": {"name": "e", "namespace": "team"},
                    "involvedObject": {"kind": "TrainJob", "name": next(iter(self.jobs), "")},
                    "firstTimestamp": "2026-11-21T12:00:00Z",
                }
                return 200, {"kind": "EventList", "apiVersion": "v1", "metadata": {}, "items": [first | event]}
        return 404, f"{verb} {parts.path} not found"

    def create(self, job: dict[str, Any]) -> tuple[int, Any]:
        """Take a TrainJob, as a POST does."""
        if not self.allowed:
            return 403, 'trainjobs.trainer.kubeflow.org is forbidden: User "pipeline-runner" cannot create resource'
        if problem := refusal_of(job):
            return 422, f"TrainJob is invalid: {problem}"
        name = job["metadata"]["name"]
        if name in self.jobs:
            return 409, f"trainjobs {name} already exists"
        self.created.append(job)
        self.looks = 0
        made = deepcopy(job)
        uid = f"00000000-0000-4000-8000-{len(self.created):012}"
        made["metadata"] |= {"namespace": "team", "uid": uid, "creationTimestamp": "2026-11-21T12:00:00Z"}
        made["spec"]["suspend"] = False  # defaults that the server fills in
        made["spec"]["managedBy"] = "trainer.kubeflow.org/trainjob-controller"
        self.jobs[name] = made
        if self.kueue is not None and "kueue.x-k8s.io/queue-name" in made["metadata"]["labels"]:
            self.suspend(name)
        elif self.ends == "processes":
            self._start(job)
        return 201, made

    def suspend(self, name: str) -> None:
        """As Kueue does it at creation and at a preemption: Trainer's condition follows, the pods go."""
        self.jobs[name]["spec"]["suspend"] = True
        self._condition(name, "Suspended", "True", "Suspended", "TrainJob is suspended")

    def resume(self, name: str) -> None:
        """As Kueue does it when there is quota."""
        self.jobs[name]["spec"]["suspend"] = False
        self._condition(name, "Suspended", "False", "Resumed", "TrainJob is resumed")

    def _workloads(self, selector: str) -> tuple[int, Any]:
        """What Kueue made for the job, and why it does not run."""
        label, _, uid = selector.partition("=")
        assert label == "kueue.x-k8s.io/job-uid"
        held = [job for job in self.jobs.values() if job["metadata"]["uid"] == uid and job["spec"]["suspend"]]
        if self.kueue is None:
            return 404, "the server could not find the requested resource"
        quota = {"type": "QuotaReserved", "status": "False", "reason": "Pending", "message": self.kueue}
        items = [{"kind": "Workload", "metadata": {"name": "w"}, "status": {"conditions": [quota]}} for _ in held]
        return 200, {"kind": "WorkloadList", "items": items}

    def _start(self, job: dict[str, Any]) -> None:
        """Each node as a process, with what Trainer's torch policy sets: PET_*."""
        trainer = job["spec"]["trainer"]
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = str(listener.getsockname()[1])
        for rank in range(trainer["numNodes"]):
            given = {variable["name"]: variable["value"] for variable in trainer["env"] if "value" in variable}
            given |= {
                "PET_NNODES": str(trainer["numNodes"]),
                "PET_NPROC_PER_NODE": str(trainer["numProcPerNode"]),
                "PET_NODE_RANK": str(rank),
                "PET_MASTER_ADDR": "127.0.0.1",
                "PET_MASTER_PORT": port,
            }
            self.processes.append(
                subprocess.Popen(
                    trainer["command"], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                    env=os.environ | self.environment | given,
                )
            )  # fmt: skip
            threading.Thread(target=self._read, args=(rank, self.processes[-1]), daemon=True).start()

    def _read(self, rank: int, process: subprocess.Popen[str]) -> None:
        lines = self.logs.setdefault(rank, [])
        lines.extend(line.rstrip("\n") for line in process.stdout)

    def _ended(self) -> str | None:
        if self.ends == "processes":
            codes = [process.poll() for process in self.processes]
            return "Failed" if any(codes) else None if None in codes else "Complete"
        self.looks += 1
        return self.ends if self.looks > 2 else None

    def _advanced(self, name: str) -> dict[str, Any]:
        job = self.jobs[name]
        done = any(c["type"] in ("Complete", "Failed") for c in job.get("status", {}).get("conditions", []))
        if not done and not job["spec"]["suspend"] and (end := self._ended()):
            self.end(name, end)
        return job

    def end(self, name: str, end: str = "Complete") -> None:
        """Let a job be over."""
        reasons = {"Complete": ("JobsCompleted", "jobset completed successfully")}
        reason, message = reasons.get(end, ("FailedJobs", "jobset failed due to one or more job failures"))
        self._condition(name, end, "True", reason, message)

    def _condition(self, name: str, kind: str, status: str, reason: str, message: str) -> None:
        conditions = self.jobs[name].setdefault("status", {}).setdefault("conditions", [])
        conditions[:] = [condition for condition in conditions if condition["type"] != kind]
        moment = {"lastTransitionTime": "2026-11-21T12:30:00Z"}
        conditions.append({"type": kind, "status": status, "reason": reason, "message": message} | moment)

    def _statuses(self) -> list[dict[str, Any]]:
        ended = {"exitCode": 137, "reason": "OOMKilled"} if self.out_of_memory else {"exitCode": 2, "reason": "Error"}
        facts = {"name": "node", "image": "gkd", "imageID": "", "ready": False, "restartCount": 0}
        return [facts | {"state": {"terminated": ended}}]

    def _pods(self, name: str) -> list[dict[str, Any]]:
        if name not in self.jobs or self.jobs[name]["spec"]["suspend"]:
            return []
        failed = any(c["type"] == "Failed" for c in self.jobs[name].get("status", {}).get("conditions", []))
        pods = []
        for rank in range(self.jobs[name]["spec"]["trainer"]["numNodes"]):
            labels = {
                "jobset.sigs.k8s.io/jobset-name": name,
                "jobset.sigs.k8s.io/replicatedjob-name": "node",
                "batch.kubernetes.io/job-completion-index": str(rank),
            }
            phase = "Failed" if failed and self.logs.get(rank) else "Running"
            pods.append(
                {
                    "metadata": {"name": f"{name}-node-0-{rank}", "namespace": "team", "labels": labels},
                    "spec": {"containers": [{"name": "node", "image": "gkd"}]},
                    "status": {"phase": phase, "containerStatuses": self._statuses() if phase == "Failed" else []},
                }
            )
        return pods
