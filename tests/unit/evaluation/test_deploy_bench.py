"""Latency and throughput on the target: times from a clock that the test moves, files as a person may break them."""

import json
import re

import numpy as np
import pytest

from gkd_core.errors import GkdError
from gkd_core.evaluation import cost, deploy_bench
from gkd_core.evaluation.deploy_bench import Case, DeployBench, bench_deploy, provider_names, read_bench
from gkd_core.files import file_digest
from gkd_core.serving.model import ModelFile

ASKED = {"providers": ["cpu"], "threads": [1], "batches": [1, 2], "runs": 10, "warmup": 0}


@pytest.fixture(scope="module")
def model(tmp_path_factory, make_deploy) -> ModelFile:
    return ModelFile(make_deploy(tmp_path_factory.mktemp("bench") / "deploy") / "model.onnx")


class Clock:
    """Time that passes only while a call of its own runs."""

    def __init__(self, monkeypatch) -> None:
        self.now, self.called = 0, []
        monkeypatch.setattr(cost.time, "perf_counter_ns", lambda: self.now)

    def call(self, name, milliseconds):
        durations = iter(milliseconds)

        def run() -> None:
            self.called.append(name)
            self.now += int(next(durations) * 1e6)

        return run


def test_they_take_turns_and_what_warms_up_is_not_counted(monkeypatch):
    clock = Clock(monkeypatch)
    # Two to warm up (100), then blocks of five and of two, each after one that is not counted (50).
    a = [100, 100, 50, 1, 2, 3, 4, 5, 50, 6, 7]
    told = []
    found = cost.time_in_turns(
        {"a": clock.call("a", a), "b": clock.call("b", [10 * one for one in a])}, runs=7, warmup=2, advance=told.append
    )
    assert found["a"].tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert found["b"].tolist() == [10, 20, 30, 40, 50, 60, 70]
    assert "".join(clock.called) == "aabb" + "aaaaaabbbbbb" + "bbbaaa", "the second block begins with the other"
    assert told == [5, 5, 2, 2]
    # Of 1, …, 7 the median is the fourth, p95 at rank 1 + .95 · 6 = 6.7, p99 at 6.94.
    assert cost.percentiles(found["a"], (50, 95, 99)) == {
        "latency_ms_p50": 4.0,
        "latency_ms_p95": 6.7,
        "latency_ms_p99": 6.94,
    }


def test_every_provider_threads_and_batch_is_a_case(model, monkeypatch):
    milliseconds = {1: [1.0] * 9 + [11.0], 4: [8.0] * 10}
    monkeypatch.setattr(
        deploy_bench, "time_in_turns", lambda calls, **_: {key: np.array(milliseconds[key[-1]]) for key in calls}
    )
    found = bench_deploy(model, **ASKED | {"threads": [1, 2], "batches": [4, 1]})
    assert [(case.threads, case.batch) for case in found.cases] == [(1, 4), (1, 1), (2, 4), (2, 1)]
    assert {case.provider for case in found.cases} == {"CPUExecutionProvider"}
    # 4 images in 8 ms are 500 a second; 10 images in 9 · 1 + 11 = 20 ms too, though the median is 1 ms.
    assert [case.images_per_second for case in found.cases] == [500.0] * 4
    assert found.single == found.cases[1]
    assert found.single.latency_ms_p50 == 1.0
    assert found.single.words() == "CPU, 1 thread"
    assert found.table()[1] == ["CPU", "1", "4", "8.000 ms", "8.000 ms", "8.000 ms", "500.0"]


def test_a_model_is_measured_and_the_file_read_back(model, tmp_path):
    found = bench_deploy(model, **ASKED)
    (tmp_path / "b.json").write_text(json.dumps(found.as_dict()))
    assert read_bench(tmp_path / "b.json") == found
    assert found.model["sha256"] == file_digest(model.file)
    assert found.model["precision"] == "fp32"
    for case in found.cases:
        assert 0 < case.latency_ms_p50 <= case.latency_ms_p95 <= case.latency_ms_p99
        assert case.images_per_second > 0
    assert found.hardware["cores"] >= 1


