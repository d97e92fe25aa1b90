"""`gkd bench deploy`: where its file may lie, told before minutes of measuring."""

from pathlib import Path

import pytest

from components import bench
from gkd_core.errors import GkdError
from gkd_core.evaluation.deploy_bench import read_bench
from gkd_core.files import folder_digest


@pytest.mark.parametrize(("batches", "told"), [([4], True), ([1, 4], False)])
def test_that_a_file_says_nothing_to_the_gate_is_told(batches, told, tmp_path, make_deploy, capsys):
    deploy, out = make_deploy(tmp_path / "deploy"), tmp_path / "bench.json"
    found = bench.run(model=str(deploy), out=out, batches=batches, runs=10, warmup=0)
    assert (found.single is None) == told
    assert ("--batches has no 1" in capsys.readouterr().err) == told
    assert read_bench(out) == found


@pytest.mark.parametrize(
    ("model", "out", "words"),
    [
        ("deploy", "there", "--out there is a folder: name a file"),
        ("deploy", "nowhere/bench.json", "--out nowhere/bench.json would lie in a folder that is not there"),
        ("deploy/model.onnx", "deploy/model.onnx", "--out deploy/model.onnx would replace the model"),
        ("deploy", "deploy/deploy-bench.json", "which gkd wrote and would be another then"),
    ],
)
def test_a_place_that_no_file_may_have_is_refused_before_anything_is_measured(
    model, out, words, tmp_path, make_deploy, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench, "bench_deploy", lambda *_, **__: pytest.fail("measured"))
    make_deploy(tmp_path / "deploy")
    (tmp_path / "there").mkdir()
    before = folder_digest(tmp_path / "deploy")
    with pytest.raises(GkdError, match=words):
        bench.run(model=model, out=Path(out))
    assert folder_digest(tmp_path / "deploy") == before
