"""Secrets are taken out of text, and addresses with one are found, however they are written."""

import pytest

from gkd_core.redact import address_with_secret, redact

SECRET = "s3cr3t-p4ss"


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


@pytest.mark.parametrize(
    "text",
    [
        f"postgresql://gkd:{SECRET}@db/mlflow",
        f"postgresql+psycopg2://gkd:{SECRET}@x/@db:5432/mlflow",
        f"https://gkd:{SECRET}/with@and/slash@host:5000",
        f"https://{SECRET}@host/",
        f"https://:{SECRET}@host/",
        f"postgresql://db/mlflow?user=gkd&password={SECRET}",
        f"cannot reach ('https://gkd:{SECRET}@host') twice: https://gkd:{SECRET}@host",
        f"gkd serve --token {SECRET} --port 80",
        f"gkd register --set tracking.uri=https://gkd:{SECRET}@host",
        f"AWS_SECRET_ACCESS_KEY={SECRET}",
    ],
)
def test_secrets_are_taken_out_of_text(text: str) -> None:
    assert SECRET not in redact(text)
    assert "***" in redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:////data/mlflow.db",
        "https://host:5000/path",
        "models:/gkd-student@champion",
        "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN",
        "the token file x cannot be read",
        "--token and --token-file say twice who asks: pass one of them",
        "pass --token or --cookie",
        "gkd distill --set train.seed=3 --out student",
    ],
)
def test_other_text_stays_as_it_is(text: str) -> None:
    assert redact(text) == text
