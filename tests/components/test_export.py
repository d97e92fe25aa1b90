import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from components import export
from gkd_core.config import params_of_sections, parse_params
from gkd_core.data.prepared import PreparedData
from gkd_core.decision import Decision
from gkd_core.errors import GkdError
from gkd_core.export.manifest import FILES, decision_of, kept_precisions, read_manifest
from gkd_core.export.session import run_outputs, run_session, session
from gkd_core.files import folder_digest, read_json
from gkd_core.verify import Broken, _models


def run(project: Any, out: Path, **changes: Any) -> dict[str, Any]:
    inputs = {"data": project.data, "teacher": project.teacher, "student": project.student, "params": project.params}
    return export.run(**{**inputs, **changes}, out=out)


def test_the_manifest_and_the_file_carry_the_lineage(project: Any) -> None:
    manifest = read_manifest(project.deploy)
    training = read_json(project.student / "training.json", "student")
    info = PreparedData.open(project.data).info
    assert manifest["data_sha256"] == info.sha256 == training["data_sha256"]
    assert manifest["teacher_digest"] == folder_digest(project.teacher) == training["teacher_digest"]
    assert manifest["student_digest"] == folder_digest(project.student)
    assert manifest["model"]["input_shape"] == [8, 8, 1]
    assert (manifest["method"], manifest["network"]) == ("gompertz", "resnet8")
    assert manifest["classes"] == list(info.classes)
    assert 0 <= manifest["parity"]["max_abs"] <= project.params.export.parity_tolerance

    entries = {entry.key: entry.value for entry in onnx.load(project.deploy / "model.onnx").metadata_props}
    assert json.loads(entries["classes"]) == manifest["classes"]
    for digest in ("data_sha256", "teacher_digest", "student_digest", "config_digest"):
        assert entries[digest] == manifest[digest]


