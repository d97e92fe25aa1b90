"""An HTTP server on a free port of this machine, for tests: a subclass says what each request is answered with."""

import json
import threading
from abc import ABC, abstractmethod
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import yaml

TOKEN = "kube-token"


class JsonServer(ABC):
    """A server to use as a context manager.

    Attributes:
        host: its address.
    """

    def __init__(self) -> None:
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.host = f"http://127.0.0.1:{self.http.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.http.shutdown()
        self.http.server_close()

    @abstractmethod
    def answer(self, verb: str, target: str, headers: Message, body: bytes) -> tuple[int, Any]:
        """Status, and what is sent: text as it is, anything else as JSON."""

    def _handler(server) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # else each answer's second packet waits 40 ms for the client

            def _do(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                status, reply = server.answer(self.command, self.path, self.headers, body)
                content = (reply if isinstance(reply, str) else json.dumps(reply)).encode()
                self.send_response(status)
                self.send_header("Content-Type", "text/plain" if isinstance(reply, str) else "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PATCH = do_DELETE = _do

            def log_message(self, *_: object) -> None:
                pass

        return Handler


class KubernetesApi(JsonServer):
    """One that stands for a cluster's API server, to which a kubeconfig leads."""

    def kubeconfig(self, file: Path) -> Path:
        """A kubeconfig that leads here, with the namespace `team`."""
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me", "namespace": "team"}}],
            "clusters": [{"name": "here", "cluster": {"server": self.host}}],
            "users": [{"name": "me", "user": {"token": TOKEN}}],
        }
        file.write_text(yaml.safe_dump(content))
        return file

    def knows(self, headers: Message) -> bool:
        """Whether a request comes with the token of that file."""
        return headers.get("Authorization") == f"Bearer {TOKEN}"
