"""A cluster to rehearse its checks against: a Kubernetes API over real HTTP beside a Kubeflow Pipelines server.

Kubernetes keeps objects, selects them by labels, and runs a pod's command as a process of this machine, with a folder
as its volume and a small server as the served model. A run's pods and TrainJobs are told from the state of the run.
What can be wrong with a cluster are attributes, all right unless a test says otherwise.
"""

import json
import re
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.pipelines.json_server import JsonServer, KubernetesApi
from tests.pipelines.kfp_server import KfpServer, moment

RUN = "pipeline/runid"
EPOCHS = "teacher  epoch 1/200  loss 2.1\nteacher  epoch 2/200  loss 1.9  90 img/s\n"


class Kubeflow(KfpServer):
    """With a cache, schedules that start a run at once, and runs that work until the test has seen what it wants.

    Attributes:
        caches: whether what was run before is taken from the cache.
        starts: whether schedules start runs.
        seen: runs that need not be held any longer.
        says: what the step prints that does not find its pictures.
        deleted: runs and experiments that were.
    """

    def __init__(self) -> None:
        super().__init__(tasks=("prepare", "teacher", "kd", "distill"), prints={})
        self.prints["teacher"] = f"gkd: begins: teacher\n{EPOCHS}gkd: ends: teacher\n"
        self.caches, self.starts = True, True
        self.seen: set[str] = set()
        self.says = "gkd: /gkd/work/nothing-is-here is no folder"
        self.deleted: list[str] = []

    def works(self, run: dict[str, Any]) -> bool:
        """Whether a run is held at work."""
        held = run["display_name"].rpartition(" ")[2] in ("resume", "stop", "train-job")
        return held and run["run_id"] not in self.terminated | self.seen

    def post_runs(self, *, query: Any, content: dict[str, Any]) -> dict[str, Any]:
        run = super().post_runs(query=query, content=content)
        spec, given = content["pipeline_spec"], content.get("runtime_config", {})
        tasks = [
            t for c in spec["pipeline_spec"]["components"].values() for t in c.get("dag", {}).get("tasks", {}).values()
        ]
        key = json.dumps([spec, given], sort_keys=True)
        caching = any(task.get("cachingOptions", {}).get("enableCache") for task in tasks)
        before = [other for other in self.runs.values() if other.get("key") == key and other is not run]
        run |= {"key": key, "remembered": bool(before) and caching and self.caches}
        run["wrong"] = "nothing-is-here" in key
        return run

    def _advanced(self, run: dict[str, Any]) -> dict[str, Any]:
        if self.works(run) and self.looks.get(run["run_id"], 0) >= 3:
            return run
        fail, self.fail = self.fail, "prepare" if run.get("wrong") else self.fail
        try:
            run = super()._advanced(run)
        finally:
            self.fail = fail
        for detail in run["run_details"]["task_details"] if run.get("remembered") else []:
            if detail["display_name"] == "executor":
                detail |= {"state": "SKIPPED", "child_tasks": []}
        return run

    def _log(self, run_id: str, name: str) -> tuple[int, Any]:
        run = self.runs[run_id]
        if run.get("remembered"):
            return 500, {"error_message": f"Failed to read logs for run {run_id}: pod {name} not found"}
        if run.get("wrong"):
            ended = "F1128 09:00:09.000000       1 main.go:70] failed to execute component: exit status 2"
            return 200, f"gkd: begins: prepare\n{self.says}\ngkd: ends: prepare\n{ended}\n"
        return super()._log(run_id, name)

    def post_schedules(self, *, query: Any, content: dict[str, Any]) -> dict[str, Any]:
        assert content["trigger"]["cron_schedule"]["cron"] == "0 * * * * *"
        made = content | {"recurring_run_id": f"s-{len(self.schedules)}", "created_at": moment(0), "status": "ENABLED"}
        self.schedules[made["recurring_run_id"]] = made
        if self.starts:
            run = self.post_runs(query={}, content={k: v for k, v in content.items() if k != "trigger"})
            run["recurring_run_id"] = made["recurring_run_id"]
        return made

    def delete_run(self, run_id: str, *, query: Any, content: Any) -> dict[str, Any]:
        self.deleted.append(run_id)
        del self.runs[run_id]
        return {}

    def delete_experiment(self, identifier: str, *, query: Any, content: Any) -> dict[str, Any]:
        self.deleted.append(identifier)
        del self.experiments[identifier]
        return {}


class Model(JsonServer):
    """What is served; `refuses`: so many requests from now on."""

    refuses = 0

    def answer(self, verb: str, target: str, headers: Any, body: bytes) -> tuple[int, Any]:
        if self.refuses:
            self.refuses -= 1
            return 503, {"error": "the server is leaving"}
        assert verb == "POST"
        assert json.loads(body)["inputs"][0]["shape"] == [1, 8, 8, 1]
        return 200, {"outputs": [{"name": "logits", "shape": [1, 10], "data": [0.0] * 10}]}


