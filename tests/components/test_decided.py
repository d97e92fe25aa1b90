"""A model that says "none of these", from its measures on test to what is handed on: report, runs, bundle."""

import csv
import json
import re
from html import unescape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from components import evaluate, export
from components.register import _record
from gkd_core.config import Params, params_of_sections
from gkd_core.data.prepared import PreparedData
from gkd_core.decision import OUTPUTS
from gkd_core.errors import GkdError
from gkd_core.export.bundle import write_bundle
from gkd_core.export.manifest import read_manifest
from gkd_core.export.session import run_outputs, session
from gkd_core.export.web_page import _measured
from gkd_core.serving.classify import softmax
from pipelines.kubeflow.metadata import scalars
from tests.components.test_bundle import model_config

UNKNOWN = 70


class Decided(NamedTuple):
    """Folders of the steps, and their parameters."""

    deploy: Path
    report: Path
    params: Params
    summary: dict[str, Any]
    noise: np.ndarray


@pytest.fixture(scope="module")
def decided(project: Any, tmp_path_factory: pytest.TempPathFactory) -> Decided:
    root = tmp_path_factory.mktemp("decided")
    noise = np.random.default_rng(0).integers(256, size=(UNKNOWN, 8, 8, 1), dtype=np.uint8)
    (root / "noise").mkdir()
    for number, pixels in enumerate(noise):
        Image.fromarray(pixels[..., 0]).save(root / "noise" / f"{number:03}.png")
    (root / "noise" / "broken.png").write_bytes(b"\x89PNG")
    decide = {"precision": 0.9, "score": "energy", "unknown": str(root / "noise")}
    sections = project.params.model_dump(mode="json")
    params = params_of_sections(sections | {"decide": decide})
    given = {name: getattr(project, name) for name in ("data", "teacher", "student")}
    export.run(**given, out=root / "deploy", params=params)
    inputs = project.inputs() | {"deploy": root / "deploy"}
    summary = evaluate.run(**inputs, out=root / "report", params=params)
    return Decided(root / "deploy", root / "report", params, summary, noise)


def test_the_metrics_are_those_of_the_graphs_own_outputs(project: Any, decided: Decided) -> None:
    metrics = json.loads((decided.report / "metrics.json").read_text())
    test = PreparedData.open(project.data).test
    for entry, file in (
        (metrics["decision"], "model.onnx"),
        (metrics["int8"]["decision"], "model_int8.onnx"),
        (metrics["fp16"]["decision"], "model_fp16.onnx"),
    ):
        model = session(decided.deploy / file)
        found = run_outputs(model, test.images, ["logits", *OUTPUTS])
        given = found["decision"] >= 0
        assert entry["coverage"] == pytest.approx(given.mean(), abs=1e-6)
        assert entry["precision"] == pytest.approx((found["decision"] == test.labels)[given].mean(), abs=1e-6)
        assert entry["coverage_low"] < entry["coverage"] < entry["coverage_high"]
        nll = -np.log(found["probabilities"][np.arange(len(test)), test.labels]).mean()
        assert entry["calibrated_nll"] == pytest.approx(nll, abs=1e-4)
        unknown = run_outputs(model, decided.noise, ["score", "decision"])
        truth = np.repeat([1, 0], [len(test), UNKNOWN])
        auroc = roc_auc_score(truth, np.concatenate([found["score"], unknown["score"]]))
        assert entry["unknown"]["auroc"] == pytest.approx(auroc, abs=1e-6)
        assert entry["unknown"]["refused"] == pytest.approx((unknown["decision"] < 0).mean(), abs=1e-6)
        assert (entry["unknown"]["images"], entry["unknown"]["unreadable"]) == (UNKNOWN, 1)
    assert decided.summary["decision"] == {key: metrics["decision"][key] for key in ("coverage", "precision")}
    with (decided.report / "plots" / "risk_coverage.csv").open() as stream:
        last = list(csv.DictReader(stream))[-1]
    assert float(last["coverage"]) == 1
    assert float(last["risk"]) == pytest.approx(1 - metrics["onnx"]["top1"], abs=1e-5)


