"""The worked example in CONTRIBUTING.md, run as it stands there."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

from components import distill, teacher
from gkd_core import schemes
from gkd_core.config import parse_params
from gkd_core.errors import GkdError
from gkd_core.files import read_json
from gkd_core.methods import METHODS, Method

ROOT = Path(__file__).parents[2]
MOMENT = {"epochs": 2, "batch_size": 50, "learning_rate": 0.01, "device": "cpu"}


@pytest.fixture
def example(tmp_path, monkeypatch) -> str:
    """The example's file as a module and its entry in METHODS; the method's name."""
    file, entry = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    path = re.match(r"# (gkd_core/losses/\w+\.py)\n", file).group(1)
    assert not (ROOT / path).exists(), "the example is a method of ours by now: take another"
    name = path.removesuffix(".py").replace("/", ".")
    (tmp_path / "example.py").write_text(file)
    spec = importlib.util.spec_from_file_location(name, tmp_path / "example.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    (method,) = (entries := eval("{" + entry + "}", {"Method": Method}))
    monkeypatch.setitem(METHODS, method, entries[method])
    return method


def test_two_epochs_with_it(example, tmp_path, few_digits):
    content = {
        "teacher": {"name": "resnet8", "train": MOMENT},
        "student": {"name": "resnet8"},
        "train": MOMENT,
        "distill": {"method": example, "schedule": "gompertz", "options": {example: {"weight": 0.5}}},
    }
    params = parse_params(content)
    folders = {"data": few_digits, "work": tmp_path / "work", "params": params}
    teacher.run(**folders, out=tmp_path / "teacher")
    distill.run(**folders, teacher=tmp_path / "teacher", out=tmp_path / "student")
    facts = read_json(tmp_path / "student" / "training.json", "the student")
    assert facts["epochs"] == 2
    assert facts["hyperparameters"] == {"weight": 0.5}
    assert "train_logits" in (tmp_path / "student" / "history.csv").read_text()


def test_everything_else_knows_it_from_the_entry_and_the_signature(example):
    from pipelines.catalogue import method_rows

    row = {each["name"]: each for each in method_rows()}[example]
    assert row["hyperparameters"] == {"weight": 1.0}
    assert example in schemes.get("ensemble").methods
    with pytest.raises(GkdError, match=rf"'distill\.options\.{example}\.weigth'.*\.weight'"):
        parse_params({"distill": {"method": example, "options": {example: {"weigth": 1.0}}}})
