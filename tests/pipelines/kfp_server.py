"""A small Kubeflow Pipelines server over real HTTP: it checks what it is asked, keeps it, answers in the API's shapes.

What is right is not written down here: routes, query parameters and the fields of every message with their types are
read from `kfp_server_api`, the package generated from the published OpenAPI description (v2beta1). A request with an
unknown path, parameter or field, or with a value of another type, is refused with 400 and remembered in `refused`; an
answer that would not fit its own model is an error of this server.
"""

import email
import email.policy
import inspect
import json
import re
import threading
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import kfp_server_api
import yaml
from dateutil.parser import isoparse

MODELS = kfp_server_api.models
FIRST = datetime(2026, 11, 21, 12, tzinfo=UTC)


class Refused(Exception):
    """An error as the API words it."""

    def __init__(self, status: int, code: int, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


def published_routes() -> dict[tuple[str, str], tuple[set[str], str | None, str | None]]:
    """(method, path pattern) → query parameters, the model of the body, the model of the answer."""
    routes = {}
    for name, api in inspect.getmembers(kfp_server_api, inspect.isclass):
        if not name.endswith("ServiceApi"):
            continue
        for method, function in inspect.getmembers(api, inspect.isfunction):
            if not method.endswith("_with_http_info"):
                continue
            source = inspect.getsource(function)
            path, verb = re.search(r"'(/apis/v2beta1/[^']*)', '(\w+)'", source).groups()
            body = re.search(r"body_params = local_var_params\['(\w+)'\]", source)
            documented = (
                re.search(rf":param (?:\w+ )?{body[1]}:.*?:type {body[1]}: (\w+)", source, re.S) if body else None
            )
            answer = re.search(r"response_type='(\w+)'", source)
            routes[verb, path] = (
                set(re.findall(r"query_params.append\(\('([\w.]+)'", source)),
                documented[1] if documented else None,
                answer[1] if answer else None,
            )
    return routes


ROUTES = published_routes()
NATIVE = {"str": str, "int": int, "float": (int, float), "bool": bool, "object": object}


def misfit(value: Any, kind: str, place: str) -> str | None:
    """What keeps a JSON value from being of a kind of the API ("str", "list[V2beta1Run]", a model's name)."""
    if kind.startswith("list["):
        if not isinstance(value, list):
            return f"{place} is not a list"
        inner = kind[5:-1]
        return next(filter(None, (misfit(item, inner, f"{place}[{i}]") for i, item in enumerate(value))), None)
    if kind.startswith("dict("):
        if not isinstance(value, dict):
            return f"{place} is not an object"
        inner = kind[5:-1].partition(", ")[2]
        return next(filter(None, (misfit(item, inner, f"{place}.{key}") for key, item in value.items())), None)
    if kind == "datetime":
        try:
            moment = isoparse(value)
        except (TypeError, ValueError):
            return f"{place} is not an RFC 3339 time"
        return None if moment.tzinfo else f"{place} has no time zone"
    if kind in NATIVE:
        fits = isinstance(value, NATIVE[kind]) and not (kind in ("int", "float") and isinstance(value, bool))
        return None if fits else f"{place} is not of type {kind}"
    model = getattr(MODELS, kind)
    if not model.openapi_types:  # an enumeration: its values are the class's constants
        allowed = {v for k, v in vars(model).items() if k.isupper() or k.replace("_", "").isupper()}
        return None if value in allowed else f"{place} is not one of {sorted(allowed)}"
    if not isinstance(value, dict):
        return f"{place} is not an object"
    kinds = {model.attribute_map[name]: kind for name, kind in model.openapi_types.items()}
    for key, item in value.items():
        if key not in kinds:
            return f"{place}.{key} is not a field of {kind}"
        if problem := misfit(item, kinds[key], f"{place}.{key}"):
            return problem
    return None


class KfpServer:
    """A server to use as a context manager.

    Attributes:
        host: its address.
        token, cookie: what a request must carry; None asks for none.
        fail: a task that ends its run as FAILED; its words are in `fail_says`.
        steps: how many looks a run takes from PENDING to its end.
        refused: what was refused with 400, in words.
        requests: (method, path) in order.
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
    ) -> None:
        self.token, self.cookie, self.multi_user = token, cookie, multi_user
        self.fail, self.fail_says, self.tasks = fail, fail_says, tasks
        self.cancel = False
        self.allowed_namespaces = {"", "team"}
        self.broken = 0
        self.refused: list[str] = []
        self.requests: list[tuple[str, str]] = []
        self.experiments: dict[str, dict[str, Any]] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        self.schedules: dict[str, dict[str, Any]] = {}
        self.pipelines: dict[str, dict[str, Any]] = {}
        self.versions: dict[str, dict[str, Any]] = {}
        self.looks: dict[str, int] = {}
        self.lock = threading.Lock()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.host = f"http://127.0.0.1:{self.http.server_address[1]}"

    def __enter__(self) -> "KfpServer":
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.http.shutdown()
        self.http.server_close()

    # --- one request -------------------------------------------------------------------------------------------

    def answer(self, verb: str, target: str, headers: Any, body: bytes) -> Any:
        parts = urlsplit(target)
        self.requests.append((verb, parts.path))
        if self.broken:
            self.broken -= 1
            raise Refused(503, 14, "upstream connect error")
        if self.token and headers.get("Authorization") != f"Bearer {self.token}":
            # As a careless proxy does it: the refused credential comes back in the message.
            raise Refused(401, 16, f"Unauthenticated: {headers.get('Authorization')} is not accepted")
        if self.cookie and headers.get("Cookie") != self.cookie:
            raise Refused(401, 16, f"no session in {headers.get('Cookie')}")
        path, found = self._route(verb, parts.path)
        parameters, kind, answer_kind = ROUTES[verb, path]
        query = {key: values[0] for key, values in parse_qs(parts.query, keep_blank_values=True).items()}
        if unknown := set(query) - parameters:
            raise Refused(400, 3, f"unknown query parameters {sorted(unknown)}")
        content: Any = None
        if path.endswith(("/upload", "/upload_version")):
            content = self._uploaded(headers, body)
        elif kind:
            content = json.loads(body)
            if problem := misfit(content, kind, "body"):
                raise Refused(400, 3, f"invalid {kind}: {problem}")
        elif body:
            raise Refused(400, 3, "this request has no body")
        arguments = [unquote(part) for part in found.groups()]
        name = f"{verb.lower()}_{re.sub('[^a-z]+', '_', path.removeprefix('/apis/v2beta1/').lower()).strip('_')}"
        reply = getattr(self, name)(*arguments, query=query, content=content)
        if answer_kind and (problem := misfit(reply, answer_kind, "answer")):
            raise AssertionError(f"this server answers wrongly: {problem}")
        return reply

    @staticmethod
    def _route(verb: str, path: str) -> tuple[str, re.Match[str]]:
        for known, pattern in ROUTES:
            places = re.sub(r"\\\{[\w.]+\\\}", "([^/:]+)", re.escape(pattern))
            if known == verb and (found := re.fullmatch(places, path)):
                return pattern, found
        raise Refused(404, 5, "Not Found")

    def _uploaded(self, headers: Any, body: bytes) -> dict[str, Any]:
        head = f"Content-Type: {headers['Content-Type']}\n\n".encode()
        message = email.message_from_bytes(head + body, policy=email.policy.HTTP)
        files = {part.get_param("name", header="content-disposition"): part for part in message.iter_parts()}
        if set(files) != {"uploadfile"}:
            raise Refused(400, 3, f"an upload has the one part uploadfile, not {sorted(files)}")
        return self._valid(next(yaml.safe_load_all(files["uploadfile"].get_payload(decode=True))))

    @staticmethod
    def _valid(spec: Any) -> dict[str, Any]:
        """A pipeline spec as the backend reads it: by the published protobuf message."""
        from google.protobuf import json_format
        from kfp.pipeline_spec import pipeline_spec_pb2

        try:
            if "pipeline_spec" in spec:
                json_format.ParseDict(spec["platform_spec"], pipeline_spec_pb2.PlatformSpec())
            plain = spec.get("pipeline_spec", spec)
            json_format.ParseDict(plain, pipeline_spec_pb2.PipelineSpec())
        except (json_format.ParseError, TypeError, AttributeError) as error:
            raise Refused(400, 3, f"invalid pipeline spec: {error}") from None
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
            "created_at": moment(len(self.runs)),
            "finished_at": "1970-01-01T00:00:00Z",  # what the backend sends for a time that is not set
        }
        return self.runs.setdefault(run["run_id"], run)

    def _runnable(self, content: dict[str, Any]) -> None:
        if content.get("experiment_id") not in self.experiments:
            raise Refused(404, 5, f"experiment {content.get('experiment_id')} not found")
        if not content.get("display_name"):
            raise Refused(400, 3, "display_name is required")
        reference = content.get("pipeline_version_reference")
        if (reference is None) == (content.get("pipeline_spec") is None):
            raise Refused(400, 3, "give either pipeline_spec or pipeline_version_reference")
        if reference is None:
            spec = self._valid(content["pipeline_spec"])
        else:
            version = self.versions.get(reference["pipeline_version_id"])
            if version is None or version["pipeline_id"] != reference["pipeline_id"]:
                raise Refused(404, 5, "pipeline version not found")
            spec = version["pipeline_spec"]
        known = spec["root"].get("inputDefinitions", {}).get("parameters", {})
        given = content.get("runtime_config", {}).get("parameters", {})
        if surplus := set(given) - set(known):
            raise Refused(400, 3, f"parameter {sorted(surplus)} is not required by pipeline")

    def get_runs_run_id(self, run_id: str, *, query: Any, content: Any) -> dict[str, Any]:
        if run_id not in self.runs:
            raise Refused(404, 5, f"Failed to get run: ResourceNotFoundError: Run {run_id} not found.")
        with self.lock:
            return self._advanced(self.runs[run_id])

    def _advanced(self, run: dict[str, Any]) -> dict[str, Any]:
        """One look further: PENDING, RUNNING task by task, then the end."""
        look = self.looks[run["run_id"]] = self.looks.get(run["run_id"], 0) + 1
        names = list(self.tasks)
        stop = names.index(self.fail) if self.fail else len(names) - 1
        begun = min(look - 1, stop + 1)
        over = look > stop + 2
        run["state"] = "PENDING" if look == 1 else "RUNNING"
        spec = run["pipeline_spec"].get("pipeline_spec", run["pipeline_spec"])
        workflow = f"{spec['pipelineInfo']['name']}-x7k2p"
        groups = [node(name, "RUNNING", 0) for name in (workflow, "root", "exit-handler-1")]
        details = [*groups, node("root-driver", "SUCCEEDED", 0)] if look > 1 else []
        for order, name in enumerate(names[:begun], start=1):
            ended = order < begun or over
            failed = ended and name == self.fail
            details.append(node(f"{name}-driver", "SUCCEEDED", order))
            if failed:  # the first attempt, which is not the last word
                details.append(node("executor(0)", "FAILED", order))
            state = "FAILED" if failed else "SUCCEEDED" if ended else "RUNNING"
            details.append(node(name, state, order, self.fail_says if failed else None))
            details.append(node("executor", state, order))
        if over:
            run["state"] = "CANCELED" if self.cancel else "FAILED" if self.fail else "SUCCEEDED"
            run["finished_at"] = moment(60)
            for detail in details[: len(groups)]:
                detail["state"] = run["state"]
        run["run_details"] = {"task_details": details}
        return run

    def get_runs(self, *, query: dict[str, str], content: Any) -> dict[str, Any]:
        self._namespace(query)
        chosen = {
            key: run for key, run in self.runs.items() if query.get("experiment_id") in (None, run["experiment_id"])
        }
        return page("runs", chosen, query)

    # --- schedules ---------------------------------------------------------------------------------------------

    def post_recurringruns(self, *, query: Any, content: dict[str, Any]) -> dict[str, Any]:
        self._runnable(content)
        cron = content["trigger"]["cron_schedule"]["cron"]
        if len(cron.split()) != 6 or re.search(r"[^\d\s*/,?\-LW#]", cron):
            raise Refused(400, 3, f"Schedule cron is not supported. Cron expression: {cron}")
        if not 1 <= int(content["max_concurrency"]) <= 10:
            raise Refused(400, 3, "The max concurrency of the job is out of range. Support 1-10.")
        made = content | {
            "recurring_run_id": str(uuid.uuid4()),
            "created_at": moment(len(self.schedules)),
            "status": "ENABLED" if content["mode"] == "ENABLE" else "DISABLED",
        }
        return self.schedules.setdefault(made["recurring_run_id"], made)

    def get_recurringruns(self, *, query: dict[str, str], content: Any) -> dict[str, Any]:
        self._namespace(query)
        chosen = {
            key: found
            for key, found in self.schedules.items()
            if query.get("experiment_id") in (None, found["experiment_id"])
        }
        return page("recurringRuns", chosen, query)

    def delete_recurringruns_recurring_run_id(self, identifier: str, *, query: Any, content: Any) -> dict[str, Any]:
        if self.schedules.pop(identifier, None) is None:
            raise Refused(404, 5, f"recurring run {identifier} not found")
        return {}

    # --- pipelines ---------------------------------------------------------------------------------------------

    def get_pipelines(self, *, query: dict[str, str], content: Any) -> dict[str, Any]:
        self._namespace(query)
        return page("pipelines", self.pipelines, query)

    def post_pipelines_upload(self, *, query: dict[str, str], content: dict[str, Any]) -> dict[str, Any]:
        made = {"pipeline_id": str(uuid.uuid4()), "display_name": query["name"], "created_at": moment(0)}
        self.pipelines[made["pipeline_id"]] = made
        self._version(made["pipeline_id"], query["name"], content)  # the backend makes the first version by itself
        return made

    def post_pipelines_upload_version(self, *, query: dict[str, str], content: dict[str, Any]) -> dict[str, Any]:
        if query["pipelineid"] not in self.pipelines:
            raise Refused(404, 5, "pipeline not found")
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

    def get_pipelines_pipeline_id_versions(
        self, pipeline_id: str, *, query: dict[str, str], content: Any
    ) -> dict[str, Any]:
        chosen = {key: v for key, v in self.versions.items() if v["pipeline_id"] == pipeline_id}
        return page("pipeline_versions", chosen, query)

    def _handler(server) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _do(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                status = 200
                try:
                    reply = server.answer(self.command, self.path, self.headers, body)
                except Refused as error:
                    status, reply = error.status, {"error": str(error), "code": error.code, "message": str(error)}
                    if status == 400:
                        server.refused.append(str(error))
                content = json.dumps(reply).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_DELETE = do_PATCH = _do

            def log_message(self, *_: object) -> None:
                pass

        return Handler


def moment(minutes: int) -> str:
    return (FIRST + timedelta(minutes=minutes)).isoformat()


def node(name: str, state: str, minutes: int, error: str | None = None) -> dict[str, Any]:
    detail: dict[str, Any] = {
        "task_id": str(uuid.uuid4()),
        "display_name": name,
        "state": state,
        "create_time": moment(minutes),
        "child_tasks": [{"pod_name": f"{name}-pod"}],
    }
    return detail | ({"error": {"code": 2, "message": error}} if error else {})


def page(name: str, store: dict[str, dict[str, Any]], query: dict[str, str]) -> dict[str, Any]:
    """A page of a list: filter, order, size and token as the API has them."""
    found = list(store.values())
    if query.get("filter"):
        filters = json.loads(query["filter"])
        if problem := misfit(snake(filters), "V2beta1Filter", "filter"):
            raise Refused(400, 3, problem)
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


def snake(filters: dict[str, Any]) -> dict[str, Any]:
    """JSON of protobuf admits both spellings of a name, and a number for an enumeration's value."""
    operations = ["OPERATION_UNSPECIFIED", "EQUALS"]
    spelled: Callable[[str], str] = lambda key: re.sub("[A-Z]", lambda m: f"_{m[0].lower()}", key)  # noqa: E731
    return {
        "predicates": [
            {spelled(k): operations[v] if isinstance(v, int) else v for k, v in predicate.items()}
            for predicate in filters["predicates"]
        ]
    }
