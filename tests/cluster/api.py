"""One namespace of a cluster, through the `kubernetes` client: every path asked for has it in it, or changes nothing.

Objects are mappings, as in their YAML. What is made gets the label of this test, by which it is found and removed.
"""

import json
from typing import Any

from gkd_core.errors import GkdError

LABEL = "gkd-cluster-test"
RUN_LABEL = "pipeline/runid"  # Kubeflow Pipelines' own, on all pods of a run and on our TrainJobs
PATHS = {
    "Pod": "/api/v1/namespaces/{}/pods",
    "Service": "/api/v1/namespaces/{}/services",
    "PersistentVolumeClaim": "/api/v1/namespaces/{}/persistentvolumeclaims",
    "Deployment": "/apis/apps/v1/namespaces/{}/deployments",
    "HorizontalPodAutoscaler": "/apis/autoscaling/v2/namespaces/{}/horizontalpodautoscalers",
    "PodDisruptionBudget": "/apis/policy/v1/namespaces/{}/poddisruptionbudgets",
    "TrainJob": "/apis/trainer.kubeflow.org/v1alpha1/namespaces/{}/trainjobs",
}
TRAINER = "/apis/trainer.kubeflow.org/v1alpha1"
CLUSTER_SCOPED = ("clustertrainingruntimes",)
REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
PATCH = "application/strategic-merge-patch+json"
SECONDS = (10, 60)  # to connect, and to answer


class ApiError(GkdError):
    """The API server refused; `status` is HTTP's."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Api:
    """A namespace.

    Args:
        kubeconfig: file, or several as kubectl takes them, whose current context is taken.
        namespace: None is the context's, else `kubeflow`.
        test: value of the label.
    Raises:
        GkdError: the file is none, or the server does not answer.
    """

    def __init__(self, kubeconfig: str, namespace: str | None, test: str) -> None:
        from kubernetes import client, config

        try:
            self._client = config.new_client_from_config(kubeconfig)
            _, context = config.list_kube_config_contexts(kubeconfig)
        except Exception as error:  # its reader takes for granted what the file should hold
            words = " ".join(str(error).split())[:200]
            raise GkdError(f"there is no cluster to check: KUBECONFIG ({kubeconfig}) cannot be read: {words}") from None
        self.namespace: str = namespace or context["context"].get("namespace") or "kubeflow"
        self.test = test
        self._refusal = client.ApiException
        try:
            self.ask("GET", "/version")
        except ApiError:
            raise
        except GkdError as error:
            raise GkdError(f"there is no cluster to check: {error}") from None

    def ask(self, verb: str, path: str, body: Any = None, **options: Any) -> Any:
        """One request.

        Args:
            options: `query`, `headers`, and `text` where the answer is no JSON.
        Raises:
            ApiError: it is refused; GkdError: nobody answers.
        """
        from urllib3.exceptions import HTTPError

        headers = {"Accept": "application/json", "Content-Type": "application/json"} | options.get("headers", {})
        if options.get("text"):
            headers["Accept"] = "*/*"
        as_it_is = bool(options.get("text"))  # the client would read a line of JSON, and give Python's text of it
        try:
            answer = self._client.call_api(
                path,
                verb,
                query_params=list(options.get("query", {}).items()),
                header_params=headers,
                body=body,
                response_type="object",
                auth_settings=["BearerToken"],
                _return_http_data_only=True,
                _preload_content=not as_it_is,
                _request_timeout=SECONDS,
            )
            if as_it_is:
                answer = answer.data.decode(errors="replace")
        except self._refusal as error:
            raise ApiError(f"{verb} {path}: {_words(error)}", error.status) from None
        except (HTTPError, OSError) as error:
            words = " ".join(str(error).split())[:200]
            raise GkdError(
                f"the Kubernetes API at {self._client.configuration.host} does not answer ({words})"
            ) from None
        return answer

    # --- objects -----------------------------------------------------------------------------------------------

    def make(self, content: dict[str, Any]) -> dict[str, Any]:
        """Create an object, with the label."""
        content["metadata"].setdefault("labels", {})[LABEL] = self.test
        made: dict[str, Any] = self.ask("POST", self._path(content["kind"]), content)
        return made

    def get(self, kind: str, name: str) -> dict[str, Any] | None:
        """An object; None where there is none of the name."""
        try:
            found: dict[str, Any] = self.ask("GET", f"{self._path(kind)}/{name}")
        except ApiError as error:
            if error.status == 404:
                return None
            raise
        return found

    def all(self, kind: str, **labels: str) -> list[dict[str, Any]]:
        """Those of this test, with more labels besides (`run` is the run's)."""
        wanted = {LABEL: self.test} | {RUN_LABEL if key == "run" else key: value for key, value in labels.items()}
        selector = ",".join(f"{key}={value}" for key, value in wanted.items())
        try:
            found: list[dict[str, Any]] = self.ask("GET", self._path(kind), query={"labelSelector": selector})["items"]
        except ApiError as error:
            if error.status == 404:  # no such kind in this cluster
                return []
            raise
        return found

    def patch(self, kind: str, name: str, content: dict[str, Any]) -> dict[str, Any]:
        """Change an object."""
        changed: dict[str, Any] = self.ask(
            "PATCH", f"{self._path(kind)}/{name}", content, headers={"Content-Type": PATCH}
        )
        return changed

    def delete(self, kind: str, name: str) -> None:
        """Delete an object and what it owns, if it is there."""
        try:
            self.ask("DELETE", f"{self._path(kind)}/{name}", query={"propagationPolicy": "Background"})
        except ApiError as error:
            if error.status != 404:
                raise

    def log(self, pod: str, container: str) -> str:
        """What a container printed so far; empty before it began, and when it is gone."""
        query = {"container": container}
        try:
            return str(self.ask("GET", f"{self._path('Pod')}/{pod}/log", query=query, text=True) or "")
        except ApiError as error:
            if error.status in (400, 404):
                return ""
            raise

    def _path(self, kind: str) -> str:
        return PATHS[kind].format(self.namespace)

    # --- what there is, and who may what --------------------------------------------------------------------------

    def has_trainer(self) -> bool:
        """Whether Kubeflow Trainer's TrainJobs are known here."""
        try:
            self.ask("GET", TRAINER)
        except ApiError as error:
            if error.status == 404:
                return False
            raise
        return True

    def may(self, verb: str, group: str, resource: str, *, service_account: str | None = None) -> bool:
        """Whether we, or a service account of the namespace, may do that in it: by a SelfSubjectAccessReview.

        Raises:
            ApiError: 403: we may not ask for the service account.
        """
        namespace = "" if resource in CLUSTER_SCOPED else self.namespace  # or a right in the namespace would do
        resource, _, sub = resource.partition("/")
        attributes = {"namespace": namespace, "verb": verb, "group": group, "resource": resource}
        if sub:
            attributes["subresource"] = sub
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes},
        }
        who = f"system:serviceaccount:{self.namespace}:{service_account}"
        headers = {"Impersonate-User": who} if service_account else {}
        return bool(self.ask("POST", REVIEWS, review, headers=headers)["status"]["allowed"])


def _words(error: Any) -> str:
    try:
        words = str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        words = str(error.reason)
    return f"{error.status}, {' '.join(words.split())[:300]}"
