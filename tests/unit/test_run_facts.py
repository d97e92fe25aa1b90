"""What a run says of where it was made."""

import subprocess
from pathlib import Path

import pytest
import torch

from gkd_core import run_facts as module
from gkd_core.run_facts import run_facts, where_it_ran

CPU = torch.device("cpu")


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=n", "-c", "user.email=e@e")
    return subprocess.run(["git", *who, *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """One commit of one file."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    (folder / "run_facts.py").write_text("one")
    git(folder, "init", "-q")
    git(folder, "add", "run_facts.py")
    git(folder, "commit", "-q", "-m", "one")
    return folder


def test_the_commit_is_that_of_the_checkout_one_stands_in(checkout, monkeypatch):
    monkeypatch.chdir(checkout)
    commit = git(checkout, "rev-parse", "HEAD").strip()[:12]
    assert where_it_ran(run_facts(device=CPU))["commit"] == commit
    (checkout / "run_facts.py").write_text("two")
    assert where_it_ran(run_facts(device=CPU))["commit"] == f"{commit}-dirty"


def test_elsewhere_it_is_that_of_the_sources_if_they_are_under_its_care(checkout, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "__file__", str(checkout / "run_facts.py"))
    assert run_facts()["git_revision"] == git(checkout, "rev-parse", "HEAD").strip()
    installed = checkout / "site-packages"
    installed.mkdir()
    (installed / "run_facts.py").write_text("installed")
    monkeypatch.setattr(module, "__file__", str(installed / "run_facts.py"))
    assert run_facts()["git_revision"] is run_facts()["git_dirty"] is None
    assert where_it_ran(run_facts(device=CPU))["commit"] == ""


def test_the_hardware_is_the_processor_and_its_threads(tmp_path):
    facts = {"git_revision": None, "git_dirty": None, "device": "cpu", "cpu": "Processor", "torch": "2"}
    assert where_it_ran(facts | {"threads": 1})["hardware"] == "Processor, 1 thread"
    assert where_it_ran(facts | {"threads": 2})["hardware"] == "Processor, 2 threads"
    assert where_it_ran(facts | {"threads": 2, "device": "NVIDIA H200"})["hardware"] == "NVIDIA H200"
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: A Processor\n")
    assert module._cpu(tmp_path / "cpuinfo") == "A Processor"
    assert module._cpu(tmp_path / "none")
