"""Checkpoints: whole or not at all, and only one's own."""

import pickle
from pathlib import Path

import pytest
import torch

from gkd_core.errors import GkdError
from gkd_core.training.checkpoint import load_checkpoint, save_checkpoint


def test_what_was_saved_comes_back(tmp_path):
    path = tmp_path / "deep" / "checkpoint.pt"
    save_checkpoint(path, {"fingerprint": "f", "x": torch.arange(3), "rows": [{"a": 0.1}]})
    content = load_checkpoint(path, "f")
    assert content is not None
    assert torch.equal(content["x"], torch.arange(3))
    assert content["rows"] == [{"a": 0.1}]
    assert [p.name for p in path.parent.iterdir()] == ["checkpoint.pt"]


def test_none_yet_is_none(tmp_path):
    assert load_checkpoint(tmp_path / "checkpoint.pt", "f") is None


def test_a_half_written_temporary_file_is_swept_away(tmp_path):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"fingerprint": "f"})
    (tmp_path / ".checkpoint.pt.4711.tmp").write_bytes(b"half")
    assert load_checkpoint(path, "f") == {"fingerprint": "f"}
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_another_configurations_checkpoint_is_refused(tmp_path):
    save_checkpoint(tmp_path / "c.pt", {"fingerprint": "other"})
    with pytest.raises(GkdError, match="another configuration"):
        load_checkpoint(tmp_path / "c.pt", "mine")


def test_a_damaged_checkpoint_is_named_not_resumed(tmp_path):
    path = tmp_path / "c.pt"
    save_checkpoint(path, {"fingerprint": "f", "x": torch.randn(1000)})
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(GkdError, match="is damaged"):
        load_checkpoint(path, "f")


class _Attack:
    def __reduce__(self):
        return Path.touch, (Path("owned"),)


def test_a_pickle_that_runs_code_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.pt").write_bytes(pickle.dumps(_Attack()))
    with pytest.raises(GkdError, match="is damaged"):
        load_checkpoint(tmp_path / "c.pt", "f")
    assert not (tmp_path / "owned").exists()
