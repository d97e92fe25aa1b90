"""kfp's client, with credentials from the options, an end to waiting, and the server's errors as sentences.

kfp's own client waits without end for a silent server, takes a login page for an answer, retries a refused health check
with tracebacks, and writes a file in the home folder; `connect` changes those four and leaves the rest to it.
"""

import contextlib
import io
import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, urlsplit

import typer

from gkd_core.errors import GkdError

HOST_VARIABLE = "KF_PIPELINES_ENDPOINT"
TOKEN_VARIABLE = "GKD_KFP_TOKEN"
COOKIE_VARIABLE = "GKD_KFP_COOKIE"
IN_CLUSTER_HOST = "http://ml-pipeline.kubeflow.svc.cluster.local:8888"
CONNECT_SECONDS, ANSWER_SECONDS = 10, 60
PATIENCE, PAUSE_SECONDS = 10, 0.5  # questions in a row that may go unanswered, with growing pauses between
LONGEST_QUOTE = 300  # characters of a server's own words that go into a sentence


@dataclass(frozen=True)
class Access:
    """Where the server is and who asks: options of every command. Its text shows no secret."""

    host: Annotated[
        str | None,
        typer.Option(help="Address of Kubeflow Pipelines, such as http://localhost:8888; else KF_PIPELINES_ENDPOINT."),
    ] = None
    token: Annotated[str | None, typer.Option(help="Bearer token; better in --token-file or in GKD_KFP_TOKEN.")] = None
    token_file: Annotated[Path | None, typer.Option(help="File with the bearer token, read again at each request.")] = (
        None
    )
    cookie: Annotated[
        str | None, typer.Option(help="Cookie of a session behind a login proxy: name=value; better in GKD_KFP_COOKIE.")
    ] = None
    in_cluster: Annotated[
        bool, typer.Option("--in-cluster", help="Use the service account token mounted into this pod.")
    ] = False
    namespace: Annotated[str | None, typer.Option(help="Profile namespace, where the server has several users.")] = None
    ca_certificate: Annotated[
        Path | None, typer.Option(help="PEM file of the authority behind the server's certificate.")
    ] = None

    def __repr__(self) -> str:
        return f"Access(host={self.host!r}, namespace={self.namespace!r})"


class ClusterError(GkdError):
    """The server refused, or could not be asked. `status` is its HTTP status, None where there was no answer."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Cluster:
    """A server that answered.

    Attributes:
        host: the server's address.
        namespace: the profile namespace, None on a server with one user.
        secrets: what must not appear in any message.
        client: kfp's client; use it inside `asking`.
    """

    host: str
    namespace: str | None
    secrets: tuple[str, ...] = field(default=(), repr=False)
    client: Any = None

    @contextlib.contextmanager
    def asking(self) -> Iterator[Any]:
        """kfp's client, with what it prints kept off stdout.

        Raises:
            ClusterError: the server refused or did not answer, in one sentence.
        """
        import kfp_server_api
        import urllib3.exceptions as transport

        logging.getLogger("urllib3").setLevel(logging.ERROR)  # it announces every retry
        try:
            with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
                warnings.simplefilter("ignore")
                yield self.client
        except kfp_server_api.ApiException as error:
            words = _without(_words(error), self.secrets)
            raise ClusterError(_refusal(error.status, words, self), error.status or None) from None
        except _NotTheApi:
            raise ClusterError(
                f"{self.host} answers, but not as Kubeflow Pipelines does (a login page, or another service): give the "
                "API's address, often ending in /pipeline, and credentials with --token-file or --cookie",
                status=200,
            ) from None
        except AttributeError as error:  # the generated client trips over an answer that never came
            if not isinstance(error.__context__, kfp_server_api.ApiException):
                raise
            raise ClusterError(_unreachable(str(error.__context__.reason), self.host)) from None
        except (transport.HTTPError, OSError) as error:
            cause = str(getattr(error, "reason", None) or error).rpartition(": ")[2]  # the innermost of nested errors
            raise ClusterError(_unreachable(_without(cause, self.secrets), self.host)) from None
        except ValueError as error:  # a field unknown to this version of the client, two experiments of one name
            words = " ".join(_without(str(error), self.secrets).split())
            raise ClusterError(f"kfp's client does not go on with {self.host}'s answer: {words}", status=200) from None

    def be_patient(self) -> None:
        """From now on a question that only reads is asked again while the server is away or stumbles."""
        from urllib3 import Retry

        self.client._run_api.api_client.rest_client.pool_manager.connection_pool_kw["retries"] = Retry(
            total=PATIENCE,
            backoff_factor=PAUSE_SECONDS,
            backoff_max=30,
            status_forcelist=(429, 500, 502, 503, 504),
            raise_on_status=False,
        )

    def log(self, run_id: str, pod: str) -> str | None:
        """What a pod of a run printed; None where the server has no such log: not begun, gone, of another name.

        Raises:
            ClusterError: the server does not allow it, or cannot be reached.
        """
        return self._read(f"runs/{quote(run_id)}/nodes/{quote(pod)}/log", "v1alpha1")

    def version(self) -> tuple[int, ...]:
        """The server's version, such as (2, 17, 0); empty where it does not tell."""
        try:
            told = self._read("healthz", "v1beta1") or ""
        except ClusterError:
            return ()
        found = re.search(r'"tag_name"\s*:\s*"v?(\d+(?:\.\d+)*)', told)
        return tuple(map(int, found[1].split("."))) if found else ()

    def _read(self, path: str, api_version: str) -> str | None:
        """What an address answers that is in an earlier version of the API alone, so that kfp's client lacks it."""
        from urllib3 import Timeout

        with self.asking() as client:
            api = client._run_api.api_client
            retries = api.rest_client.pool_manager.connection_pool_kw["retries"]
            # 500 is what a log that is not there is answered with.
            retries = retries.new(status_forcelist=set(retries.status_forcelist) - {500})
            headers = dict(api.default_headers) | ({"Cookie": api.cookie} if api.cookie else {})
            api.update_params_for_auth(headers, [], ["Bearer"])
            answer = api.rest_client.pool_manager.request(
                "GET",
                f"{api.configuration.host}/apis/{api_version}/{path}",
                headers=headers,
                timeout=Timeout(connect=CONNECT_SECONDS, read=ANSWER_SECONDS),
                retries=retries,
            )
        if answer.status in (401, 403):
            raise ClusterError(_refusal(answer.status, "", self), answer.status)
        if answer.status != 200 or "html" in answer.headers.get("Content-Type", ""):  # a login page
            return None
        text: str = answer.data.decode(errors="replace")
        return text

    def link(self, kind: str, identifier: str) -> str:
        """Address of a run ("runs") or schedule ("recurringrun") in the web interface."""
        page = os.environ.get("KF_PIPELINES_UI_ENDPOINT") or self.host
        return f"{page.rstrip('/')}/#/{kind}/details/{identifier}"


def connect(access: Access) -> Cluster:
    """Reach the server and make sure that it is one.

    Raises:
        GkdError: the address or the credentials given cannot be right.
        ClusterError: nobody answers there, it is something else, or it refuses the credentials.
    """
    host = _host(access)
    options, secrets = _credentials(access, host)
    if access.ca_certificate is not None:
        if not access.ca_certificate.is_file():
            raise GkdError(f"--ca-certificate {access.ca_certificate} is not a file: name the authority's PEM file")
        options["ssl_ca_cert"] = str(access.ca_certificate)
    with Cluster(host, access.namespace, secrets).asking():
        client = _client(host, options)
        health = client.get_kfp_healthz()
    namespace = access.namespace or client.get_user_namespace() or None
    if health.multi_user and not namespace:
        raise GkdError(f"{host} has several users: say whose runs you mean with --namespace")
    return Cluster(host, namespace, secrets, client)


def _host(access: Access) -> str:
    host = access.host or os.environ.get(HOST_VARIABLE) or (IN_CLUSTER_HOST if access.in_cluster else None)
    if not host:
        raise GkdError(
            f"no server is named: pass --host with the address of Kubeflow Pipelines, or set {HOST_VARIABLE}"
        )
    host = host.strip().rstrip("/")
    host = host if "://" in host else f"https://{host}"
    try:
        parts = urlsplit(host)
        parts.port  # noqa: B018  its value is checked when it is read
    except ValueError:
        raise GkdError("--host is not an address: write it like https://kubeflow.example.org/pipeline") from None
    if parts.username or parts.password:
        raise GkdError("--host holds a user name or password: leave it out and pass --token-file or --cookie instead")
    if parts.scheme not in ("http", "https") or not parts.hostname or any(c.isspace() for c in host):
        raise GkdError(f"--host {host!r} is not an address: write it like https://kubeflow.example.org/pipeline")
    return host


