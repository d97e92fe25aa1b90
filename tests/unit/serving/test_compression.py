"""gzip and deflate, and what pretends to be."""

import contextlib
import gzip
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gkd_core.serving.compression import choose, compress, decompress
from gkd_core.serving.tensors import ProtocolError


@settings(deadline=None)
@given(st.binary(max_size=200), st.sampled_from(["gzip", "deflate"]))
def test_there_and_back(body, encoding):
    assert decompress(compress(body, encoding), encoding, 200) == body
    assert (gzip.decompress if encoding == "gzip" else zlib.decompress)(compress(body, encoding)) == body


@pytest.mark.parametrize("encoding", [None, "", "identity", " Identity "])
def test_identity(encoding):
    assert decompress(b"abc", encoding, 3) == b"abc"


@pytest.mark.parametrize(
    ("body", "encoding", "status", "sentence"),
    [
        (gzip.compress(bytes(10_000_000), mtime=0), "gzip", 413, "unpacks to more than the 1000 bytes"),
        (zlib.compress(bytes(1001)), "deflate", 413, "unpacks to more"),
        (gzip.compress(b"abc", mtime=0)[:-5], "gzip", 400, "cut short"),
        (gzip.compress(b"abc", mtime=0) + b"more", "gzip", 400, "bytes follow"),
        (b"abc", "gzip", 400, "is not the gzip"),
        (b"", "deflate", 400, "cut short"),
        (b"abc", "br", 415, "not one of gzip, deflate, identity"),
        (b"abc", "gzip, gzip", 415, "not one of"),
    ],
    ids=lambda value: "body" if isinstance(value, bytes) else None,
)
def test_what_is_refused(body, encoding, status, sentence):
    with pytest.raises(ProtocolError) as told:
        decompress(body, encoding, 1000)
    assert sentence in str(told.value)
    assert told.value.status == status


@settings(deadline=None)
@given(st.binary(max_size=100), st.sampled_from(["gzip", "deflate", "x-gzip", "?"]))
def test_whatever_comes(body, encoding):
    with contextlib.suppress(ProtocolError):
        assert len(decompress(body, encoding, 50)) <= 50


@pytest.mark.parametrize(
    ("header", "chosen"),
    [(None, None), ("", None), ("br", None), ("gzip", "gzip"), ("br, Deflate;q=0.5", "deflate"),
     ("gzip;q=0, deflate", "deflate"), ("gzip; q=0", None), ("*", None)],
)  # fmt: skip
def test_what_a_client_likes(header, chosen):
    assert choose(header) == chosen
