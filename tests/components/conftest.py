"""A whole run on the digits, each training a moment long, made once; a finished run in small; an empty store."""

import http.server
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self

import pytest

from gkd_core.config import Params, parse_params
from tests.conftest import deploy_folder

MadeOnce = Callable[[str, Callable[[Path], Any]], Path]


class Project(NamedTuple):
    """Folders of the steps, and the parameters they were made with. Tests read them and never write to them."""

    data: Path
    teacher: Path
    baseline: Path
    kd: Path
    student: Path
    deploy: Path
    params: Params

    def inputs(self) -> dict[str, Path]:
        """The folders the evaluate step takes, by name."""
        return {name: getattr(self, name) for name in ("data", "teacher", "baseline", "kd", "student", "deploy")}


@pytest.fixture(scope="session")
def project(made_once: MadeOnce, digits: Path, teacher: Path) -> Project:
    """Baseline and student trained, plain KD switched off, the student exported in all precisions."""
    from components import distill, export

    params = parse_params(
        {
            "student": {"name": "resnet8"},
            "distill": {"method": "gompertz"},
            "train": {"epochs": 2, "device": "cpu"},
            "references": {"kd": False},
            "export": {"fp16": True, "int8": {"min_agreement": 0.0, "max_accuracy_drop": 1.0}},
            "evaluate": {"latency_runs": 10},
            "tracking": {"uri": "http://user:secret@tracking.example", "live": False},
        }
    )

    def fill(root: Path) -> None:
        common = {"data": digits, "teacher": teacher, "work": root / "work", "params": params}
        distill.run(**common, out=root / "baseline", reference="baseline")
        distill.run(**common, out=root / "kd", reference="kd")
        distill.run(**common, out=root / "student")
        export.run(data=digits, teacher=teacher, student=root / "student", out=root / "deploy", params=params)

    root = made_once("project", fill)
    return Project(digits, teacher, *(root / name for name in ("baseline", "kd", "student", "deploy")), params)


class Evaluated(NamedTuple):
    """What the evaluate step made of the project: its folder, its summary, which splits it opened."""

    report: Path
    summary: dict[str, Any]
    opened: list[str]


@pytest.fixture(scope="session")
def evaluated(project: Project, made_once: MadeOnce) -> Evaluated:
    """The project's report."""
    from components import evaluate
    from gkd_core.data.prepared import PreparedData

    def fill(root: Path) -> None:
        opened: list[str] = []
        split = PreparedData.split
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(PreparedData, "split", lambda self, name: opened.append(name) or split(self, name))
            summary = evaluate.run(**project.inputs(), out=root / "report", params=project.params)
        (root / "seen.json").write_text(json.dumps([summary, opened]))

    root = made_once("evaluated", fill)
    return Evaluated(root / "report", *json.loads((root / "seen.json").read_text()))


class Finished(NamedTuple):
    """What the steps before register leave, in small: real networks, a real ONNX file, measurements made up."""

    teacher: Path
    baseline: Path
    kd: Path
    student: Path
    deploy: Path
    report: Path


class Registration(NamedTuple):
    """The folders that were registered, with which parameters, what register returned, and the folder it wrote."""

    folders: Finished
    params: Params
    summary: dict[str, Any]
    out: Path


@pytest.fixture(scope="session")
def finish() -> Callable[..., Finished]:
    """A function that writes the folders; see `_finish`."""
    return _finish


def _finish(
    root: Path,
    *,
    seed: int = 0,
    right: int = 330,
    count: int = 360,
    data: str = "d" * 64,
    gain: float = 0.01,
    latency: float = 0.5,
    params: Params | None = None,
) -> Finished:
    """Folders under `root`: another seed is another student of the same teacher; `right` of `count` images right."""
    import numpy as np

    from gkd_core.export.manifest import lineage
    from gkd_core.files import file_digest, folder_digest, write_json

    params = params or Params()
    made = Finished(*(root / name for name in Finished._fields))
    for folder in (made.teacher, made.report / "plots"):
        folder.mkdir(parents=True)
    classes = [str(digit) for digit in range(10)]
    _network(made.teacher / "resnet8", role="teacher", seed=100, data=data, config=params.digest("teacher"))
    write_json(made.teacher / "teacher.json", {"networks": ["resnet8"], "classes": classes, "data_sha256": data})
    references = params.digest("student", "train", "references")
    _network(made.baseline, role="baseline", seed=101, data=data, config=references)
    made.kd.mkdir()
    write_json(made.kd / "training.json", {"trained": False, "role": "kd", "reason": "references.kd is false"})
    teacher_digest = folder_digest(made.teacher)
    config = params.digest("student", "train", "distill")
    _network(made.student, role="student", seed=seed, data=data, config=config, teacher=teacher_digest)

    training = {"data_sha256": data, "teacher_digest": teacher_digest, "config_digest": config}
    deploy_folder(
        made.deploy,
        seed=seed,
        classes=tuple(classes),
        lineage=lineage(training, student_digest=folder_digest(made.student), export_digest="e" * 64),
        network="resnet8",
        parity={"max_abs": 1e-6, "batch_sizes": [1, 2], "images": 3},
    )
    write_json(made.deploy / "run.json", {"git_revision": "abc123", "git_dirty": False, "host": "here"})

    labels = np.arange(count) % 10
    predictions = np.where(np.arange(count) < right, labels, (labels + 1) % 10).astype(np.int32)
    np.save(made.report / "predictions.npy", predictions)
    rows = "".join(f"{actual},{predicted}\n" for actual, predicted in zip(labels, predictions, strict=True))
    (made.report / "plots" / "confusion.csv").write_text("actual,predicted\n" + rows)
    (made.report / "report.html").write_text("<p>report</p>")
    (made.report / "pictures").mkdir()
    (made.report / "pictures" / "mistakes.jpg").write_bytes(b"a sheet")
    top1, size = round(right / count, 6), (made.deploy / "model.onnx").stat().st_size
    quality = {"top1": top1, "nll": 0.3, "parameters": 1000, "onnx_bytes": 5000, "network": "resnet8"}
    quality |= {"top1_low": top1 - 0.02, "top1_high": top1 + 0.02, "balanced_accuracy": top1, "macro_f1": top1}
    compared: dict[str, Any] = {
        "difference": gain, "low": gain - 0.01, "high": gain + 0.01, "standard_error": 0.005
    }  # fmt: skip
    compared |= {name: dict(compared) for name in ("balanced_accuracy", "macro_f1")}
    write_json(
        made.report / "metrics.json",
        {
            "data": {"sha256": data, "source": "digits", "test_images": count},
            "digests": {
                "manifest": file_digest(made.deploy / "manifest.json"),
                **{role: folder_digest(getattr(made, role)) for role in ("teacher", "baseline", "student")},
            },
            **dict.fromkeys(("teacher", "baseline", "student"), quality),
            "onnx": {"top1": top1, "parity_max_abs": 2e-6, "onnx_bytes": size},
            "differences": {"student_minus_baseline": compared},
        },
    )
    timing = {"latency_ms_p50": latency, "latency_ms_p95": 2 * latency}
    write_json(made.report / "timings.json", dict.fromkeys(("teacher", "baseline", "student", "onnx"), timing))
    return made