def test_a_model_for_any_size_is_measured_with_photos(tmp_path, make_deploy):
    deploy = make_deploy(tmp_path / "deploy", channels=3, pixels=True)
    found = bench_deploy(ModelFile(deploy / "model_pixels.onnx"), **{**ASKED, "batches": [1]})
    assert found.model["input_shape"] == [750, 1000, 3]
    assert found.cases[0].batch == 1


def test_providers_have_short_names_and_none_that_runs_nothing():
    assert provider_names()["cpu"] == "CPUExecutionProvider"
    assert "azure" not in provider_names()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"providers": []}, "--providers is empty: name some of cpu"),
        ({"providers": ["cpu", "tpu"]}, "'tpu' is not in this onnxruntime"),
        ({"providers": ["azure"]}, "'azure' is not in this onnxruntime"),
        ({"threads": [1, 0]}, "--threads is 1, 0: give numbers from 1"),
        ({"batches": [4096]}, "--batches is 4096: give numbers from 1 to 1024"),
        ({"batches": []}, "--batches is empty"),
        ({"batches": [1, 8, 1]}, "--batches names 1 twice"),
        ({"threads": [2, 2]}, "--threads names 2 twice"),
        ({"providers": ["cpu", "CPUExecutionProvider"]}, "--providers names CPUExecutionProvider twice"),
        ({"runs": 9}, "--runs is 9: give a number from 10"),
        ({"warmup": -1}, "--warmup is -1: give a number from 0"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(model, change, words):
    with pytest.raises(GkdError, match=re.escape(words)):
        bench_deploy(model, **ASKED | change)


def test_a_provider_that_does_not_start_is_not_measured_as_the_cpu(model, monkeypatch):
    """onnxruntime names what its build has, and goes on with the CPU where the driver lacks."""
    monkeypatch.setattr(deploy_bench, "provider_names", lambda: {"cuda": "CUDAExecutionProvider"})
    with (
        pytest.raises(GkdError, match="CUDAExecutionProvider does not start on this machine"),
        pytest.warns(UserWarning, match="CUDAExecutionProvider"),
    ):
        bench_deploy(model, **ASKED | {"providers": ["cuda"]})


CASE = Case("CPUExecutionProvider", 1, 1, 1.0, 2.0, 3.0, 900.0)
WRITTEN = DeployBench(
    {"file": "model.onnx", "sha256": "a" * 64, "precision": "fp32"},
    {"processor": "A", "cores": 4, "system": "Linux", "onnxruntime": "1.31"},
    10,
    0,
    [CASE],
).as_dict()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 2}, "wrong 'format'"),
        ({"model": {"file": "model.onnx", "precision": "fp32"}}, "lacks 'model.sha256'"),
        ({"cases": [WRITTEN["cases"][0] | {"latency_ms_p50": -1.0}]}, "wrong 'cases.0.latency_ms_p50'"),
        ({"cases": [WRITTEN["cases"][0] | {"batch": "1"}]}, "wrong 'cases.0.batch'"),
        ({"hardware": None}, "wrong 'hardware'"),
    ],
)
def test_a_file_that_is_another_is_one_sentence(change, words, tmp_path):
    file = tmp_path / "b.json"
    file.write_text(json.dumps(WRITTEN))
    assert read_bench(file).single == CASE
    file.write_text(json.dumps(WRITTEN | change))
    with pytest.raises(GkdError, match=words):
        read_bench(file)
    file.write_text(json.dumps(WRITTEN).replace("1.0", "NaN"))
    with pytest.raises(GkdError, match="not readable JSON"):
        read_bench(file)
    with pytest.raises(GkdError, match=r"none\.json does not exist: run `gkd bench deploy` on the target"):
        read_bench(tmp_path / "none.json")