def test_the_report_tells_it_and_not_where_the_unknown_pictures_are(decided: Decided) -> None:
    text = (decided.report / "report.html").read_text()
    assert "<h2>None of these</h2>" in text
    assert f"{UNKNOWN} pictures of <code>decide.unknown</code> (1 more could not be read)" in text
    assert "precision: 0.9" in text
    assert str(decided.deploy.parent) not in text


def test_its_pictures_have_the_probabilities_and_the_decision_of_the_exported_model(
    project: Any, decided: Decided
) -> None:
    found = run_outputs(session(decided.deploy / "model.onnx"), PreparedData.open(project.data).test.images, OUTPUTS)
    assert read_manifest(decided.deploy)["decision"]["temperature"] != 1
    text = unescape((decided.report / "report.html").read_text())
    shown = re.findall(r'alt="Test image (\d+), \d; (?:the )?student: (\d), (?:> )?(\d+)\s%([^"]*)"', text)
    assert "The student's are those of the exported float32 model" in text
    assert len(shown) > 40
    for index, named, percent, more in shown:
        row = found["probabilities"][int(index)]
        assert int(named) == row.argmax()
        assert int(percent) == pytest.approx(100 * row.max(), abs=1.01)  # 99 is said of what is not quite 100
        assert ("none of these" in more) == (found["decision"][int(index)] < 0)
    assert 0 < sum("none of these" in more for *_, more in shown) < len(shown)


def test_runs_are_logged_with_it(project: Any, decided: Decided) -> None:
    metrics = json.loads((decided.report / "metrics.json").read_text())
    timings = json.loads((decided.report / "timings.json").read_text())
    logged = _record("student", project.student, metrics, timings, decided.params).metrics
    seen = scalars(str(decided.report))
    assert {name: seen[f"decision_{name}"] for name in ("coverage", "precision")} == decided.summary["decision"]
    assert logged["decision_coverage"] == metrics["decision"]["coverage"]
    assert logged["decision_unknown_auroc"] == metrics["decision"]["unknown"]["auroc"]
    assert logged["int8_decision_coverage"] == metrics["int8"]["decision"]["coverage"]


def test_a_report_that_is_asked_for_a_decision_needs_a_model_with_one(
    project: Any, decided: Decided, tmp_path: Path
) -> None:
    with pytest.raises(GkdError, match="decide asks for a decision, and the exported model has none: run `gkd export`"):
        evaluate.run(**project.inputs(), out=tmp_path / "report", params=decided.params)
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"precision": 0.5}, "precision 0.5 by"),
        ({"precision": None, "coverage": 0.9}, "coverage 0.9 by"),
        ({"score": "max_probability"}, "by max_probability"),
        (None, "no decision"),
    ],
)
def test_a_report_that_is_asked_for_another_decision_than_the_models_is_refused(
    project: Any, decided: Decided, tmp_path: Path, change: dict[str, Any] | None, words: str
) -> None:
    decide = None if change is None else decided.params.decide.model_copy(update=change)
    params = decided.params.model_copy(update={"decide": decide})
    with pytest.raises(
        GkdError, match=rf"asks for .*{words}.*, and the model was exported for precision 0\.9 by energy"
    ):
        evaluate.run(**(project.inputs() | {"deploy": decided.deploy}), out=tmp_path / "report", params=params)
    assert not (tmp_path / "report").exists()


def test_openvino_decides_the_same(project: Any, decided: Decided) -> None:
    import openvino  # a second, which other tests need not wait

    images = PreparedData.open(project.data).test.images
    hint = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(decided.deploy / "model.onnx"), "CPU", hint)
    expected, found = run_outputs(session(decided.deploy / "model.onnx"), images, [*OUTPUTS]), compiled(images)
    assert {-1, 3} <= set(expected["decision"].tolist())
    assert (found["decision"] == expected["decision"]).all()
    for name in ("probabilities", "score"):
        assert np.abs(found[name] - expected[name]).max() < 1e-4


