"""docs/nginx.conf in front of a real `gkd serve`: TLS and slow clients are nginx's business, answers the server's."""

import http.client
import json
import os
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as triton

from tests.pipelines.conftest import INFER, Server, body, expected, until

NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
CONFIGURATION = Path(__file__).parents[2] / "docs/nginx.conf"
IMAGES = np.random.default_rng(1).integers(0, 256, (4, 8, 8, 1), dtype=np.uint8)

pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not there: apt-get install nginx")


@pytest.fixture(scope="module")
def deploy(tmp_path_factory, make_deploy) -> Path:
    return make_deploy(tmp_path_factory.mktemp("proxied") / "deploy", seed=1)


@pytest.fixture(scope="module")
def server(start, deploy) -> Server:
    return start(deploy)


@pytest.fixture(scope="module")
def proxy(tmp_path_factory, server) -> Iterator[int]:
    """nginx as the documentation configures it, with a certificate of its own, on a free port: that port."""
    folder = tmp_path_factory.mktemp("nginx")
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    files = ["-keyout", str(folder / "gkd.key"), "-out", str(folder / "gkd.crt")]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *names, *files], check=True, capture_output=True
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    places = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")  # that a user may write to
    text = CONFIGURATION.read_text()
    for old, new in {
        "http {": "http { access_log off; " + " ".join(f"{name}_temp_path {folder / name};" for name in places),
        "listen 443": f"listen 127.0.0.1:{port}",
        "127.0.0.1:8080": server.address,
        "/etc/nginx/": f"{folder}/",
        "timeout 10s": "timeout 1s",
    }.items():
        assert old in text
        text = text.replace(old, new)
    (folder / "nginx.conf").write_text(text)
    user = "user root; " if os.geteuid() == 0 else ""
    assert NGINX is not None
    command = [NGINX, "-p", str(folder), "-c", "nginx.conf", "-e", str(folder / "log")]
    with subprocess.Popen([*command, "-g", f"{user}daemon off; pid {folder / 'pid'};"]) as nginx:

        def listening() -> bool:
            assert nginx.poll() is None, (folder / "log").read_text()
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        until(listening, "nginx listens")
        yield port
        nginx.terminate()


@pytest.fixture
def context(proxy, tmp_path) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=ssl.get_server_certificate(("127.0.0.1", proxy)))


def ask(proxy: int, context: ssl.SSLContext, content: bytes, **headers: str) -> tuple[int, dict]:
    connection = http.client.HTTPSConnection("localhost", proxy, context=context, timeout=60)
    connection.request("POST", INFER, content, headers)
    reply = connection.getresponse()
    try:
        return reply.status, json.loads(reply.read())
    finally:
        connection.close()


@pytest.fixture(scope="module")
def answers(deploy) -> np.ndarray:
    return expected(deploy / "model.onnx", IMAGES)


def test_the_protocols_client_is_answered_over_tls(proxy, context, answers):
    tensor = triton.InferInput("image", IMAGES.shape, "UINT8")
    tensor.set_data_from_numpy(IMAGES)
    with triton.InferenceServerClient(
        f"localhost:{proxy}", ssl=True, ssl_context_factory=lambda: context, network_timeout=60
    ) as client:
        assert client.is_model_ready("gkd-student")
        assert np.array_equal(client.infer("gkd-student", [tensor]).as_numpy("logits"), answers)


def test_a_request_for_an_upgrade_reaches_the_server_without_it(proxy, context, answers):
    status, answer = ask(proxy, context, body(IMAGES), Connection="Upgrade, HTTP2-Settings", Upgrade="h2c")
    assert status == 200
    assert np.allclose(np.reshape(answer["outputs"][0]["data"], (4, 10)), answers, atol=1e-5)


def test_errors_have_the_protocols_form_whoever_refuses(proxy, context):
    for content, refused in ((b"{}", 400), (bytes((16 << 20) + 1), 413)):
        status, answer = ask(proxy, context, content)
        assert (status, list(answer)) == (refused, ["error"])


def test_a_slow_client_is_nginxs_business_and_the_server_hears_nothing_of_it(proxy, context, server):
    def answered() -> float:
        text = server.ask("GET", "/metrics").content.decode()
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith("gkd_requests_total{"))

    before = answered()
    with (
        socket.create_connection(("127.0.0.1", proxy), timeout=60) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as client,
    ):
        client.sendall(b"POST %s HTTP/1.1\r\nhost: x\r\ncontent-length: 900\r\n\r\n{" % INFER.encode())
        assert not client.makefile("rb").read().startswith(b"HTTP/1.1 200")  # nginx gives up on it
    assert answered() == before + 1  # the question itself