def _network(folder: Path, *, role: str, seed: int, data: str, config: str, teacher: str = "") -> None:
    import torch

    from gkd_core.files import write_json
    from gkd_core.models.network import Network, NetworkSpec, save_network

    folder.mkdir()
    torch.manual_seed(seed)
    classes = tuple(str(digit) for digit in range(10))
    save_network(Network(NetworkSpec("resnet8", "cifar", classes, 1, 8, (0.3,), (0.3,))), folder)
    method = {"teacher": "ce", "baseline": "ce", "student": "gompertz"}[role]
    write_json(
        folder / "training.json",
        {
            "trained": True,
            "role": role,
            "network": "resnet8",
            "method": method,
            "hyperparameters": {"temperature": 4.0, "solver": None} if role == "student" else {},
            "training": {"epochs": 3, "learning_rate": 0.05},
            "schedule": "gompertz",
            "seed": seed,
            "epochs": 3,
            "selected_epoch": 3,
            "validation_top1": 0.9,
            "data_sha256": data,
            "teacher_digest": teacher,
            "config_digest": config,
        },
    )
    rows = "".join(f"{epoch},0.0{epoch},{2.0 / epoch},0.{epoch}\n" for epoch in (1, 2, 3))
    (folder / "history.csv").write_text("epoch,learning_rate,train_loss,validation_top1\n" + rows)
    write_json(folder / "run.json", {"git_revision": "abc123", "git_dirty": True, "host": "there"})


class Answering(http.server.ThreadingHTTPServer):
    """A web server that gives everybody the same answer.

    Attributes:
        reply, status: the answer.
        awake: it answers once this is set.
        location: where it sends its callers.
        names: of what it has (the address's last part); None is everything.
        asked: path and authorisation of every request so far.
    """

    daemon_threads = True

    def __init__(self, reply: bytes, status: int = 200, awake: threading.Event | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.reply, self.status, self.awake = reply, status, awake
        self.location: str | None = None
        self.names: set[str] | None = None
        self.asked: list[tuple[str, str | None]] = []
        self.address = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Answering

    def answer(self) -> None:
        server = self.server
        if server.awake is not None:
            server.awake.wait()
        server.asked.append((self.path, self.headers["Authorization"]))
        known = server.names is None or self.path.rpartition("/")[2] in server.names
        self.send_response(server.status if known else 404)
        if server.location is not None:
            self.send_header("Location", server.location)
        self.send_header("Content-Length", str(len(server.reply)))
        self.end_headers()
        self.wfile.write(server.reply)

    do_GET = do_POST = answer

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="session", autouse=True)
def _no_tracking_from_outside() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="session")
def empty_store(made_once: MadeOnce) -> Path:
    """A tracking database with nothing in it; MLflow takes many seconds to make one, so tests copy this."""
    from components.mlflow_store import connect
    from gkd_core.config import TrackingConfig

    def fill(folder: Path) -> None:
        with connect(TrackingConfig(uri=f"sqlite:///{folder / 'mlflow.db'}"), again="", create=True):
            pass

    return made_once("store", fill) / "mlflow.db"


@pytest.fixture(scope="session")
def registration(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Registration:
    """A first registration, read by tests and never written to."""
    from components import register

    root = tmp_path_factory.mktemp("registered")
    shutil.copy(empty_store, root / "mlflow.db")
    params = parse_params({"distill": {"method": "gompertz"}, "tracking": {"uri": f"sqlite:///{root / 'mlflow.db'}"}})
    folders = _finish(root / "run", params=params)
    summary = register.run(**folders._asdict(), out=root / "registration", params=params)
    return Registration(folders, params, summary, root / "registration")


@pytest.fixture
def store_uri(tmp_path: Path, empty_store: Path) -> str:
    """The address of this test's own tracking database."""
    folder = tmp_path / "a store"
    folder.mkdir()
    shutil.copy(empty_store, folder / "mlflow.db")
    return f"sqlite:///{folder / 'mlflow.db'}"
