"""Small real things that many tests need: the digits, prepared once, and networks trained on them for a moment."""

import sys
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
def digits(tmp_path_factory) -> Path:
    """The digits, prepared."""
    from components import prepare

    out = tmp_path_factory.mktemp("digits") / "data"
    prepare.run(out=out, params=small())
    return out


@pytest.fixture(scope="session")
def few_digits(tmp_path_factory, digits) -> Path:
    """A few of the digits, prepared: for tests that train many networks."""
    import numpy as np

    from gkd_core.data.prepared import PreparedData, write_info

    counts = {"train": 100, "validation": 50, "test": 40}
    whole = PreparedData.open(digits)
    folder = tmp_path_factory.mktemp("few") / "data"
    for name, count in counts.items():
        split = whole.split(name)
        (folder / name).mkdir(parents=True)
        np.save(folder / name / "images.npy", np.array(split.images[:count]))
        np.save(folder / name / "labels.npy", split.labels[:count])
    info = whole.info.model_copy(update={"counts": counts})
    write_info(folder, info.model_copy(update={"sha256": PreparedData(folder, info).digest()}))
    return folder


@pytest.fixture(scope="session")
def teacher(tmp_path_factory, digits) -> Path:
    """A teacher folder: a resnet8 after two epochs."""
    from components import teacher as step

    folder = tmp_path_factory.mktemp("teacher")
    step.run(data=digits, out=folder / "teacher", work=folder / "work", params=small())
    return folder / "teacher"


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
