"""How `gkd pipeline` reaches a server: addresses, credentials, certificates, and what is no answer."""

import socket
import ssl
from pathlib import Path

import pytest

from pipelines.kubeflow import client, runs
from pipelines.kubeflow.client import Access
from tests.pipelines.conftest import SECRET, says
from tests.pipelines.json_server import JsonServer
from tests.pipelines.kfp_server import KfpServer


@pytest.fixture
def silent():
    """An address where somebody listens and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def certificate(tmp_path) -> Path:
    """A certificate for localhost that vouches for itself, with its key, in one PEM file."""
    from datetime import UTC, datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path / "certificate.pem"
    plain = serialization.NoEncryption()
    pem = serialization.Encoding.PEM
    file.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain) + made.public_bytes(pem))
    return file


@pytest.mark.parametrize(
    ("access", "parts"),
    [
        ({}, ["pass --host", "KF_PIPELINES_ENDPOINT"]),
        ({"host": "ftp://x"}, ["is not an address"]),
        ({"host": "http://x:notaport"}, ["is not an address"]),
        ({"host": f"http://me:{SECRET}@x"}, ["user name or password"]),
        ({"host": "http://x", "token": "a", "in_cluster": True}, ["--token and --in-cluster", "one of them"]),
        ({"host": "http://x", "token": f"{SECRET}\r\nHost: y"}, ["not one line of plain characters"]),
        ({"host": "http://x", "token": ""}, ["the token is empty"]),
        ({"host": "http://x", "token_file": Path("/nowhere/token")}, ["/nowhere/token cannot be read"]),
        ({"in_cluster": True}, ["--in-cluster", "cannot be read", "inside a pod"]),
        ({"host": "http://x", "ca_certificate": Path("/nowhere.pem")}, ["--ca-certificate /nowhere.pem"]),
    ],
)
def test_what_cannot_be_right_is_refused_before_anybody_is_asked(connect, access, parts):
    with says(*parts):
        connect(**access)


def test_a_silent_server(connect, silent, monkeypatch):
    monkeypatch.setattr(client, "ANSWER_SECONDS", 0.5)
    with says("did not answer in time"):
        connect(host=silent)


def test_a_login_page_is_no_answer(connect):
    """Status 200, as a login proxy gives it: kfp's client alone takes it for an empty answer."""

    class Login(JsonServer):
        def answer(self, *_):
            return 200, "<html>Log in</html>"

    with Login() as server, says("login page"):
        connect(host=server.host)


def test_another_service(connect):
    with KfpServer() as server, says("knows nothing under that address"):
        connect(host=f"{server.host}/elsewhere")


def test_a_certificate_nobody_vouches_for(connect, tmp_path, certificate):
    with KfpServer(token=SECRET) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.http.socket = context.wrap_socket(server.http.socket, server_side=True)
        host = server.host.replace("http://", "https://").replace("127.0.0.1", "localhost")
        with says("certificate that is not trusted"):
            connect(host=host, token=SECRET)
        assert connect(host=host, token=SECRET, ca_certificate=certificate).host == host


def test_the_mounted_token_is_read_again(connect, monkeypatch, tmp_path):
    token = tmp_path / "token"
    token.write_text("first")
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(token))
    with KfpServer(token="first") as server:
        found = connect(host=server.host, in_cluster=True)
        assert runs.runs(found) == []
        server.token = "second"
        with says("does not accept"):
            runs.runs(found)
        token.write_text("second")
        assert runs.runs(found) == []


def test_nothing_shows_a_secret(connect):
    access = Access("http://x", token=SECRET, cookie=f"a={SECRET}")
    assert SECRET not in f"{access!r} {access}"
    with KfpServer(token=SECRET) as server:
        assert SECRET not in repr(connect(host=server.host, token=SECRET))


def test_credentials_over_plain_http_are_pointed_out(connect, capsys):
    for host, warned in [
        ("http://kfp.example.org", True),
        ("https://kfp.example.org", False),
        ("http://localhost:8888", False),
        ("http://ml-pipeline.kubeflow.svc.cluster.local:8888", False),
    ]:
        client._credentials(Access(host, token=SECRET), host)
        said = capsys.readouterr().err
        assert ("unencrypted" in said) is warned
        assert SECRET not in said