def test_twice_the_same_and_the_test_images_stay_closed(
    project: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    split = PreparedData.split
    monkeypatch.setattr(PreparedData, "split", lambda self, name: opened.append(name) or split(self, name))
    summary = run(project, tmp_path / "deploy")
    assert opened == ["validation", "train"]
    assert folder_digest(tmp_path / "deploy") == folder_digest(project.deploy)
    assert (tmp_path / "deploy" / "model.onnx").read_bytes() == (project.deploy / "model.onnx").read_bytes()
    assert summary["path"] == str(tmp_path / "deploy" / "model.onnx")
    assert summary["bytes"] == (tmp_path / "deploy" / "model.onnx").stat().st_size
    facts = read_json(tmp_path / "deploy" / "run.json", "deploy")
    assert facts["seconds"] > 0
    assert "torch" in facts


@pytest.fixture
def at_once(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The export itself, which takes seconds, gives the file it gave before; everything after it is done anew."""
    monkeypatch.setattr(
        export, "write_onnx", lambda network, path, **_: shutil.copy(project.deploy / "model.onnx", path)
    )


def change_json(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda student: change_json(student / "training.json", data_sha256="0"), "was trained on other data than"),
        (lambda student: change_json(student / "training.json", teacher_digest="0"), "learned from another teacher"),
        (
            lambda student: change_json(student / "training.json", trained=False, reason="references.kd is false"),
            r"holds no trained network \(references\.kd is false\)",
        ),
        (lambda student: (student / "training.json").unlink(), "has no training.json"),
        (lambda student: (student / "model.safetensors").write_bytes(b"cut"), "is damaged"),
    ],
)
def test_a_student_that_does_not_belong_here_is_refused(
    project: Any, tmp_path: Path, damage: Callable[[Path], None], sentence: str
) -> None:
    student = tmp_path / "student"
    shutil.copytree(project.student, student)
    damage(student)
    with pytest.raises(GkdError, match=sentence):
        run(project, tmp_path / "deploy", student=student)
    assert [path.name for path in tmp_path.iterdir()] == ["student"]


@pytest.mark.usefixtures("at_once")
def test_a_file_outside_the_tolerance_is_not_left_behind(project: Any, tmp_path: Path) -> None:
    params = parse_params({"export": {"parity_tolerance": 1e-12}})
    with pytest.raises(GkdError, match=r"export\.parity_tolerance allows 1e-12"):
        run(project, tmp_path / "deploy", params=params)
    assert not list(tmp_path.iterdir())


def test_int8_is_kept_where_the_validation_images_say_so(project: Any) -> None:
    entry = read_manifest(project.deploy)["int8"]
    data = PreparedData.open(project.data)
    reference, found = (
        run_session(session(project.deploy / name), data.validation.images) for name in ("model.onnx", entry["file"])
    )
    labels = data.validation.labels
    assert entry["kept"]
    assert entry["validation"]["images"] == len(labels)
    assert entry["validation"]["agreement"] == pytest.approx((found.argmax(1) == reference.argmax(1)).mean(), abs=1e-6)
    assert entry["validation"]["top1"] == pytest.approx((found.argmax(1) == labels).mean(), abs=1e-6)
    assert entry["validation"]["top1_fp32"] == pytest.approx((reference.argmax(1) == labels).mean(), abs=1e-6)
    assert entry["calibration_images"] == 256
    assert entry["size_bytes"] == (project.deploy / entry["file"]).stat().st_size
    facts = {item.key: item.value for item in onnx.load(project.deploy / entry["file"]).metadata_props}
    assert facts["fp32_sha256"] == read_manifest(project.deploy)["model"]["sha256"]
    assert facts["student_digest"] == folder_digest(project.student)


@pytest.mark.usefixtures("at_once")
def test_an_int8_that_is_not_good_enough_is_dropped_and_the_reason_kept(project: Any, tmp_path: Path) -> None:
    # Ranges that cut off half of what one image shows.
    coarse = {"calibration": "percentile", "percentile": 51.0, "calibration_images": 1, "min_agreement": 0.999}
    params = parse_params({"export": {"int8": coarse, "fp16": True, "fp16_tolerance": 1e-9}})
    summary = run(project, tmp_path / "deploy", params=params)
    manifest = read_manifest(tmp_path / "deploy")
    assert not (tmp_path / "deploy" / "model_int8.onnx").exists()
    assert not (tmp_path / "deploy" / "model_fp16.onnx").exists()
    assert summary["int8"] == {"kept": False, "reason": manifest["int8"]["reason"]}
    assert manifest["int8"]["validation"]["agreement"] < 0.999
    assert "export.int8.min_agreement asks for 99.9 %" in manifest["int8"]["reason"]
    tried = manifest["int8"]["attempts"]
    assert [each["attempt"] for each in tried] == [attempt.name for attempt in export.ATTEMPTS]
    assert all(each["attempt"] in manifest["int8"]["reason"] for each in tried[1:])
    assert "export.fp16_tolerance allows 1e-09" in manifest["fp16"]["reason"]


@pytest.mark.usefixtures("at_once")
def test_an_int8_that_is_good_enough_in_another_way_is_kept_with_what_was_tried(
    project: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the second way is said to be: with the layers that add most noise in float."""
    answers = iter(["not near enough", None])
    monkeypatch.setattr(export, "int8_shortfall", lambda *_, **__: next(answers))
    run(project, tmp_path / "deploy", params=parse_params({"export": {"int8": {"calibration_images": 20}}}))
    entry = read_manifest(tmp_path / "deploy")["int8"]
    assert entry["kept"]
    assert [each["attempt"] for each in entry["attempts"]] == [attempt.name for attempt in export.ATTEMPTS[:2]]
    assert entry["attempts"][1]["agreement"] == entry["validation"]["agreement"]
    assert entry["in_float"]
    kept = onnx.load(tmp_path / "deploy" / entry["file"])
    assert set(entry["in_float"]) <= {node.name for node in kept.graph.node}


@pytest.mark.usefixtures("at_once")
def test_a_changed_int8_file_is_noticed_and_a_precision_can_be_switched_off(project: Any, tmp_path: Path) -> None:
    shutil.copytree(project.deploy, tmp_path / "changed")
    (tmp_path / "changed" / "model_int8.onnx").write_bytes(b"x")
    with pytest.raises(GkdError, match=r"model_int8\.onnx is not the file its manifest describes"):
        read_manifest(tmp_path / "changed")
    run(project, tmp_path / "deploy", params=parse_params({"export": {"int8": {"enabled": False}}}))
    manifest = read_manifest(tmp_path / "deploy")
    assert manifest["int8"] == {"kept": False, "reason": "export.int8.enabled is false"}
    assert manifest["fp16"] == {"kept": False, "reason": "export.fp16 is false"}


def test_a_decision_is_in_every_file_and_in_the_manifest(project: Any, tmp_path: Path) -> None:
    decide = {"coverage": 0.7, "score": "energy", "unknown": "nowhere"}
    params = params_of_sections(project.params.model_dump(mode="json") | {"decide": decide})
    run(project, tmp_path / "deploy", params=params)
    manifest, plain = read_manifest(tmp_path / "deploy"), read_manifest(project.deploy)
    validation = PreparedData.open(project.data).validation
    assert manifest["config_digest"] != plain["config_digest"]
    again = params_of_sections(params.model_dump(mode="json") | {"decide": decide | {"unknown": None}})
    assert params.digest("export", "decide") == again.digest("export", "decide")
    assert project.params.digest("export", "decide") == project.params.digest("export")
    for precision in ("fp32", *kept_precisions(manifest)):
        file = tmp_path / "deploy" / FILES[precision]
        decision = decision_of(manifest, precision)
        assert decision is not None
        assert decision.model == precision
        assert Decision.read(session(file).get_modelmeta().custom_metadata_map) == decision
        found = run_outputs(session(file), validation.images, ["logits", "decision"])
        assert np.array_equal(
            found["logits"], run_session(session(project.deploy / FILES[precision]), validation.images)
        )
        given = found["decision"] >= 0
        assert given.mean() == pytest.approx(0.7, abs=0.01)
        assert decision.validation.coverage == pytest.approx(given.mean(), abs=1e-6)
        right = found["decision"][given] == validation.labels[given]
        assert decision.validation.precision == pytest.approx(right.mean(), abs=1e-6)
    assert len(kept_precisions(manifest)) == 2
    assert all(link.holds for link in _models(tmp_path / "deploy"))
    change_json(tmp_path / "deploy" / "manifest.json", decision=manifest["decision"] | {"threshold": -99.0})
    with pytest.raises(Broken, match=r"the gkd\.decision inside it is not the one in manifest\.json"):
        list(_models(tmp_path / "deploy"))
    change_json(tmp_path / "deploy" / "manifest.json", decision={"score": "luck"})
    with pytest.raises(GkdError, match=r"has a wrong 'decision\.score'"):
        read_manifest(tmp_path / "deploy")


@pytest.mark.parametrize("score", ["feature_distance", "probability_and_distance"])
def test_the_distance_of_features_is_measured_on_training_images(project: Any, tmp_path: Path, score: str) -> None:
    quiet = {"int8": {"enabled": False}}
    params = parse_params({"decide": {"precision": 0.9, "score": score}, "export": quiet})
    run(project, tmp_path / "deploy", params=params)
    model = session(tmp_path / "deploy" / "model.onnx")
    assert [each.name for each in model.get_outputs()] == ["logits", "probabilities", "score", "decision"]
    prepared = PreparedData.open(project.data)

    def near(images: np.ndarray) -> np.ndarray:
        """The score, without what the probability has in it."""
        found = run_outputs(model, images, ["score", "probabilities"])
        others = np.log(np.sort(found["probabilities"])[:, :-1].sum(1))
        return found["score"] + (others if score == "probability_and_distance" else 0)

    noise = np.random.default_rng(0).integers(256, size=(200, 8, 8, 1), dtype=np.uint8)
    assert np.median(near(noise)) < np.quantile(near(prepared.train.images[:200]), 0.05)


def test_a_file_for_pictures_of_any_size_stands_beside_every_model_where_wanted(project: Any, tmp_path: Path) -> None:
    assert "pixels" not in read_manifest(project.deploy)
    loose = {"calibration_images": 20, "min_agreement": 0.0, "max_accuracy_drop": 1.0}
    sections = {"export": {"pixels": True, "fp16": True, "int8": loose}, "decide": {"coverage": 0.7}}
    summary = run(project, tmp_path / "deploy", params=parse_params(sections))
    manifest = read_manifest(tmp_path / "deploy")
    assert summary["pixels"] == manifest["pixels"]
    assert sorted(manifest["pixels"]) == ["fp16", "fp32", "int8"]
    for precision, entry in manifest["pixels"].items():
        model = manifest["model"] if precision == "fp32" else manifest[precision]
        assert (entry["kept"], entry["input"]) == (True, "pixels"), entry
        assert entry["parity"]["differing"] == 0
        facts = {item.key: item.value for item in onnx.load(tmp_path / "deploy" / entry["file"]).metadata_props}
        assert (facts["precision"], facts["wraps_sha256"]) == (precision, model["sha256"])
        assert facts["student_digest"] == manifest["student_digest"]
        assert json.loads(facts["classes"]) == manifest["classes"]
        inside, outside = (session(tmp_path / "deploy" / name) for name in (FILES[precision], entry["file"]))
        assert [each.name for each in outside.get_outputs()] == [each.name for each in inside.get_outputs()]
        assert "decision" in [each.name for each in outside.get_outputs()]
    walked = [link.name for link in _models(tmp_path / "deploy")]
    assert {f"deploy → {entry['file']}" for entry in manifest["pixels"].values()} < set(walked)

    (tmp_path / "deploy" / "model_int8_pixels.onnx").write_bytes(b"x")
    with pytest.raises(GkdError, match=r"model_int8_pixels\.onnx is not the file its manifest describes"):
        read_manifest(tmp_path / "deploy")
