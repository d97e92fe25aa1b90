"""What tests of several files of models share."""

import urllib.request
from pathlib import Path

import pytest
import torch


@pytest.fixture
def torch_hub(tmp_path, monkeypatch) -> Path:
    """Where torch.hub keeps what it fetched, empty; nothing can be fetched."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def no_network(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    monkeypatch.setattr(torch.hub, "urlopen", no_network)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder
