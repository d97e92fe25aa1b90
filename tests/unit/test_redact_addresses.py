"""Addresses with a secret in them are found, however they are written."""

import pytest

from gkd_core.redact import address_with_secret


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("http://me:secret@host/x", "http://***@…"),
        ("overrides=[tracking.uri=https://TOKEN@host]", "https://***@…"),
        ("ssh://git:secret@host/x", "ssh://***@…"),
        ("ssh://git@host/x.git", None),
        ("git@host:x.git", None),
        ("http://host:5000/a@b", None),
        ("s3://bucket/key", None),
        ("https://host/x?token=T", "https://…=***"),
        ("https://host/x?part=1&access_token=T", "https://…=***"),
        ("https://host/x?X-Amz-Signature=T&y", "https://…=***"),
        ("https://account.blob.example/x?sv=1&sig=T", "https://…=***"),
        ("postgresql://host/db?sslpassword=T", "postgresql://…=***"),
        ("https://host/x?tokens=7", None),
        ("https://host/x?design=7", None),
        ("https://host/x?token=", None),
        ("https://host/token=x", None),
        ("", None),
    ],
)
def test_address_with_secret(text, found):
    assert address_with_secret(text) == found
