"""What is written is read back as it was, by readers of YAML 1.1 (PyYAML) and of 1.2 (ruamel, which DVC reads with)."""

import io
import random

import pytest
import yaml
from ruamel.yaml import YAML

from gkd_core.config.load import parse_yaml
from gkd_core.yaml_text import dump_documents, dump_yaml

READERS = {
    "PyYAML": yaml.safe_load,
    "ruamel": lambda text: YAML(typ="safe", pure=True).load(io.StringIO(text)),
    "gkd": lambda text: parse_yaml(text, "file"),
}
NUMBERS_SOMEWHERE = [
    "12e34567",
    "7e9",
    "1E+5",
    ".5e3",
    "-2.e1",
    "0o17",
    "017",
    "07120911",
    "1_000",
    "1:30",
    "1.5",
    "0x1f",
    ".inf",
]
OTHER = ["no", "null", "~", "", " a", "2026-11-30", "a: b", "# c", "Grün", "two\nlines", "e12", "12e", "yes", "<<", "="]


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
@pytest.mark.parametrize("text", NUMBERS_SOMEWHERE + OTHER)
def test_a_text_stays_a_text(read, text):
    content = {"value": text, text or "empty": [text]}
    assert read(dump_yaml(content)) == content
    assert read(dump_documents([content])) == content


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_identifiers_of_hexadecimal_digits_stay_as_they_are(read):
    drawn = random.Random(0)
    identifiers = [f"{drawn.getrandbits(32):08x}" for _ in range(2000)]
    assert read(dump_yaml(identifiers)) == identifiers


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_numbers_stay_numbers(read):
    content = {"small": 1e-05, "large": 1e22, "half": 0.5, "whole": 17, "none": None, "yes": True}
    back = read(dump_yaml(content))
    assert back == content
    assert {key: type(value) for key, value in back.items()} == {key: type(value) for key, value in content.items()}
