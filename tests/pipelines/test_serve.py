"""A real `gkd serve` and its clients: the public one of the protocol, careless and vanishing ones."""

import contextlib
import gzip
import json
import re
import shutil
import signal
import socket
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
import tritonclient.http as triton
from PIL import Image, ImageOps
from tritonclient.utils import InferenceServerException

from components.model_source import load_model
from gkd_core.data.images import read_pixels
from gkd_core.serving.app import LONG_JSON
from gkd_core.serving.classify import classify_files, softmax
from tests.pipelines.conftest import INFER, body, expected, logits

IMAGES = np.random.default_rng(1).integers(0, 256, (16, 8, 8, 1), dtype=np.uint8)


@pytest.fixture(scope="module")
def deploy(tmp_path_factory, make_deploy) -> Path:
    return make_deploy(tmp_path_factory.mktemp("first") / "deploy", seed=1)


@pytest.fixture(scope="module")
def server(start, deploy):
    """One for all tests that leave it as it was."""
    return start(
        deploy,
        *("--max-batch", "16", "--max-delay-ms", "2", "--max-request-bytes", "65536", "--poll-seconds", "0.1"),
    )


@pytest.fixture(autouse=True)
def _still_there(request) -> Iterator[None]:
    """Whatever a test did to the shared server, it answers afterwards as before."""
    yield
    if "server" in request.fixturenames:
        server, deploy = request.getfixturevalue("server"), request.getfixturevalue("deploy")
        assert server.process.poll() is None
        assert np.allclose(server.infer(IMAGES[:2]).logits, expected(deploy / "model.onnx", IMAGES[:2]), atol=1e-5)


# The protocol's own client


