"""A download appears whole and as published, or not at all; served here by a small server that misbehaves."""

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from gkd_core.data.download import download
from gkd_core.errors import GkdError

CONTENT = bytes(range(256)) * 5000
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Answers with what stands in `script`, one entry a request: whole, cut, other, or a status."""

    daemon_threads = True
    script: list[str]
    asked: int

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/file.bin"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked += 1
        what = self.server.script.pop(0) if self.server.script else "whole"
        if what.isdecimal():
            self.send_error(int(what))
            return
        content = CONTENT[::-1] if what == "other" else CONTENT
        self.send_response(200)
        if what != "endless":
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if what == "cut" else content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server(("127.0.0.1", 0), Handler)
    running.script, running.asked = [], 0
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield running
    running.shutdown()
    thread.join()
    running.server_close()


@pytest.mark.parametrize(
    ("script", "asked"), [([], 1), (["endless"], 1), (["cut"], 2), (["503", "other"], 3), (["429"], 2)]
)
def test_it_tries_until_the_file_is_whole(server: Server, script: list[str], asked: int, tmp_path: Path) -> None:
    server.script = script
    download(server.address, tmp_path / "new" / "file.bin", MD5, pause_seconds=0.0)
    assert (tmp_path / "new" / "file.bin").read_bytes() == CONTENT
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["file.bin"]
    assert server.asked == asked


@pytest.mark.parametrize(
    ("script", "reason", "asked"),
    [
        (["404"], "the server answers 404", 1),
        (["503"] * 3, "the server answers 503", 3),
        (["cut"] * 3, "what arrived has md5", 3),
        (["other"] * 3, f"published {MD5}", 3),
    ],
)
def test_it_gives_up_in_one_sentence_and_leaves_nothing(
    server: Server, script: list[str], reason: str, asked: int, tmp_path: Path
) -> None:
    server.script = script
    with pytest.raises(GkdError) as error:
        download(server.address, tmp_path / "file.bin", MD5, pause_seconds=0.0)
    assert str(error.value).startswith(f"{server.address} cannot be downloaded (")
    assert reason in str(error.value)
    assert "data.root" in str(error.value)
    assert server.asked == asked
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_leaves_nothing(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        assert [p.suffix for p in tmp_path.iterdir()] == [".part"]
        raise KeyboardInterrupt

    monkeypatch.setattr("gkd_core.data.download.os.fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        download(server.address, tmp_path / "file.bin", MD5)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_named(server: Server, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(GkdError, match=r"cannot be written .*set data\.root to another folder"):
        download(server.address, tmp_path / "taken" / "file.bin", MD5)