class WholeCluster(KubernetesApi):
    """Kubernetes.

    Attributes:
        kfp: whose runs' pods are here.
        objects: by plural and name.
        asked: every path; made: every object, as it was sent.
        forbidden, forbidden_to_tasks: (verb, resource) by which a review says no; deletes are refused besides.
        impersonates: whether we may ask in others' names.
        trainer: whether TrainJobs are known; `nodes` is what they ask for.
        writable: whether the volume can be written.
        checkpoints: a training that is started again finds its own.
        retries: a deleted pod is tried again.
        lingers: pods of a run that was stopped go on.
        hangs: end of the name of a pod that never ends.
        ready: whether deployments come up.
        model: what is served; `refuses_in_roll` requests are refused while its pods are replaced.
    """

    def __init__(self, kfp: Kubeflow, folder: Path) -> None:
        self.kfp, self.folder = kfp, folder
        self.objects: dict[tuple[str, str], dict[str, Any]] = {}
        self.asked: list[str] = []
        self.made: list[dict[str, Any]] = []
        self.forbidden: set[tuple[str, str]] = set()
        self.forbidden_to_tasks: set[tuple[str, str]] = set()
        self.impersonates = self.trainer = self.writable = self.checkpoints = self.retries = self.ready = True
        self.lingers, self.hangs = False, "none"
        self.nodes, self.refuses_in_roll = 2, 0
        self.gone: set[str] = set()  # pods of runs that were deleted
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.model = Model()
        self.claim("gkd-work")
        super().__init__()

    def __enter__(self) -> "WholeCluster":
        self.model.__enter__()
        return super().__enter__()

    def __exit__(self, *_: object) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()
        self.model.__exit__()
        super().__exit__()

    def claim(self, name: str, phase: str = "Bound", mode: str = "ReadWriteMany") -> None:
        """A volume claim as it is there."""
        found = {"metadata": {"name": name}, "spec": {"accessModes": [mode]}, "status": {"phase": phase}}
        self.objects["persistentvolumeclaims", name] = found

    def answer(self, verb: str, target: str, headers: Any, body: bytes) -> tuple[int, Any]:
        parts = urlsplit(target)
        self.asked.append(parts.path)
        if not self.knows(headers):
            return 401, {"message": "Unauthorized"}
        content = json.loads(body) if body else None
        if parts.path == "/version":
            return 200, {"gitVersion": "v1.36.0"}
        if parts.path.endswith("/selfsubjectaccessreviews"):
            return self._review(content["spec"]["resourceAttributes"], headers.get("Impersonate-User"))
        if "trainer.kubeflow.org" in parts.path and not self.trainer:
            return 404, {"message": "the server could not find the requested resource"}
        found = re.fullmatch(r"/apis?/[\w./]+/namespaces/team/(\w+)(?:/([\w.-]+))?(/log)?", parts.path)
        if not found:
            return (200, {"resources": []}) if parts.path.endswith("/v1alpha1") else (404, {"message": parts.path})
        plural, name, log = found.groups()
        if verb == "PATCH" and headers["Content-Type"] != "application/strategic-merge-patch+json":
            return 415, {"message": "the body of the request was in an unknown format"}
        self._refresh()
        if log:
            return self._log(name)
        if (verb.lower(), plural) in self.forbidden and verb != "GET":
            return 403, {"message": f'{plural} is forbidden: User "me" cannot {verb.lower()}'}
        return getattr(self, f"_{verb.lower()}")(plural, name, content, parse_qs(parts.query))

    def _review(self, asked: dict[str, str], who: str | None) -> tuple[int, Any]:
        if who and not self.impersonates:
            return 403, {"message": "cannot impersonate resource serviceaccounts"}
        assert who in (None, "system:serviceaccount:team:pipeline-runner")
        assert asked["namespace"] == ("" if asked["resource"].startswith("cluster") else "team")
        resource = "/".join(filter(None, [asked["resource"], asked.get("subresource")]))
        forbidden = self.forbidden_to_tasks if who else self.forbidden
        return 201, {"status": {"allowed": (asked["verb"], resource) not in forbidden}}

    def _get(self, plural: str, name: str | None, _: Any, query: dict[str, list[str]]) -> tuple[int, Any]:
        if name:
            found = self.objects.get((plural, name))
            return (200, found) if found else (404, {"message": f'{plural} "{name}" not found'})
        wanted = dict(pair.split("=") for pair in query["labelSelector"][0].split(","))
        items = [
            one
            for (kind, _), one in self.objects.items()
            if kind == plural and wanted.items() <= one["metadata"].get("labels", {}).items()
        ]
        if plural == "trainjobs":
            self.kfp.seen |= {one["metadata"]["labels"][RUN] for one in items if one["holds"]}
        return 200, {"items": items}

    def _post(self, plural: str, _: Any, content: dict[str, Any], __: Any) -> tuple[int, Any]:
        name = content["metadata"]["name"]
        assert (plural, name) not in self.objects
        self.made.append(deepcopy(content))
        content["metadata"] |= {"generation": 1}
        self.objects[plural, name] = content
        if plural == "pods":
            self._start(name, content["spec"]["containers"][0]["command"])
        if plural == "deployments":
            content["spec"]["replicas"] = 2
            self._roll_out(content)
        return 201, content

    def _patch(self, plural: str, name: str, content: dict[str, Any], _: Any) -> tuple[int, Any]:
        found = self.objects[plural, name]
        assert "kubectl.kubernetes.io/restartedAt" in json.dumps(content)
        found["metadata"]["generation"] += 1
        self.model.refuses = self.refuses_in_roll
        self._roll_out(found)
        return 200, found

    def _delete(self, plural: str, name: str, _: Any, __: Any) -> tuple[int, Any]:
        if self.objects.pop((plural, name), None) is None:
            return 404, {"message": f'{plural} "{name}" not found'}
        self.gone.add(name)
        if name in self.processes:
            self.processes[name].kill()
            self.processes.pop(name).wait()
        if plural == "deployments":
            for key in [key for key in self.objects if key[0] == "pods" and key[1].startswith(f"{name}-r")]:
                del self.objects[key]
        return 200, {"status": "Success"}

    def _roll_out(self, deployment: dict[str, Any]) -> None:
        """New pods in the old ones' place, at once."""
        name, generation = deployment["metadata"]["name"], deployment["metadata"]["generation"]
        for key in [key for key in self.objects if key[0] == "pods" and key[1].startswith(f"{name}-r")]:
            del self.objects[key]
        for number in range(2):
            pod = f"{name}-r{generation}-{number}"
            labels = deepcopy(deployment["spec"]["template"]["metadata"]["labels"])
            self.objects["pods", pod] = {"metadata": {"name": pod, "labels": labels}, "status": {"phase": "Running"}}
        there = 2 if self.ready else 0
        counts = {"replicas": 2, "updatedReplicas": 2, "availableReplicas": there}
        deployment["status"] = {"observedGeneration": generation} | counts

    # --- pods that run ------------------------------------------------------------------------------------------

    def _start(self, name: str, command: list[str]) -> None:
        volume = self.folder / "volume"
        if not self.writable:
            volume = self.folder / "file"
            volume.touch()
        here = [re.sub(r"^/volume", str(volume), word) for word in command[3:]]
        here = [re.sub(r"^[\w-]+\.team\.svc:80$", self.model.host.removeprefix("http://"), word) for word in here]
        program = "import time; time.sleep(86400)" if name.endswith(self.hangs) else command[2]
        with (self.folder / f"{name}.log").open("w") as log:
            self.processes[name] = subprocess.Popen([sys.executable, "-c", program, *here], stdout=log, stderr=log)

    def _log(self, name: str) -> tuple[int, Any]:
        if ("pods", name) not in self.objects:
            return 404, {"message": f'pods "{name}" not found'}
        if name in self.processes:
            return 200, (self.folder / f"{name}.log").read_text()
        return 200, self.objects["pods", name].get("log", "")

    def _refresh(self) -> None:
        """Pods and TrainJobs as processes and runs are now."""
        for name, process in self.processes.items():
            phase = {None: "Running", 0: "Succeeded"}.get(process.poll(), "Failed")
            self.objects["pods", name]["status"] = {"phase": phase}
        for run in self.kfp.runs.values():
            kind, test = run["display_name"].rpartition(" ")[2], run["display_name"].partition(" ")[0][-8:]
            labels = {"gkd-cluster-test": test, RUN: run["run_id"]}
            nodes = '"nodes":{' in json.dumps(run["pipeline_spec"]).replace("\\", "")
            if kind in ("resume", "stop") and not nodes:
                self._pods_of(run, labels)
            if kind in ("train-job", "stop") and nodes:
                self._job_of(run, labels, holds=kind == "train-job")

    def _pods_of(self, run: dict[str, Any], labels: dict[str, str]) -> None:
        works = self.kfp.works(run)
        first, second = f"{run['run_id']}-1", f"{run['run_id']}-2"
        if first in self.gone and not self.retries:
            self.kfp.fail = "teacher"
            self.kfp.seen.add(run["run_id"])
            return
        goes_on = "teacher  goes on in epoch 3 after step 7\n" if self.checkpoints else "teacher  epoch 1/200  loss 2\n"
        for name, said in ((first, EPOCHS), (second, goes_on)):
            if name in self.gone or (name == second and first not in self.gone):
                continue
            found = {"metadata": {"name": name, "labels": labels}, "log": f"gkd: begins: teacher\n{said}"}
            found["status"] = {"phase": "Running" if works or self.lingers else "Failed"}
            self.objects["pods", name] = found

    def _job_of(self, run: dict[str, Any], labels: dict[str, str], *, holds: bool) -> None:
        name = f"gkd-teacher-{run['run_id'][:8]}"
        if self.kfp.works(run) or self.lingers:
            spec = {"trainer": {"numNodes": self.nodes}}
            self.objects["trainjobs", name] = {
                "metadata": {"name": name, "labels": labels},
                "spec": spec,
                "holds": holds,
            }
        else:
            self.objects.pop(("trainjobs", name), None)
