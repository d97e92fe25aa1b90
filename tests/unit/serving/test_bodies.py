"""Bodies of requests: packed ones unpack to what they were or are refused, and their bytes count while held."""

import asyncio
import contextlib
import gzip
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request

from gkd_core.serving.bodies import Bodies, decompress
from gkd_core.serving.limits import Limits, Overloaded
from gkd_core.serving.tensors import ProtocolError

PACK = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
    "identity": bytes,
    " Identity ": bytes,
}


@settings(deadline=None)
@given(st.binary(max_size=200), st.sampled_from(sorted(PACK)))
def test_a_packed_body_unpacks_to_what_it_was(body, encoding):
    assert decompress(PACK[encoding](body), encoding, 200) == body


@pytest.mark.parametrize(
    ("body", "encoding", "status", "sentence"),
    [
        (gzip.compress(bytes(10_000_000), mtime=0), "gzip", 413, "more than the 1000 bytes"),
        (zlib.compress(bytes(1001)), "deflate", 413, "more than the 1000 bytes"),
        (gzip.compress(b"abc", mtime=0)[:-5], "gzip", 400, "cut short"),
        (gzip.compress(b"abc", mtime=0) + b"more", "gzip", 400, "bytes follow"),
        (b"abc", "gzip", 400, "gzip"),
        (b"", "deflate", 400, "cut short"),
        (b"abc", "br", 415, "gzip, deflate"),
        (b"abc", "gzip, gzip", 415, "gzip, deflate"),
    ],
    ids=lambda value: "body" if isinstance(value, bytes) else None,
)
def test_a_packed_body_is_refused(body, encoding, status, sentence):
    with pytest.raises(ProtocolError, match=sentence) as told:
        decompress(body, encoding, 1000)
    assert told.value.status == status


@settings(deadline=None)
@given(st.binary(max_size=100), st.sampled_from(["gzip", "deflate", "x-gzip", "?"]))
def test_whatever_is_unpacked_has_no_more_bytes_than_allowed(body, encoding):
    with contextlib.suppress(ProtocolError):
        assert len(decompress(body, encoding, 50)) <= 50


def request(*parts: bytes, **headers: str) -> Request:
    messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    messages.append({"type": "http.request", "body": b"", "more_body": False})
    raw = [(name.replace("_", "-").encode(), text.encode()) for name, text in headers.items()]

    async def receive() -> dict:
        return messages.pop(0)

    return Request({"type": "http", "method": "POST", "path": "/", "headers": raw}, receive)


def test_bytes_count_until_a_body_is_done_with():
    async def story() -> None:
        bodies = Bodies(Limits(max_request_bytes=60, memory_bytes=100))
        async with bodies.read(request(bytes(40), bytes(20))) as first:
            assert first == bytes(60)
            async with bodies.read(request(bytes(40))):
                with pytest.raises(Overloaded) as told:
                    await bodies.read(request(b"x")).__aenter__()
                assert (told.value.status, told.value.reason) == (503, "memory")
        packed = gzip.compress(bytes(50), mtime=0)
        for _ in range(3):  # room comes back after a failure too
            with pytest.raises(ProtocolError, match="cut short"):
                await bodies.read(request(packed[:-1], content_encoding="gzip")).__aenter__()
            async with bodies.read(request(packed, content_encoding="gzip")) as unpacked:
                assert unpacked == bytes(50)
        async with bodies.read(request(bytes(60))), bodies.read(request(bytes(40))):
            pass

    asyncio.run(story())


def test_a_whole_request_always_fits():
    async def story() -> None:
        async with Bodies(Limits(max_request_bytes=60, memory_bytes=10)).read(request(bytes(60))) as body:
            assert body == bytes(60)

    asyncio.run(story())


@pytest.mark.parametrize("headers", [{}, {"content_length": "61"}, {"content_length": "9" * 5000}])
def test_a_body_larger_than_allowed_is_refused(headers):
    bodies = Bodies(Limits(max_request_bytes=100))
    for parts in [(bytes(30), bytes(31))] if not headers else [()]:  # an announced one before any of it is read
        with pytest.raises(ProtocolError, match="60 bytes") as told:
            asyncio.run(bodies.read(request(*parts, **headers), 60).__aenter__())
        assert told.value.status == 413
