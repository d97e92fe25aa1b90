"""Small real things that many tests need: the digits, prepared once, and networks trained on them for a moment."""

import fcntl
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from gkd_core.config import Params, parse_params

GKD = [sys.executable, "-m", "pipelines.cli"]
ROOT = Path(__file__).parents[1]

SMALL = {
    "teacher": {"name": "resnet8", "train": {"epochs": 2, "learning_rate": 0.1, "device": "cpu"}},
    "student": {"name": "resnet8"},
    "train": {"epochs": 2, "device": "cpu"},
    "evaluate": {"latency_runs": 10},
}


def small(**sections: dict) -> Params:
    """Parameters for a moment's training on the digits, sections replaced or extended."""
    return parse_params({name: SMALL.get(name, {}) | sections.get(name, {}) for name in {*SMALL, *sections}})


@pytest.fixture(scope="session")
def made_once(tmp_path_factory) -> Callable[[str, Callable[[Path], Any]], Path]:
    """A function (name, fill) → folder: the first of pytest-xdist's processes that asks fills it for all of them."""
    base = tmp_path_factory.getbasetemp()
    root = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def made(name: str, fill: Callable[[Path], Any]) -> Path:
        folder = root / name
        with (root / f"{name}.lock").open("a+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if lock.seek(0, os.SEEK_END) == 0:  # not where it ended when it was opened: another may have written since
                shutil.rmtree(folder, ignore_errors=True)  # of one who failed
                folder.mkdir()
                fill(folder)
                lock.write("made")
        return folder

    return made


@pytest.fixture
def forget_plugins(monkeypatch, tmp_path):
    """What plugins register meanwhile is taken back afterwards; modules in `tmp_path`, and what leads to them, go."""
    from gkd_core import plugins

    monkeypatch.setattr(plugins, "_installed", None)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for owner in set(plugins._owners.values()):
        plugins.release(owner)
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]
    plugins._digests.clear()


@pytest.fixture(scope="session")
def digits(made_once) -> Path:
    """The digits, prepared."""
    from components import prepare

    return made_once("digits", lambda folder: prepare.run(out=folder / "data", params=small())) / "data"


@pytest.fixture(scope="session")
def few_digits(made_once, digits) -> Path:
    """A few of the digits, prepared: for tests that train many networks."""
    return made_once("few", lambda folder: _few(digits, folder / "data")) / "data"


def _few(digits: Path, folder: Path) -> None:
    import numpy as np

    from gkd_core.data.prepared import PreparedData, write_info

    counts = {"train": 100, "validation": 50, "test": 40}
    whole = PreparedData.open(digits)
    for name, count in counts.items():
        split = whole.split(name)
        (folder / name).mkdir(parents=True)
        np.save(folder / name / "images.npy", np.array(split.images[:count]))
        np.save(folder / name / "labels.npy", split.labels[:count])
    info = whole.info.model_copy(update={"counts": counts})
    write_info(folder, info.model_copy(update={"sha256": PreparedData(folder, info).digest()}))


@pytest.fixture(scope="session")
def teacher(made_once, digits) -> Path:
    """A teacher folder: a resnet8 after two epochs."""
    from components import teacher as step

    def train(folder: Path) -> None:
        step.run(data=digits, out=folder / "teacher", work=folder / "work", params=small())

    return made_once("teacher", train) / "teacher"


