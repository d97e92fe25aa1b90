import csv
import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    f1_score,
    log_loss,
    recall_score,
    top_k_accuracy_score,
)

from components import evaluate
from gkd_core.data.prepared import PreparedData
from gkd_core.errors import GkdError
from gkd_core.evaluation.frontier import Candidate, Frontier
from gkd_core.export.session import run_session, session
from gkd_core.files import folder_digest, whole_folder
from gkd_core.models.network import load_network


def read(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def probabilities(project: Any, folder: Path) -> np.ndarray:
    test = PreparedData.open(project.data).test
    images = torch.from_numpy(np.array(test.images)).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        return load_network(folder).eval()(images).logits.double().softmax(1).numpy()


def test_the_numbers_are_those_of_scikit_learn(project: Any, evaluated: Any) -> None:
    metrics = json.loads((evaluated[0] / "metrics.json").read_text())
    labels = PreparedData.open(project.data).test.labels
    folders = {"teacher": project.teacher / "resnet8", "baseline": project.baseline, "student": project.student}
    found = {role: probabilities(project, folder) for role, folder in folders.items()}
    for role, values in found.items():
        assert metrics[role]["top1"] == pytest.approx(accuracy_score(labels, values.argmax(1)), abs=1e-6)
        assert metrics[role]["top5"] == pytest.approx(top_k_accuracy_score(labels, values, k=5), abs=1e-6)
        assert metrics[role]["nll"] == pytest.approx(log_loss(labels, values), abs=1e-4)
        assert metrics[role]["top1_low"] < metrics[role]["top1"] < metrics[role]["top1_high"]
        # The benchmark's resnet8 has 83,892 at 100 classes and three channels; here ten and one.
        assert metrics[role]["parameters"] == 83892 - 90 * 65 - 2 * 16 * 9
        assert metrics[role]["onnx_bytes"] > 4 * metrics[role]["parameters"]
        predicted, measured = values.argmax(1), metrics[role]
        assert measured["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, predicted), abs=1e-6)
        assert measured["macro_f1"] == pytest.approx(f1_score(labels, predicted, average="macro"), abs=1e-6)
        by_class = recall_score(labels, predicted, average=None)
        assert list(measured["recall"].values()) == pytest.approx(by_class.tolist(), abs=1e-6)
    student = found["student"].argmax(1)
    assert metrics["student"]["agreement_with_teacher"] == pytest.approx((student == found["teacher"].argmax(1)).mean())
    assert "agreement_with_teacher" not in metrics["teacher"]
    difference = metrics["differences"]["student_minus_baseline"]
    assert difference["difference"] == pytest.approx(metrics["student"]["top1"] - metrics["baseline"]["top1"], abs=2e-6)
    assert difference["low"] < difference["difference"] < difference["high"]
    assert difference["standard_error"] > 0
    for name in ("balanced_accuracy", "macro_f1"):
        gap = metrics["student"][name] - metrics["baseline"][name]
        assert difference[name]["difference"] == pytest.approx(gap, abs=2e-6)
        assert difference[name]["low"] <= gap <= difference[name]["high"]

    recalls = {row["name"]: float(row["recall"]) for row in read(evaluated[0] / "plots" / "per_class.csv")}
    expected = recall_score(labels, student, average=None)
    assert list(recalls.values()) == pytest.approx(expected.tolist(), abs=1e-6)


def test_the_exported_student_is_measured_beside_the_trained_one(project: Any, evaluated: Any) -> None:
    out, summary, _ = evaluated
    metrics = json.loads((out / "metrics.json").read_text())
    predictions = np.load(out / "predictions.npy", allow_pickle=False)
    labels = PreparedData.open(project.data).test.labels
    assert predictions.dtype == np.int32
    assert metrics["onnx"]["top1"] == pytest.approx((predictions == labels).mean(), abs=1e-6)
    assert metrics["onnx"]["agreement_with_student"] > 0.99
    assert metrics["onnx"]["parity_max_abs"] < 1e-4
    assert metrics["onnx"]["onnx_bytes"] == (project.deploy / "model.onnx").stat().st_size
    assert metrics["digests"]["student"] == folder_digest(project.student)
    assert summary["onnx"]["top1"] == metrics["onnx"]["top1"]
    assert summary["teacher"] == {"top1": metrics["teacher"]["top1"]}
    json.dumps(summary)


def test_int8_is_measured_on_test_beside_float32(project: Any, evaluated: Any) -> None:
    out, summary, _ = evaluated
    metrics, timings = (json.loads((out / name).read_text()) for name in ("metrics.json", "timings.json"))
    test = PreparedData.open(project.data).test
    float32, int8 = (
        run_session(session(project.deploy / name), test.images) for name in ("model.onnx", "model_int8.onnx")
    )
    measured = metrics["int8"]
    assert measured["top1"] == pytest.approx(accuracy_score(test.labels, int8.argmax(1)), abs=1e-6)
    assert measured["agreement_with_fp32"] == pytest.approx((int8.argmax(1) == float32.argmax(1)).mean(), abs=1e-6)
    assert measured["parity_max_abs"] == pytest.approx(np.abs(int8 - float32).max(), rel=0.06)
    change = measured["difference_to_fp32"]
    assert change["difference"] == pytest.approx(measured["top1"] - metrics["onnx"]["top1"], abs=2e-6)
    assert change["low"] < change["difference"] < change["high"]
    assert measured["onnx_bytes"] == (project.deploy / "model_int8.onnx").stat().st_size
    assert 0 < timings["int8"]["latency_ms_p50"] <= timings["int8"]["latency_ms_p95"]
    assert summary["int8"] == {key: measured[key] for key in ("top1", "agreement_with_fp32")}
    page = (out / "report.html").read_text()
    assert "The int8 file is " in page
    assert {"balanced_accuracy", "macro_f1"} <= measured.keys() & metrics["onnx"].keys()
    shown = f"{100 * metrics['student']['balanced_accuracy']:.2f} %"
    assert shown in page
    assert "student minus" in page


def test_the_test_images_are_opened_once_and_no_others(evaluated: Any) -> None:
    assert evaluated[2] == ["test"]


def test_a_reference_that_was_not_trained_is_left_out(evaluated: Any) -> None:
    out, summary, _ = evaluated
    metrics, timings = (json.loads((out / name).read_text()) for name in ("metrics.json", "timings.json"))
    assert "kd" not in metrics
    assert "kd" not in timings
    assert "kd" not in summary
    assert set(metrics["differences"]) == {"student_minus_baseline"}
    assert {row["network"] for row in read(out / "plots" / "history.csv")} == {"teacher", "baseline", "student"}
    assert "plain KD" not in re.sub(r"<style>.*?</style>", "", (out / "report.html").read_text(), flags=re.DOTALL)


def test_every_network_and_the_exported_file_are_timed(evaluated: Any) -> None:
    timings = json.loads((evaluated[0] / "timings.json").read_text())
    for name in ("teacher", "baseline", "student", "onnx"):
        assert 0 < timings[name]["latency_ms_p50"] <= timings[name]["latency_ms_p95"]
    assert timings["hardware"]["threads"] == 1
    assert timings["run"]["python"]


def test_plots_hold_what_dvc_draws(project: Any, evaluated: Any) -> None:
    plots = evaluated[0] / "plots"
    classes = PreparedData.open(project.data).info.classes
    confusion = read(plots / "confusion.csv")
    assert len(confusion) == PreparedData.open(project.data).info.counts["test"]
    assert {row["actual"] for row in confusion} == set(classes)
    assert {row["predicted"] for row in confusion} <= set(classes)
    schedule = read(plots / "schedule.csv")
    assert [float(row["step"]) for row in schedule] == sorted(float(row["step"]) for row in schedule)
    assert float(schedule[0]["beta"]) < float(schedule[-1]["beta"])
    calibration = [row for row in read(plots / "calibration.csv") if row["network"] == "student"]
    assert len(calibration) == 15
    assert sum(int(row["count"]) for row in calibration) == len(confusion)
    history = [row for row in read(plots / "history.csv") if row["network"] == "student"]
    assert [row["epoch"] for row in history] == ["1", "2"]
    assert all(math.isfinite(float(row["validation_top1"])) for row in history)


@pytest.mark.slow
def test_twice_the_same_bytes_where_nothing_is_timed(project: Any, evaluated: Any, tmp_path: Path) -> None:
    evaluate.run(**project.inputs(), out=tmp_path / "report", params=project.params)
    assert folder_digest(tmp_path / "report") == folder_digest(evaluated[0])


def a_frontier(folder: Path, data_sha256: str, teacher_digest: str) -> str:
    cost = {"latency_ms_p50": 1.0, "latency_ms_p95": 2.0, "size_mb": 0.5, "macs": 10**6, "parameters": 10}
    one = Candidate("the small one", "resnet8", 1, 0.8, 0.7, None, None, **cost)
    with whole_folder(folder, kind="frontier") as inside:
        Frontier([one], None, None, {"processor": "A"}, data_sha256, teacher_digest).save(inside)
    return str(folder)


def test_a_frontier_of_this_data_and_teacher_is_in_the_report(project: Any, evaluated: Any, tmp_path: Path) -> None:
    def measured(frontier: str) -> Path:
        params = project.params.model_copy(
            update={
                "evaluate": project.params.evaluate.model_copy(update={"frontier": frontier, "pictures": False}),
            }
        )
        evaluate.run(**project.inputs(), out=tmp_path / "report", params=params)
        return tmp_path / "report"

    data, teacher = PreparedData.open(project.data).info.sha256, folder_digest(project.teacher)
    for place, (of, by) in {"data": ("0" * 64, teacher), "teacher": (data, "0" * 64)}.items():
        with pytest.raises(GkdError, match=f"evaluate.frontier .*{place} was made with other data or another teacher"):
            measured(a_frontier(tmp_path / place, of, by))
    with pytest.raises(GkdError, match=r"the frontier folder .*nowhere has no frontier\.json"):
        measured(str(tmp_path / "nowhere"))
    assert not (tmp_path / "report").exists()
    report = measured(a_frontier(tmp_path / "frontier", data, teacher))
    page = (report / "report.html").read_text()
    assert "the small one (resnet8): the most accurate on validation of all 1; 70.00 % on test" in page
    assert str(tmp_path) not in page
    assert (report / "metrics.json").read_bytes() == (evaluated[0] / "metrics.json").read_bytes()
    assert "<img" not in page, "pictures are private here"
    assert "data:image" not in page
    assert list((report / "pictures").iterdir()) == []


def test_the_report_shows_pictures_with_what_both_networks_look_at(project: Any, evaluated: Any) -> None:
    page = (evaluated.report / "report.html").read_text()
    labels, answers = PreparedData.open(project.data).test.labels, probabilities(project, project.student)
    wrong = np.flatnonzero(answers.argmax(1) != labels)
    first = wrong[np.argsort(-answers[wrong].max(1), kind="stable")][0]
    shown = re.search(r"<figcaption><span class=\"\">#(\d+): (\d)</span>", page[page.index("Worst mistakes") :])
    assert shown is not None
    assert (int(shown[1]), int(shown[2])) == (first, labels[first])
    assert f"wrong on {len(wrong)} of {len(labels)} test images" in page
    assert re.search(r'alt="where the student sees \d"', page)
    assert re.search(r'alt="where the teacher sees \d"', page)
    assert len(page) < 5_000_000
    sheets = {file.name for file in (evaluated.report / "pictures").iterdir()}
    assert {"mistakes.jpg", "disagreements.jpg", "unsure.jpg", "classes.jpg"} <= sheets


def test_the_report_tells_no_secrets(evaluated: Any) -> None:
    page = (evaluated[0] / "report.html").read_text()
    assert "gompertz" in page
    assert "tracking.example" not in page


def poison(student: Path) -> None:
    """Weights that are numbers no longer."""
    from safetensors.torch import load_file, save_file

    weights = load_file(student / "model.safetensors")
    weights["fc.bias"][0] = float("nan")
    save_file(weights, student / "model.safetensors")


@pytest.mark.parametrize(
    ("name", "damage", "sentence"),
    [
        ("deploy", lambda folder: (folder / "model.onnx").write_bytes(b"x"), r"sha256 differs"),
        ("baseline", lambda folder: (folder / "training.json").unlink(), "the baseline folder .* has no training.json"),
        ("baseline", poison, "the baseline resnet8 gives logits that are not finite on the test images"),
        (
            "baseline",
            lambda folder: (folder / "history.csv").write_text("epoch\nfirst\n"),
            r"history\.csv cannot be read",
        ),
    ],
)
def test_damaged_folders_are_refused(
    project: Any, tmp_path: Path, name: str, damage: Callable[[Path], None], sentence: str
) -> None:
    folder = tmp_path / name
    shutil.copytree(getattr(project, name), folder)
    damage(folder)
    with pytest.raises(GkdError, match=sentence):
        evaluate.run(**{**project.inputs(), name: folder}, out=tmp_path / "report", params=project.params)
    assert [path.name for path in tmp_path.iterdir()] == [name]
