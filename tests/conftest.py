"""Small real things that many tests need: the digits, prepared once, and networks trained on them for a moment."""

import sys
from pathlib import Path

import pytest
import torch

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