@pytest.fixture(scope="session")
def web_files(made_once) -> Path:
    """What a bundle's page runs on, fetched by npm."""
    from gkd_core.export.web_runtime import read_runtime

    def fetch(folder: Path) -> None:
        for name, content in read_runtime().items():
            (folder / name).write_bytes(content)

    return made_once("web-runtime", fetch)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, with a camera that needs no hardware and asks nobody.

    Of a module's own, since playwright keeps an event loop in its thread meanwhile.
    """
    from playwright.sync_api import expect

    from benchmarks.pictures import chromium

    expect.set_options(timeout=60_000)  # ms that a condition may take to come true; 5 s are short on a busy machine
    with chromium("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream") as running:
        yield running


@pytest.fixture(scope="session")
def make_deploy() -> Callable[..., Path]:
    """A function that writes a deploy folder with a small convolutional network, without torch; see `deploy_folder`."""
    return deploy_folder


def deploy_folder(
    folder: Path,
    *,
    seed: int = 0,
    side: int = 8,
    channels: int = 1,
    count: int = 10,
    classes: tuple[str, ...] | None = None,
    lineage: dict[str, str] | None = None,
    decision: Any = None,
    pixels: bool = False,
    **described: Any,
) -> Path:
    """Pixels [B, side, side, channels] → convolution, rectifier, mean over places, linear layer → `count` logits.

    Args:
        classes, lineage: names, and digests; made up unless given.
        decision: a `gkd_core.decision.Decision` for the file; where it looks at features, the means of the classes are
            made up.
        pixels: beside it the file that takes pictures of any size.
        described: what the manifest says otherwise.
    """
    import json

    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from gkd_core.decision import OF_FEATURES
    from gkd_core.export.class_distance import ClassDistance
    from gkd_core.export.decision_graph import EMBEDDING
    from gkd_core.export.manifest import build_manifest, kept_file, pixels_file, write_manifest
    from gkd_core.export.pixels import write_pixels

    random = np.random.default_rng(seed)
    weights = {
        "filters": random.normal(size=(16, channels, 3, 3)),
        "head": random.normal(size=(16, count)),
        "white": np.array(255.0),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["pixels", "white"], ["scaled"]),
        helper.make_node("Transpose", ["scaled"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "filters"], ["seen"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["seen"], ["active"]),
        helper.make_node("GlobalAveragePool", ["active"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["features"]),
        helper.make_node("MatMul", ["features", "head"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", side, side, channels])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", count])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    distance = None
    if decision is not None and decision.score in OF_FEATURES:
        graph.node.append(helper.make_node("Identity", ["features"], [EMBEDDING]))
        graph.output.append(helper.make_tensor_value_info(EMBEDDING, TensorProto.FLOAT, ["batch", 16]))
        means = random.uniform(size=(count, 16))
        means /= np.linalg.norm(means, axis=1, keepdims=True)
        plain = (np.zeros(16), np.eye(16), np.ones(16), 0.0, means)
        distance = ClassDistance(*(np.asarray(each, np.float32) for each in plain))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    classes = classes or tuple(f"class {number}" for number in range(count))
    digests = ("data_sha256", "teacher_digest", "student_digest", "config_digest")
    lineage = lineage or dict.fromkeys(digests, str(seed % 10) * 64)
    described = {"method": "gompertz", "network": "small", "preprocessing": {}, "parity": {"max_abs": 0.0}} | described
    inside = {key: described[key] for key in ("method", "network")} | {"classes": json.dumps(classes)}
    helper.set_model_props(model, {**lineage, **inside, "input": "uint8_nhwc"})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(model.SerializeToString(deterministic=True))
    if decision is not None:
        from gkd_core.export.decision_graph import append_decision

        append_decision(folder / "model.onnx", decision, distance)
    if pixels:
        write_pixels(folder / "model.onnx", file := folder / pixels_file("fp32"), crop="center")
        described["pixels"] = {"fp32": kept_file(file, {"input": "pixels"})}
    manifest = build_manifest(
        folder / "model.onnx",
        decision=decision,
        input="uint8_nhwc",
        input_shape=(side, side, channels),
        opset=18,
        classes=classes,
        lineage=lineage,
        **described,
    )
    write_manifest(folder, manifest)
    onnx.checker.check_model(model, full_check=True)
    return folder


class NothingReadBack(TorchDispatchMode):
    """Fails where a value, or a shape that depends on one, would be asked of the device: an accelerator waits there.

    On the CPU nothing waits, so the operations themselves are watched, in the backward pass too, while `watching`.
    """

    WAITS = (
        "_local_scalar_dense",
        "_linalg_check_errors",
        "_unique",
        "_unique2",
        "allclose",
        "bincount",
        "equal",
        "is_nonzero",
        "masked_select",
        "nonzero",
        "unique_consecutive",
        "unique_dim",
    )

    def __init__(self) -> None:
        super().__init__()
        self.watching = True
        self._readers = _NoReaders(self)

    def __enter__(self) -> Self:
        self._readers.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._readers.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.watching:
            name = func.overloadpacket.__name__
            assert name not in self.WAITS, f"{name} waits for the device"
            assert name != "repeat_interleave" or kwargs.get("output_size") is not None, f"{name} waits for the device"
            assert not _by_mask(name, args), f"{name} by a mask waits for the device"
        return func(*args, **kwargs)


class _NoReaders(TorchFunctionMode):
    """Tensor methods that copy to the host without an operation that the dispatcher sees."""

    READERS = (Tensor.tolist, Tensor.numpy, Tensor.cpu, Tensor.__array__)

    def __init__(self, watch: NothingReadBack) -> None:
        super().__init__()
        self._watch = watch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._watch.watching:
            assert func not in self.READERS, f"{func.__name__} waits for the device"
        return func(*args, **(kwargs or {}))


def _by_mask(name: str, args: Any) -> bool:
    """Whether elements are picked or put where a mask is true; a single value is put without counting them."""
    if name not in ("index", "index_put", "index_put_", "_index_put_impl_"):
        return False
    masks = [index for index in args[1] if index is not None and index.dtype in (torch.bool, torch.uint8)]
    return bool(masks) and (name == "index" or args[2].numel() != 1)


@pytest.fixture
def nothing_read_back() -> type[NothingReadBack]:
    """A block in which nothing may be read back from the device."""
    return NothingReadBack


@pytest.fixture(autouse=True)
def _seed():
    """Tests that draw at random draw the same each time."""
    torch.manual_seed(0)


def pytest_terminal_summary(terminalreporter):
    """Nothing is left out silently."""
    chosen = terminalreporter.config.option.markexpr
    if chosen:
        terminalreporter.write_line(
            f"left out: what is not ({chosen}); `make e2e` after `make demo` runs the e2e checks"
        )