@pytest.mark.parametrize(
    ("wrong", "words"), [("", ""), ("probabilities", "probabilities differ by"), ("decision", "it decides")]
)
def test_the_page_must_give_the_models_own_probabilities_and_decision(
    decided: Decided, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str, words: str
) -> None:
    model, places = decided.deploy / "model.onnx", np.arange(64)
    pixels = ((places * 89 + (places >> 8) * 57) & 255).astype(np.uint8).reshape(1, 8, 8, 1)  # what measure.js asks
    found = run_outputs(session(model), pixels, ["logits", *OUTPUTS])
    asked = {name: found[name][0].tolist() for name in ("logits", "probabilities", "decision")}
    at_one = softmax(found["logits"])
    assert not np.allclose(found["probabilities"], at_one, atol=1e-3), "a temperature is applied"
    if wrong == "probabilities":
        asked["probabilities"] = at_one[0].tolist()
    if wrong == "decision":
        asked["decision"] += 1
    told = {"load_ms": 1.0, "median_ms": 1.0, "p95_ms": 1.0, "runs": 30, "node": "v1", "processor": "", "asked": asked}
    (tmp_path / "told.json").write_text(json.dumps(told))
    (tmp_path / "node").write_text(f"#!/bin/sh\ncat '{tmp_path}/told.json'\n")
    (tmp_path / "node").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    if not wrong:
        assert _measured(tmp_path, model, 8, 1) == told
        return
    with pytest.raises(GkdError, match=f"answers otherwise in a browser than in onnxruntime: {words}"):
        _measured(tmp_path, model, 8, 1)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_bundle_says_when_the_model_answers(project: Any, decided: Decided, tmp_path: Path, precision: str) -> None:
    folders = {"data": project.data, "student": project.student, "deploy": decided.deploy, "report": decided.report}
    write_bundle(tmp_path / "bundle", **folders, image="gkd:0.1.0", name="digits", precision=precision)
    config = model_config((tmp_path / "bundle/triton/digits/config.pbtxt").read_text())
    assert [(out.name, list(out.dims)) for out in config.output] == [
        ("logits", [10]),
        ("probabilities", [10]),
        ("score", [1]),
        ("decision", [1]),
    ]
    assert [out.HasField("reshape") for out in config.output] == [False, False, True, True]
    assert [list(out.reshape.shape) for out in config.output[2:]] == [[], []]
    file = tmp_path / "bundle/triton/digits/1/model.onnx"
    kinds = {"TYPE_FP32": "tensor(float)", "TYPE_INT64": "tensor(int64)"}
    types = type(config).DESCRIPTOR.file.enum_types_by_name["DataType"].values_by_name
    by_number = {value.number: kinds.get(name) for name, value in types.items()}
    outputs = onnxruntime.InferenceSession(file).get_outputs()
    assert [by_number[out.data_type] for out in config.output] == [out.type for out in outputs]

    metrics = json.loads((decided.report / "metrics.json").read_text())
    measured = (metrics if precision == "fp32" else metrics["int8"])["decision"]
    readme, card = ((tmp_path / "bundle" / name).read_text() for name in ("README.md", "MODEL_CARD.md"))
    assert f"of the {precision} model" in readme
    assert "−1 for none of these" in readme
    assert '"outputs": [{"name": "decision"}]' in readme  # its client shows what the model decides
    assert f"{100 * measured['coverage']:.2f} %" in card
    assert f"it refused {100 * measured['unknown']['refused']:.2f} %" in card
    assert 'It has no answer "none of these"' not in card
    assert read_manifest(tmp_path / "bundle")["decision"]["asked"] == "precision"