def test_metadata(server, deploy):
    with triton.InferenceServerClient(server.address) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("gkd-student")
        assert client.is_model_ready("gkd-student", "1")
        assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
        known = client.get_model_metadata("gkd-student")
        assert known == client.get_model_metadata("gkd-student", "1")
    assert known["versions"] == ["1"]
    assert known["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, 8, 8, 1]}]
    assert known["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [-1, 10]}]
    manifest = json.loads((deploy / "manifest.json").read_text())
    facts = known["parameters"]
    assert facts["classes"] == manifest["classes"]
    assert facts["model_sha256"] == manifest["model"]["sha256"] == server.told["model_sha256"]
    assert facts["precision"] == "fp32"
    for digest in ("data_sha256", "teacher_digest", "student_digest", "config_digest"):
        assert facts[digest] == manifest[digest]


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("answer", [None, False, True])
def test_results_are_those_of_onnxruntime(server, deploy, binary, answer, compression):
    tensor = triton.InferInput("image", IMAGES.shape, "UINT8")
    tensor.set_data_from_numpy(IMAGES, binary_data=binary)
    outputs = None if answer is None else [triton.InferRequestedOutput("logits", binary_data=answer)]
    with triton.InferenceServerClient(server.address) as client:
        result = client.infer(
            "gkd-student",
            [tensor],
            outputs=outputs,
            request_id="seven",
            request_compression_algorithm=compression,
            response_compression_algorithm=compression,
        )
    assert np.array_equal(result.as_numpy("logits"), expected(deploy / "model.onnx", IMAGES))
    said = result.get_response()
    assert (said["id"], said["model_name"], said["model_version"]) == ("seven", "gkd-student", "1")


def test_its_errors_are_sentences(server):
    tensor = triton.InferInput("imge", IMAGES.shape, "UINT8")
    tensor.set_data_from_numpy(IMAGES)
    with triton.InferenceServerClient(server.address) as client:
        with pytest.raises(InferenceServerException, match="input 'imge' is unknown; did you mean 'image'"):
            client.infer("gkd-student", [tensor])
        with pytest.raises(InferenceServerException, match="model 'student' is unknown; did you mean 'gkd-student'"):
            client.infer("student", [tensor])
        with pytest.raises(InferenceServerException, match="served in version 1, not '2'"):
            client.get_model_metadata("gkd-student", "2")
        assert not client.is_model_ready("gkd-student", "9")


def test_a_photo_of_a_telephone_gets_one_answer_whoever_resizes_it(start, make_deploy, tmp_path):
    """4000 × 3000 pixels, turned by EXIF: `gkd predict`, /classify, and a client that sends its pixels as they are."""
    deploy = make_deploy(tmp_path / "deploy", side=32, channels=3, pixels=True)
    across, down = np.meshgrid(np.linspace(0, 9, 4000), np.linspace(0, 7, 3000))
    waves = np.stack([np.sin(across), np.cos(down), np.sin(across * down)], axis=-1)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray((127.5 + 127 * waves).astype(np.uint8)).save(photo := tmp_path / "photo.jpg", exif=turned)

    server = start(deploy)
    classes = json.loads((deploy / "manifest.json").read_text())["classes"]
    told = classify_files(load_model(str(deploy)), [photo], 10)[0]["predictions"]
    answers = {"predict": {row["class"]: row["probability"] for row in told}}
    reply = server.ask("POST", "/classify?top=10", photo.read_bytes())
    answers["classify"] = {row["class"]: row["probability"] for row in reply.json["predictions"]}
    whole = np.asarray(ImageOps.exif_transpose(Image.open(photo)))
    drafted = Image.open(photo)
    drafted.draft(None, (64, 64))
    reduced = np.asarray(ImageOps.exif_transpose(drafted))
    assert (whole.shape, reduced.shape) == ((4000, 3000, 3), (500, 375, 3))
    with triton.InferenceServerClient(server.address) as client:
        assert client.is_model_ready("gkd-student-pixels")
        (input,) = client.get_model_metadata("gkd-student-pixels")["inputs"]
        assert input == {"name": "pixels", "datatype": "UINT8", "shape": [-1, -1, -1, 3]}
        for name, pixels in (("whole", whole), ("at a fraction", reduced), ("read by gkd", read_pixels(photo, 32))):
            tensor = triton.InferInput("pixels", [1, *pixels.shape], "UINT8")
            tensor.set_data_from_numpy(pixels[None])
            result = client.infer("gkd-student-pixels", [tensor]).as_numpy("logits")
            answers[name] = dict(zip(classes, softmax(result)[0], strict=True))
    for name, found in answers.items():
        assert max(found, key=found.get) == told[0]["class"], name
        assert found == pytest.approx(answers["predict"], abs=1e-3 if name == "whole" else 2e-6), name


# Careless clients

HEAD = b'{"inputs":[{"name":"image","datatype":"UINT8","shape":[1,8,8,1],"parameters":{"binary_data_size":64}}]}'


@pytest.mark.parametrize(
    ("content", "headers", "status", "sentence"),
    [
        (b'{"inputs": [', {}, 400, "Invalid JSON"),
        (body(np.repeat(IMAGES, 2, axis=0)), {}, 400, "at most 16 images, this one 32"),
        (HEAD + bytes(60), {"inference_header_content_length": str(len(HEAD))}, 400, "60 follow"),
        (HEAD + bytes(64), {}, 400, "Invalid JSON"),
        (b" " * 5_000_000, {}, 413, "larger than the 65536 bytes"),
        (gzip.compress(bytes(50_000_000), mtime=0), {"content_encoding": "gzip"}, 413, "unpacks to more"),
        (b"{}", {"content_encoding": "br"}, 415, "not one of gzip, deflate, identity"),
    ],
    ids=lambda value: "body" if isinstance(value, bytes) else None,  # some are of megabytes
)
def test_each_mistake_is_answered_in_one_sentence(server, content, headers, status, sentence):
    reply = server.ask("POST", INFER, content, **headers)
    assert reply.status == status
    assert list(reply.json) == ["error"]
    assert sentence in reply.json["error"]
    assert "\n" not in reply.json["error"]


def test_a_body_has_no_more_bytes_than_its_images_can_need(start, deploy):
    server = start(deploy, "--max-batch", "4096", "--queue", "4096")
    needed = 4096 * 64 * 8 + 65536
    full = np.repeat(IMAGES, 256, axis=0)
    assert len(body(full)) > LONG_JSON  # read in a process
    for content, headers in ((body(full), {}), (gzip.compress(body(full), mtime=0), {"content_encoding": "gzip"})):
        reply = server.ask("POST", INFER, content, **headers)
        assert np.allclose(reply.logits, expected(deploy / "model.onnx", full), atol=1e-5)

    flood = b'{"inputs": [' + b"[]," * 5_000_000
    packed = gzip.compress(flood, mtime=0)
    assert len(packed) < 65536
    reply = server.ask("POST", INFER, packed, content_encoding="gzip")
    assert (reply.status, reply.json) == (
        413,
        {"error": f"the body unpacks to more than the {needed} bytes that are allowed"},
    )
    reply = server.ask("POST", INFER, flood[: needed + 1])
    assert reply.status == 413
    assert f"larger than the {needed} bytes" in reply.json["error"]
    reply = server.ask("POST", INFER, flood[:needed])  # as large as it may be, and nonsense
    assert reply.status == 400
    assert "the body is no infer request" in reply.json["error"]


def test_a_body_of_unknown_length_has_the_same_limits(server, deploy):
    content = body(IMAGES[:3])
    with contextlib.closing(server.connection()) as client:
        client.request("POST", INFER, iter([content[:100], content[100:]]), encode_chunked=True)
        assert np.allclose(logits(client.getresponse().read()), expected(deploy / "model.onnx", IMAGES[:3]), atol=1e-5)
        client.request("POST", INFER, iter([b" " * 40_000] * 3), encode_chunked=True)
        assert client.getresponse().status == 413


def test_the_content_type_does_not_matter(server):
    for kind in ("text/plain", "application/x-www-form-urlencoded", "nonsense"):
        assert server.ask("POST", INFER, body(IMAGES[:1]), content_type=kind).status == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v2/nothing", 404), ("GET", INFER, 405), ("DELETE", "/v2", 405), ("GET", "/page/../page.js/x", 404),
     ("GET", "/v2/models/%2e%2e%2fetc", 404), ("POST", "/classify?top=x", 400), ("POST", "/classify?top=0", 400)],
)  # fmt: skip
def test_what_is_not_there_is_said_in_json(server, method, path, status):
    reply = server.ask(method, path)
    assert reply.status == status
    assert list(reply.json) == ["error"]