def _credentials(access: Access, host: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Options of kfp's client, and the secrets among them. What is given by name wins over the environment."""
    ways = {"--token": access.token, "--token-file": access.token_file, "--in-cluster": access.in_cluster or None}
    given = [name for name, value in ways.items() if value is not None]
    if access.in_cluster and access.cookie is not None:
        given.append("--cookie")
    if len(given) > 1:
        raise GkdError(f"{' and '.join(given)} say twice who asks: pass one of them")
    token, cookie = access.token, access.cookie
    if not given and cookie is None:
        token, cookie = os.environ.get(TOKEN_VARIABLE), os.environ.get(COOKIE_VARIABLE)

    options: dict[str, Any] = {}
    secrets = []
    if cookie is not None:
        secrets += [options.setdefault("cookies", _one_line(cookie, "the cookie"))]
        # A message may echo a cookie's value alone; a short one is no secret, and would be cut out of other words.
        values = (part.partition("=")[2].strip() for part in cookie.split(";"))
        secrets += [value for value in values if len(value) >= 8]
    if token is not None:
        secrets += [options.setdefault("existing_token", _one_line(token, "the token"))]
    elif access.token_file or access.in_cluster:
        from kfp import client

        mounted = os.environ.get(client.KF_PIPELINES_SA_TOKEN_ENV) or client.KF_PIPELINES_SA_TOKEN_PATH
        file = access.token_file or Path(mounted)
        secrets += [_token_in(file, "--token-file" if access.token_file else "--in-cluster: the mounted token")]
        options["credentials"] = client.ServiceAccountTokenVolumeCredentials(str(file))
    parts = urlsplit(host)
    name = parts.hostname or ""
    near = name in ("localhost", "127.0.0.1", "::1") or name.endswith((".svc", ".cluster.local")) or "." not in name
    if secrets and parts.scheme == "http" and not near:
        print(f"gkd: the credentials travel unencrypted to {host}; https would keep them", file=sys.stderr)
    return options, tuple(filter(None, secrets))


def _token_in(file: Path, what: str) -> str:
    try:
        return _one_line(file.read_text(encoding="utf-8"), f"what {file} holds")
    except OSError as error:
        way_out = "run inside a pod that has a projected token for Kubeflow Pipelines, or pass a file that has it"
        raise GkdError(f"{what} {file} cannot be read ({error.strerror}): {way_out}") from None
    except UnicodeDecodeError:
        raise GkdError(f"{what} {file} is not text: it must hold the token and nothing else") from None


def _one_line(secret: str, what: str) -> str:
    """Refuse what no header may hold, without repeating it."""
    secret = secret.strip()
    if not secret or not secret.isascii() or not secret.isprintable():
        raise GkdError(f"{what} is empty or not one line of plain characters: copy it again")
    return secret


def _client(host: str, options: dict[str, Any]) -> Any:
    """kfp's client with a health check that ends, and that leaves the home folder alone."""
    import kfp

    class Client(kfp.Client):  # type: ignore[misc]
        def get_kfp_healthz(self, sleep_duration: int = 5) -> Any:
            _guard(self._healthz_api.api_client.rest_client)
            return self._healthz_api.healthz_service_get_healthz()

        def set_user_namespace(self, namespace: str) -> None:
            self._context_setting["namespace"] = namespace

    return Client(host=host, **options)


class _NotTheApi(Exception):
    """An answer that is not JSON: a login page, or another service."""


def _guard(rest: Any) -> None:
    """Give every request a time limit, and take nothing but a JSON object for an answer."""
    from urllib3 import Retry

    if getattr(rest, "guarded", False):
        return
    ask = rest.request
    # urllib3 would wait for a silent server four times over.
    rest.pool_manager.connection_pool_kw["retries"] = Retry(total=3, connect=2, read=0)

    def request(method: str, url: str, **options: Any) -> Any:
        answer = ask(method, url, **(options | {"_request_timeout": (CONNECT_SECONDS, ANSWER_SECONDS)}))
        try:
            if not isinstance(json.loads(answer.data), dict):
                raise _NotTheApi
        except ValueError:
            raise _NotTheApi from None
        return answer

    rest.request, rest.guarded = request, True


def _words(error: Any) -> str:
    """What the server said, on one line: `message` of a JSON body, else the beginning of the body."""
    body = error.body.decode(errors="replace") if isinstance(error.body, bytes) else error.body or ""
    with contextlib.suppress(ValueError):
        content = json.loads(body)
        if isinstance(content, dict):
            body = str(content.get("message") or content.get("error_message") or content.get("error") or "")
    if body.lstrip().startswith("<"):
        body = ""  # a proxy's page
    line = " ".join(body.split())
    return line if len(line) <= LONGEST_QUOTE else line[: LONGEST_QUOTE - 1] + "…"


def _without(text: str, secrets: tuple[str, ...]) -> str:
    for secret in secrets:
        text = text.replace(secret, "***")
    return text


def _refusal(status: int, words: str, cluster: Cluster) -> str:
    said, host = f" ({words})" if words else "", cluster.host
    match status:
        case 401:
            return (
                f"{host} does not accept the credentials, or wants some{said}: pass a fresh one with --token-file, "
                "--cookie or --in-cluster"
            )
        case 403:
            where = f" in namespace {cluster.namespace}" if cluster.namespace else ""
            return f"{host} does not allow this{where}{said}: ask for the right, or pass another --namespace or token"
        case 404:
            return f"{host} knows nothing under that address or name{said}: check --host and what you named"
        case 400 | 409 | 422:
            return f"{host} refuses the request{said or f' (status {status})'}: fix what it names and try again"
        case 0:
            return _unreachable(words or "no answer", host)
    return f"{host} fails with status {status}{said}: try again later, or look at its ml-pipeline pod"


def _unreachable(cause: str, host: str) -> str:
    lowered = cause.lower()
    if "ssl" in lowered or "certificate" in lowered:
        return f"{host} has a certificate that is not trusted here: pass its authority with --ca-certificate, or http"
    if "timed out" in lowered or "timeout" in lowered:
        return f"{host} did not answer in time: check --host, and whether a tunnel or proxy stands between"
    cause = " ".join(cause.split())[:LONGEST_QUOTE]
    return f"{host} cannot be reached ({cause}): check --host, and that a port-forward to it still runs"
