"""A small Kubeflow Pipelines server (v2beta1) over real HTTP: it keeps what it is asked, and answers as the API does.

The requests are built by the client that is generated from the published API, which knows its paths, parameters and
fields. So this server looks at what only we say: pipeline specs, names, arguments, clocks, filters, credentials. How it
tells of a run's nodes, logs and ends is how version 2.17.0 did on a real cluster.
"""

import email
import email.policy
import json
import re
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

from tests.pipelines.json_server import JsonServer

FIRST = datetime(2026, 11, 21, 12, tzinfo=UTC)


class Refused(Exception):
    """An error as the API words it."""

    def __init__(self, status: int, code: int, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


ROUTES = [
    ("healthz", "healthz"),
    ("experiments", "experiments"),
    ("experiments/([^/:]+)", "experiment"),
    ("runs", "runs"),
    ("runs/([^/:]+)", "run"),
    ("runs/([^/]+):terminate", "end"),
    ("recurringruns", "schedules"),
    ("recurringruns/([^/]+)", "schedule"),
    ("pipelines", "pipelines"),
    ("pipelines/upload", "pipelines"),
    ("pipelines/upload_version", "versions"),
    ("pipelines/([^/]+)/versions", "versions"),
]


class KfpServer(JsonServer):
    """The server.

    Attributes:
        token, cookie: what a request must carry; None asks for none.
        fail: a task that ends its run as FAILED; `fail_says` is what the server says of it: nothing until 2.17.
        tasks: what a run shows, one more at each look.
        prints: a task's log, by its name or its place in `tasks`; others have an ordinary one.
        terminated: runs that somebody ended.
        killed: runs whose workflow went with their schedule.
        logs_read: names of pods whose log was asked for.
        refused: what was refused with 400, in words.
        broken: this many requests from now on are answered with 503.
    """

    def __init__(
        self,
        *,
        token: str | None = None,
        cookie: str | None = None,
        multi_user: bool = False,
        fail: str | None = None,
        fail_says: str | None = None,
        tasks: tuple[str, ...] = ("prepare", "teacher", "distill"),
        prints: dict[str | int, str] | None = None,
    ) -> None:
        self.token, self.cookie, self.multi_user = token, cookie, multi_user
        self.fail, self.fail_says, self.tasks = fail, fail_says, tasks
        self.prints = prints or {}
        self.terminated: set[str] = set()
        self.logs_read: list[str] = []
        self.version = "2.17.0"
        self.killed: set[str] = set()
        self.allowed_namespaces = {"", "team"}
        self.broken = 0
        self.refused: list[str] = []
        self.experiments: dict[str, dict[str, Any]] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        self.schedules: dict[str, dict[str, Any]] = {}
        self.pipelines: dict[str, dict[str, Any]] = {}
        self.versions: dict[str, dict[str, Any]] = {}
        self.looks: dict[str, int] = {}
        super().__init__()

    # --- one request -------------------------------------------------------------------------------------------

    def answer(self, verb: str, target: str, headers: Any, body: bytes) -> tuple[int, Any]:
        try:
            if found := re.fullmatch("/apis/v1alpha1/runs/([^/]+)/nodes/([^/]+)/log", target):
                self._authenticated(headers)
                return self._log(*found.groups())
            if target == "/apis/v1beta1/healthz":
                return 200, {"commit_sha": "unknown", "tag_name": self.version, "multi_user": self.multi_user}
            return 200, self._reply(verb, target, headers, body)
        except Refused as error:
            if error.status == 400:
                self.refused.append(str(error))
            return error.status, {"error": str(error), "code": error.code, "message": str(error)}

    def _reply(self, verb: str, target: str, headers: Any, body: bytes) -> Any:
        parts = urlsplit(target)
        if self.broken:
            self.broken -= 1
            raise Refused(503, 14, "upstream connect error")
        self._authenticated(headers)
        routes = ((re.fullmatch(f"/apis/v2beta1/{pattern}", parts.path), method) for pattern, method in ROUTES)
        found, method = next(((match, method) for match, method in routes if match), (None, ""))
        if found is None:
            raise Refused(404, 5, "Not Found")
        content = None
        if body:
            content = self._uploaded(headers, body) if "/upload" in parts.path else json.loads(body)
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        return getattr(self, f"{verb.lower()}_{method}")(*map(unquote, found.groups()), query=query, content=content)

    def _authenticated(self, headers: Any) -> None:
        if self.token and headers.get("Authorization") != f"Bearer {self.token}":
            # As a careless proxy does it: the refused credential comes back in the message.
            raise Refused(401, 16, f"Unauthenticated: {headers.get('Authorization')} is not accepted")
        if self.cookie and headers.get("Cookie") != self.cookie:
            raise Refused(401, 16, f"no session in {headers.get('Cookie')}")

    def _uploaded(self, headers: Any, body: bytes) -> dict[str, Any]:
        head = f"Content-Type: {headers['Content-Type']}\n\n".encode()
        message = email.message_from_bytes(head + body, policy=email.policy.HTTP)
        (file,) = message.iter_parts()
        return self._valid(next(yaml.load_all(file.get_payload(decode=True), yaml.CSafeLoader)))

    @staticmethod
    def _valid(spec: Any) -> dict[str, Any]:
        """A pipeline spec as the backend reads it: by the published protobuf message."""
        if "pipeline_spec" in spec:
            json_format.ParseDict(spec["platform_spec"], pipeline_spec_pb2.PlatformSpec())
        plain = spec.get("pipeline_spec", spec)
        json_format.ParseDict(plain, pipeline_spec_pb2.PipelineSpec())
        return plain

    def _namespace(self, query: dict[str, str]) -> str:
        if "experiment_id" in query:  # which is in a namespace itself
            return self.experiments[query["experiment_id"]].get("namespace", "")
        namespace = query.get("namespace", "")
        if self.multi_user and not namespace:
            raise Refused(400, 3, "In multi-user mode, a namespace is required")
        if namespace not in self.allowed_namespaces:
            raise Refused(403, 7, f"User 'ada' is not authorized in namespace {namespace}")
        return namespace

    # --- health, experiments -----------------------------------------------------------------------------------

    def get_healthz(self, *, query: Any, content: Any) -> dict[str, Any]:
        return {"multi_user": self.multi_user}

    def get_experiments(self, *, query: dict[str, str], content: Any) -> dict[str, Any]:
        self._namespace(query)
        return page("experiments", self.experiments, query)

    def post_experiments(self, *, query: Any, content: dict[str, Any]) -> dict[str, Any]:
        self._namespace(content)
        made = content | {"experiment_id": str(uuid.uuid4()), "created_at": moment(len(self.experiments))}
        return self.experiments.setdefault(made["experiment_id"], made)

    # --- runs --------------------------------------------------------------------------------------------------

    def post_runs(self, *, query: Any, content: dict[str, Any]) -> dict[str, Any]:
        self._runnable(content)
        run = content | {
            "run_id": str(uuid.uuid4()),
            "state": "PENDING",
            "state_history": [],
            "created_at": moment(len(self.runs)),
            "finished_at": "1970-01-01T00:00:00Z",  # what the backend sends for a time that is not set
        }
        return self.runs.setdefault(run["run_id"], run)

    def _runnable(self, content: dict[str, Any]) -> None:
        if content.get("experiment_id") not in self.experiments:
            raise Refused(404, 5, f"experiment {content.get('experiment_id')} not found")
        if reference := content.get("pipeline_version_reference"):
            spec = self.versions[reference["pipeline_version_id"]]["pipeline_spec"]
        else:
            spec = self._valid(content["pipeline_spec"])
        known = spec["root"].get("inputDefinitions", {}).get("parameters", {})
        given = content.get("runtime_config", {}).get("parameters", {})
        if surplus := set(given) - set(known):
            raise Refused(400, 3, f"parameter {sorted(surplus)} is not required by pipeline")

    def get_run(self, run_id: str, *, query: Any, content: Any) -> dict[str, Any]:
        if run_id not in self.runs:
            raise Refused(404, 5, f"Failed to get run: ResourceNotFoundError: Run {run_id} not found.")
        return self._advanced(self.runs[run_id])

    def _advanced(self, run: dict[str, Any]) -> dict[str, Any]:
        """One look further: PENDING, RUNNING task by task, then the end."""
        stopped = run["run_id"] in self.terminated
        look = self.looks[run["run_id"]] = self.looks.get(run["run_id"], 0) + (not stopped)
        names = list(self.tasks)
        stop = names.index(self.fail) if self.fail else len(names) - 1
        begun = min(look - 1, stop + 1)
        over = look > stop + 2 or stopped
        run["state"] = "PENDING" if look == 1 else "RUNNING"
        workflow = self._workflow(run)
        groups = [node(name, "RUNNING", 0) for name in (workflow, "root", "exit-handler-1", "iteration-item")]
        details = [*groups, node("root-driver", "SUCCEEDED", 0)] if look > 1 else []
        for place, name in enumerate(names[:begun]):
            order = place + 1
            ended = order < begun or over
            failed = ended and (name == self.fail or (stopped and order == begun))
            pods = [pod(workflow, place, attempt) for attempt in (range(2) if failed else range(1))]
            details.append(node(f"{name}-driver", "SUCCEEDED", order))
            if failed:  # the first attempt, which is not the last word
                details.append(node("executor(0)", "FAILED", order))
            state = "FAILED" if failed else "SUCCEEDED" if ended else "RUNNING"
            details.append(
                node(name, state, order, error=self.fail_says if failed else None, pods=[f"{workflow}-{place}"])
            )
            details.append(node("executor", state, order, pods=pods))
        if look > 1:
            details += [node(name, "PENDING") for name in names[begun:]]  # and so they stay
        if over:
            run["state"] = "FAILED" if self.fail or stopped else "SUCCEEDED"
            run["finished_at"] = moment(60)
            for detail in details[: len(groups)]:
                detail["state"] = run["state"]
        if not run["state_history"] or run["state_history"][-1]["state"] != run["state"]:
            run["state_history"].append({"update_time": moment(look), "state": run["state"]})
        details.sort(key=lambda detail: detail["task_id"])  # by nothing that means anything
        run["run_details"] = {"task_details": details}
        return run

    @staticmethod
    def _workflow(run: dict[str, Any]) -> str:
        spec = run["pipeline_spec"].get("pipeline_spec", run["pipeline_spec"])
        return f"{spec['pipelineInfo']['name']}-x7k2p"

    def post_end(self, run_id: str, *, query: Any, content: Any) -> dict[str, Any]:
        run = self.runs[run_id]
        if run["state"] not in ("PENDING", "RUNNING"):
            raise Refused(400, 3, f"Failed to terminate a run {run_id}. Row not found")
        self.terminated.add(run_id)
        run["state_history"].append({"update_time": moment(0), "state": "CANCELING"})
        return {}

    def _log(self, run_id: str, name: str) -> tuple[int, Any]:
        """By the pod's whole name while it is there; by its short one when it is gone and its log archived."""
        self.logs_read.append(name)
        run = self.runs[run_id]
        workflow = self._workflow(run)
        states = {
            child["pod_name"]: detail["state"]
            for detail in run["run_details"]["task_details"]
            if detail["display_name"] == "executor"
            for child in detail["child_tasks"]
        }
        for short, state in states.items():
            number = short.rpartition("-")[2]
            running = state == "RUNNING"
            place = int(number) // 10
            task = self.tasks[place]
            if name == (f"{workflow}-{template(run, task)}-{number}" if running else short):
                text = self.prints.get(place, self.prints.get(task))
                return 200, log(task, state) if text is None else text
        return 500, {
            "error_message": f"Failed to read logs for run {run_id}: pod {name} not found",
            "error_details": "",
        }

    def get_runs(self, *, query: dict[str, str], content: Any) -> dict[str, Any]:
        self._namespace(query)
        chosen = {
            key: run for key, run in self.runs.items() if query.get("experiment_id") in (None, run["experiment_id"])
        }
        return page("runs", chosen, query)

    # --- schedules ---------------------------------------------------------------------------------------------

    def post_schedules(self, *, query: Any, content: dict[str, Any]) -> dict[str, Any]:
        self._runnable(content)
        cron = content["trigger"]["cron_schedule"]["cron"]
        if int(cron.split()[2]) > 23:
            raise Refused(400, 3, f"Schedule cron is not supported. Cron expression: {cron}")
        made = content | {
            "recurring_run_id": str(uuid.uuid4()),
            "created_at": moment(len(self.schedules)),
            "status": "ENABLED" if content["mode"] == "ENABLE" else "DISABLED",
        }
        return self.schedules.setdefault(made["recurring_run_id"], made)

    def get_schedules(self, *, query: dict[str, str], content: Any) -> dict[str, Any]:
        self._namespace(query)
        chosen = {
            key: found
            for key, found in self.schedules.items()
            if query.get("experiment_id") in (None, found["experiment_id"])
        }
        return page("recurringRuns", chosen, query)

    def delete_schedule(self, identifier: str, *, query: Any, content: Any) -> dict[str, Any]:
        del self.schedules[identifier]
        if query.get("propagation_policy") != "ORPHAN" or self.version < "2.17":  # earlier ones ignore it
            self.killed |= {key for key, run in self.runs.items() if run.get("recurring_run_id") == identifier}
        return {}

    # --- pipelines ---------------------------------------------------------------------------------------------

    def get_pipelines(self, *, query: dict[str, str], content: Any) -> dict[str, Any]:
        self._namespace(query)
        return page("pipelines", self.pipelines, query)

    def post_pipelines(self, *, query: dict[str, str], content: dict[str, Any]) -> dict[str, Any]:
        made = {"pipeline_id": str(uuid.uuid4()), "display_name": query["name"], "created_at": moment(0)}
        self.pipelines[made["pipeline_id"]] = made
        self._version(made["pipeline_id"], query["name"], content)  # the backend makes the first version by itself
        return made

    def post_versions(self, *, query: dict[str, str], content: dict[str, Any]) -> dict[str, Any]:
        return self._version(query["pipelineid"], query["name"], content)

    def _version(self, pipeline_id: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
        if any(v["pipeline_id"] == pipeline_id and v["display_name"] == name for v in self.versions.values()):
            raise Refused(409, 6, f"the version name {name} already exists")
        made = {
            "pipeline_id": pipeline_id,
            "pipeline_version_id": str(uuid.uuid4()),
            "display_name": name,
            "pipeline_spec": spec,
        }
        return self.versions.setdefault(made["pipeline_version_id"], made)

    def get_versions(self, pipeline_id: str, *, query: dict[str, str], content: Any) -> dict[str, Any]:
        chosen = {key: v for key, v in self.versions.items() if v["pipeline_id"] == pipeline_id}
        return page("pipeline_versions", chosen, query)


def moment(minutes: int) -> str:
    return (FIRST + timedelta(minutes=minutes)).isoformat()


def pod(workflow: str, place: int, attempt: int) -> str:
    """As a node's children are called: not by their pod's whole name, which has the template's in it."""
    return f"{workflow}-{place * 10 + attempt}"


def template(run: dict[str, Any], task: str) -> str:
    """As the backend calls the template of a task's container: by how many annotations and labels its pod has."""
    platform = run["pipeline_spec"].get("platform_spec", {}).get("platforms", {}).get("kubernetes", {})
    executors = platform.get("deploymentSpec", {}).get("executors", {})
    own = executors.get(f"exec-{task}", {}).get("podMetadata")
    prefix = f"metadata-{len(own.get('annotations', {}))}-{len(own.get('labels', {}))}-" if own else ""
    return f"{prefix}retry-system-container-impl"


def log(task: str, state: str) -> str:
    """What a container prints, between the launcher's lines."""
    lines = [
        "I1128 09:00:00.120000       1 launcher_v2.go:190] publish success.",
        'time="2026-11-28T09:00:00.200Z" level=info msg="capturing logs" argo=true',
        f"[KFP Executor 2026-11-28 09:00:01,300 INFO]: Looking for component `{task}` in --component_module_path",
        f"gkd: begins: {task}",
        f"gkd: {task} has something to remark",
        f"{task} works",
    ]
    if state == "FAILED":
        lines.append(f"gkd: {task} has no more room on the volume")
    if state != "RUNNING":
        lines.append(f"gkd: ends: {task}")
    if state == "FAILED":
        lines.append("F1128 09:00:09.000000       1 main.go:70] failed to execute component: exit status 2")
    return "".join(f"{line}\n" for line in lines)


def node(
    name: str, state: str, minutes: int | None = None, *, error: str | None = None, pods: Sequence[str] = ()
) -> dict[str, Any]:
    """A node as the backend tells of it: it does not say which it is, and its beginning is not `create_time`."""
    detail: dict[str, Any] = {
        "task_id": str(uuid.uuid4()),
        "display_name": name,
        "state": state,
        "create_time": moment(0),
        "start_time": "1970-01-01T00:00:00Z" if minutes is None else moment(minutes),
        "child_tasks": [{"pod_name": pod} for pod in pods],
    }
    return detail | ({"error": {"code": 2, "message": error}} if error else {})


def page(name: str, store: dict[str, dict[str, Any]], query: dict[str, str]) -> dict[str, Any]:
    """A page of a list: filter, order, size and token as the API has them."""
    found = list(store.values())
    if query.get("filter"):
        filters = json.loads(query["filter"])
        for predicate in filters["predicates"]:
            assert predicate["operation"] in ("EQUALS", 1)
            found = [item for item in found if item[predicate["key"]] == predicate["stringValue"]]
    field, _, direction = query.get("sort_by", "created_at").partition(" ")
    found.sort(key=lambda item: item.get(field or "created_at", ""), reverse=direction == "desc")
    begin, size = int(query.get("page_token") or 0), int(query.get("page_size") or 10)
    reply: dict[str, Any] = {name: found[begin : begin + size], "total_size": len(found)}
    if begin + size < len(found):
        reply["next_page_token"] = str(begin + size)
    return reply if found else {}  # the backend leaves out what is empty
