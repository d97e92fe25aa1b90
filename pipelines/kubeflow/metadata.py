"""What the artifacts tell about themselves in Kubeflow: digests, accuracies, the confusion matrix.

Kubeflow's launcher refuses an artifact with a null anywhere in its metadata, so what is not known is left out.
"""

import csv
from collections import Counter
from pathlib import Path
from typing import Any

from gkd_core.files import file_digest, folder_digest, read_json
from pipelines.kubeflow.checks import without_null

MOST_CLASSES = 200  # of a confusion matrix in the metadata, which travel by gRPC: 4 MB at most, and 1000 would be 11
TRAINED = (
    *("role", "network", "method", "seed", "trained"),
    *("data_sha256", "teacher_digest", "config_digest", "weights_digest", "plugins"),
)


def of_data(folder: str, dvc: dict[str, Any]) -> dict[str, Any]:
    """Digest and size of prepared data, and the DVC revision it came from."""
    facts = read_json(Path(folder) / "dataset.json", "the data folder")
    known = {key: facts[key] for key in ("sha256", "source", "counts", "image_size", "channels")}
    found = known | {"classes": len(facts["classes"])} | {f"dvc_{key}": value for key, value in dvc.items()}
    return without_null(found)


def of_teacher(folder: str) -> dict[str, Any]:
    """Digest of a teacher folder and the networks in it."""
    facts = read_json(Path(folder) / "teacher.json", "the teacher folder")
    runs = [run for name in facts["networks"] if name and (run := _mlflow_run(Path(folder) / name))]
    found = {
        "framework": "pytorch",
        "digest": folder_digest(Path(folder)),
        "networks": facts["networks"],
        "imported": facts["imported"],
        "data_sha256": facts["data_sha256"],
        "mlflow_runs": runs or None,
    }
    return without_null(found)


def of_student(folder: str) -> dict[str, Any]:
    """Digest of a student folder and what it was trained from; a reference that was not trained says so."""
    facts = read_json(Path(folder) / "training.json", "the student folder")
    known = {key: facts[key] for key in TRAINED if key in facts}
    run = _mlflow_run(Path(folder))
    return without_null({"framework": "pytorch", "digest": folder_digest(Path(folder)), **known, "mlflow_run": run})


def _mlflow_run(folder: Path) -> str | None:
    """Address of the run that grew in MLflow while the network in a folder was trained, else its identifier."""
    file = folder / "run.json"
    facts = read_json(file, "the folder").get("mlflow", {}) if file.exists() else {}
    run: str | None = facts.get("address") or facts.get("run_id")
    return run


def of_deployment(folder: str) -> dict[str, Any]:
    """The manifest's digests: of data, teacher, student, configuration, code and the file itself."""
    manifest = read_json(Path(folder) / "manifest.json", "the deploy folder")
    lineage = {key: value for key, value in manifest.items() if key.endswith(("_digest", "_sha256"))}
    model = manifest["model"]
    found = {
        "framework": "onnx",
        "digest": file_digest(Path(folder) / "manifest.json"),
        "model_sha256": model["sha256"],
        "size_bytes": model["size_bytes"],
        **lineage,
    }
    return without_null(found)


def of_report(folder: str) -> dict[str, Any]:
    """Digests of what was measured, and of the measurements."""
    metrics = read_json(Path(folder) / "metrics.json", "the report folder")
    return without_null({"digest": file_digest(Path(folder) / "metrics.json"), **metrics["digests"]})


def of_registration(folder: str) -> dict[str, Any]:
    """The registered version and the gate's decision; `alias` is missing where the version holds none any more."""
    version = read_json(Path(folder) / "version.json", "the registration folder")
    gate = read_json(Path(folder) / "gate.json", "the registration folder")
    known = {key: version[key] for key in ("name", "version", "alias", "manifest", "run_id")}
    known["mlflow_run"] = version.get("run_address")
    return without_null({**known, "passed": gate["passed"], "sentence": gate["sentence"]})


def scalars(folder: str) -> dict[str, float]:
    """The numbers a reader of the run page wants first; accuracies in [0, 1], latencies in milliseconds."""
    metrics = read_json(Path(folder) / "metrics.json", "the report folder")
    timings = read_json(Path(folder) / "timings.json", "the report folder")
    found: dict[str, float] = {}
    for role in ("teacher", "baseline", "kd", "student", "onnx"):
        if role in metrics:
            for name in ("top1", "balanced_accuracy", "macro_f1"):
                if name in metrics[role]:
                    found[f"{role}_{name}"] = metrics[role][name]
    for name in ("coverage", "precision"):
        if (value := metrics.get("decision", {}).get(name)) is not None:
            found[f"decision_{name}"] = value
    for name, difference in metrics["differences"].items():
        found[name] = difference["difference"]
    found["student_parameters"] = metrics["student"]["parameters"]
    found["onnx_bytes"] = metrics["onnx"]["onnx_bytes"]
    found["onnx_latency_ms_p50"] = timings["onnx"]["latency_ms_p50"]
    return found


def confusion(folder: str, classes: list[str]) -> list[list[int]]:
    """[C, C] test images by actual (row) and predicted class (column)."""
    with (Path(folder) / "plots" / "confusion.csv").open(newline="", encoding="utf-8") as stream:
        counts = Counter((row["actual"], row["predicted"]) for row in csv.DictReader(stream))
    return [[counts[actual, predicted] for predicted in classes] for actual in classes]