def test_what_is_not_http_is_told_so(server):
    with server.socket() as client:
        client.sendall(b"hello\r\n\r\n")
        assert client.makefile("rb").read().startswith(b"HTTP/1.1 400 ")


# What curl --http2 and the JDK's client ask for with the first request they send to a plain address.
UPGRADE = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQBAAAAAAIAAAAA\r\n"
HIDDEN = b"GET /metrics HTTP/1.1\r\nhost: hidden\r\n\r\n"


def heard(client: socket.socket) -> bytes:
    """What is still said on a connection, until it is closed or reset."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := client.recv(1 << 16):
            parts.append(part)
    return b"".join(parts)


def test_a_request_for_an_upgrade_is_answered_and_its_body_is_no_request(server):
    with server.socket() as client:
        client.sendall(b"GET /v2 HTTP/1.1\r\nhost: x\r\n" + UPGRADE + b"\r\n")
        told = client.makefile("rb").read()  # ends when the server closes
        assert told.startswith(b"HTTP/1.1 200 OK")
    with server.socket() as client:
        client.sendall(
            b"POST %s HTTP/1.1\r\nhost: x\r\n%scontent-length: %d\r\n\r\n" % (INFER.encode(), UPGRADE, len(HIDDEN))
        )
        with contextlib.suppress(OSError):  # the server may have closed already
            client.sendall(HIDDEN)
        told = heard(client)
    assert re.findall(rb"HTTP/1.1 (\d+)", told) == [b"400"]
    assert "without Upgrade" in json.loads(told.partition(b"\r\n\r\n")[2])["error"]


# Ones that vanish, and many at once


def test_clients_that_vanish_leave_nothing_behind(server, deploy, until):
    request = b"POST " + INFER.encode() + b" HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n"
    whole = body(IMAGES[:4])
    for number in range(40):
        client = server.socket()
        client.sendall(request % len(whole) + whole[: len(whole) if number % 2 else number * 10])
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close with a reset
        client.close()
    until(lambda: server.metric("gkd_connections") == 1, "only the one who asks is connected")
    until(lambda: server.metric("gkd_queue_images") == 0, "nothing of theirs waits")
    assert np.allclose(server.infer(IMAGES[:4]).logits, expected(deploy / "model.onnx", IMAGES[:4]), atol=1e-5)


def test_everybody_gets_the_own_answer(server, deploy):
    answers = expected(deploy / "model.onnx", IMAGES)

    def client(seed: int) -> int:
        random = np.random.default_rng(seed)
        connection = server.connection()
        for _ in range(15):
            chosen = random.integers(0, 16, random.integers(1, 5))
            connection.request("POST", INFER, body(IMAGES[chosen]))
            reply = connection.getresponse()
            assert reply.status == 200
            assert np.allclose(logits(reply.read()), answers[chosen], atol=1e-5)
        connection.close()
        return 15

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(client, range(8))) == 120


def test_no_room_is_said_and_who_was_let_in_is_answered_after_sigterm(start, deploy, until):
    # A batch of eight that is not full waits for a minute.
    waits = "--queue 8 --max-batch 8 --max-delay-ms 60000 --drain-seconds 600 --timeout 600"
    server = start(deploy, *waits.split())
    with ThreadPoolExecutor(7) as pool:
        waiting = [pool.submit(server.infer, IMAGES[number : number + 1]) for number in range(7)]
        until(lambda: server.metric("gkd_queue_images") == 7, "seven wait")
        refused = server.infer(IMAGES[:3])
        assert refused.status == 503
        assert refused.headers["retry-after"] == "1"
        assert "7 images are waiting already, 8 may" in refused.json["error"]
        assert server.metric('gkd_refused_total{reason="queue"}') == 1

        server.process.send_signal(signal.SIGTERM)
        until(lambda: server.ask("GET", "/v2/health/ready").status == 503, "it says that it is leaving")
        assert server.ask("GET", "/v2/health/live").status == 200
        assert server.metric("gkd_queue_images") == 7
        replies = [server.infer(IMAGES[7:8]), *(one.result() for one in waiting)]
        assert server.metric("gkd_batch_requests_sum") == 8 * server.metric("gkd_batch_requests_count") == 8
    assert [reply.status for reply in replies] == [200] * 8
    assert {reply.headers["connection"] for reply in replies} == {"close"}
    answers = np.concatenate([reply.logits for reply in [*replies[1:], replies[0]]])
    assert np.allclose(answers, expected(deploy / "model.onnx", IMAGES[:8]), atol=1e-5)
    last = server.stop()  # told twice, it waits no longer for others to notice
    assert last["accepted"] == last["answered"]


def test_a_request_that_had_begun_is_answered_after_nothing_new_is_taken(start, deploy, until):
    server = start(deploy, "--drain-seconds", "0", "--max-connections", "2")
    with server.socket(), server.socket():
        assert server.ask("GET", "/v2").status == 503  # one connection too many
    until(lambda: server.ask("GET", "/v2").status == 200, "they are gone")
    content = body(IMAGES[:2])

    def closed() -> bool:
        try:
            server.socket().close()
        except ConnectionRefusedError:
            return True
        return False

    with server.socket() as client:
        client.sendall(b"POST %s HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % (INFER.encode(), len(content)))
        client.sendall(content[:100])
        until(lambda: server.metric("gkd_connections") == 2, "it has been read")
        server.process.send_signal(signal.SIGTERM)
        until(closed, "nothing new is taken")
        client.sendall(content[100:])
        head, _, answer = heard(client).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK")
    assert np.allclose(logits(answer), expected(deploy / "model.onnx", IMAGES[:2]), atol=1e-5)
    last = server.ended()
    assert last["accepted"] == last["answered"]


def test_sigterm_during_load_drops_nothing_that_was_accepted(start, deploy, until, load_on):
    server = start(deploy, "--drain-seconds", "0.5", "--poll-seconds", "60")
    with load_on(server, IMAGES[:2], expected(deploy / "model.onnx", IMAGES[:2])) as load:
        until(lambda: load.heard[0] > 50, "load")
        last = server.stop()
    assert load.others == []
    # Every request the server read was answered to somebody: the rest never got through its door.
    assert last["accepted"] == last["answered"] == load.heard[0]


@pytest.mark.slow
def test_a_server_killed_during_load_starts_again_as_it_was(start, deploy, until, load_on):
    server = start(deploy, "--poll-seconds", "60")
    port = server.address.partition(":")[2]
    with load_on(server, IMAGES[:2], expected(deploy / "model.onnx", IMAGES[:2])) as load:
        until(lambda: load.heard[0] > 20, "load")
        server.process.kill()
        server.process.wait()
        so_far = load.heard[0]
        again = start(deploy, "--port", port, "--poll-seconds", "60")
        until(lambda: load.heard[0] > so_far + 20, "the same clients are served again")
    assert load.others == []
    assert load.broken > 0
    assert again.told["model_sha256"] == server.told["model_sha256"]


def test_a_file_replaced_while_serving(start, deploy, make_deploy, tmp_path, until, load_on):
    model, other = tmp_path / "model.onnx", make_deploy(tmp_path / "other", seed=2) / "model.onnx"
    shutil.copy(deploy / "model.onnx", model)
    server = start(model, "--poll-seconds", "0.1")
    old, new = expected(model, IMAGES[:2]), expected(other, IMAGES[:2])

    def put(content: bytes) -> None:
        (tmp_path / "coming").write_bytes(content)
        (tmp_path / "coming").replace(model)

    with load_on(server, IMAGES[:2], old, new) as load:
        until(lambda: load.heard[0] > 20, "load")
        put(b"this is no model" * 1000)
        until(lambda: server.metric('gkd_reloads_total{outcome="refused"}') == 1, "the garbage is refused")
        assert server.metric("gkd_model_stale") == 1
        so_far = load.heard[0]
        until(lambda: load.heard[0] > so_far + 20, "the old model goes on")
        assert load.heard[1] == 0

        put(other.read_bytes())
        until(lambda: load.heard[1] > 20, "the new model answers")
        assert server.metric("gkd_model_stale") == 0
        model.unlink()  # even with nothing there it goes on
        until(lambda: server.metric('gkd_reloads_total{outcome="unreachable"}') > 0, "it noticed")
        so_far = load.heard[1]
        until(lambda: load.heard[1] > so_far + 20, "it goes on")
    assert load.others == []
    assert load.broken == 0
    assert server.ask("GET", "/v2/models/gkd-student").json["versions"] == ["2"]
    refused = server.events("model-refused")
    assert len(refused) == 1
    assert "is not an ONNX model that onnxruntime can open" in refused[0]["reason"]


# The token


def test_with_a_token_only_who_has_it_is_served(start, deploy):
    server = start(deploy, "--log-requests", GKD_TOKEN="open-sesame-7")
    for path in ("/v2/health/live", "/v2/health/ready", "/", "/page.js"):
        assert server.ask("GET", path).status == 200
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic open-sesame-7"}):
        for method, path in (
            ("GET", "/v2"),
            ("POST", INFER),
            ("GET", "/metrics"),
            ("POST", "/classify"),
            ("GET", "/x"),
        ):
            reply = server.ask(method, path, **headers)
            assert reply.status == 401
            assert reply.headers["www-authenticate"] == "Bearer"
            assert "wants its token" in reply.json["error"]
    tensor = triton.InferInput("image", IMAGES.shape, "UINT8")
    tensor.set_data_from_numpy(IMAGES)
    with triton.InferenceServerClient(server.address) as client:
        result = client.infer("gkd-student", [tensor], headers={"Authorization": "Bearer open-sesame-7"})
    assert np.array_equal(result.as_numpy("logits"), expected(deploy / "model.onnx", IMAGES))
    metrics = server.ask("GET", "/metrics", authorization="bearer open-sesame-7")
    assert metrics.status == 200
    server.stop()
    assert b"sesame" not in metrics.content
    assert "sesame" not in server.log.read_text()


# Starting


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nothing"], "neither an ONNX file nor a folder"),
        (["{garbage}"], "is not an ONNX model that onnxruntime can open"),
        (["{deploy}", "--precision", "int8"], "has no int8 model"),
        (["{deploy}", "--precision", "int9"], "precision 'int9' is unknown; did you mean 'int8'"),
        (["{deploy}", "--host", "192.0.2.1"], "cannot be listened on"),
        (["{deploy}", "--queue", "3"], "--queue 3 is smaller than --max-batch 64"),
        (["{deploy}", "--token-file", "{empty}"], "holds no token"),
        (["models:/gkd-student@champion"], "mlflow.db"),
        (["models:/gkd-student"], "is not of the form models:/NAME@ALIAS"),
        (["{deploy}", "--name", ""], "cannot be served by the name ''"),
        (["{deploy}", "--name", "a/b"], "cannot be served by the name 'a/b'"),
        (["{deploy}", "--name", ".."], "cannot be served by the name '..'"),
        (["{deploy}", "--name", "a\x1bb"], r"cannot be served by the name 'a\x1bb'"),
        (["{deploy}", "--name", "a" * 201], "choose another with --name, of up to 200 printable characters"),
        (["{bundle}"], "cannot be served by the name 'red/bird'"),
    ],
)  # fmt: skip
def test_what_cannot_be_served_is_said_in_one_sentence(deploy, tmp_path, capsys, monkeypatch, arguments, sentence):
    from gkd_core.errors import GkdError
    from pipelines.cli import app

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("GKD_TOKEN", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "garbage").write_bytes(b"\x08\x07garbage")
    (tmp_path / "empty").write_text("\n")
    shutil.copytree(deploy, tmp_path / "bundle")
    (tmp_path / "bundle" / "bundle.json").write_text('{"name": "red/bird", "files": {}}')
    places = {
        "deploy": deploy,
        "bundle": tmp_path / "bundle",
        "garbage": tmp_path / "garbage",
        "empty": tmp_path / "empty",
    }
    with pytest.raises(GkdError) as told:
        app(["serve", *(text.format(**places) for text in arguments), "--port", "0"], standalone_mode=False)
    assert sentence in str(told.value)
    assert "\n" not in str(told.value)


NUMBERS = ["poll-seconds", "max-batch", "max-delay-ms", "queue", "threads", "timeout", "max-request-bytes"]
NUMBERS += ["max-pixels", "max-connections", "drain-seconds", "port"]


@pytest.mark.parametrize("option", NUMBERS)
def test_a_number_out_of_bounds_is_told_so(deploy, option):
    from typer.testing import CliRunner

    from pipelines.cli import app

    for value in ("nan", "-inf", "1" + "0" * 21):
        result = CliRunner().invoke(app, ["serve", str(deploy), "--port", "0", f"--{option}", value])
        assert result.exit_code == 2
        assert f"Invalid value for '--{option}'" in result.stderr


def test_every_number_is_among_them():
    from pipelines.commands.serving import serve

    numbers = [
        name.replace("_", "-") for name, kind in get_type_hints(serve).items() if {int, float} & {kind, *get_args(kind)}
    ]
    assert sorted(numbers) == sorted(NUMBERS)
