"""Two processes that share each batch come to the weights of one that has it whole: every method, by real processes.

Batch norms keep their statistics here, for on a CPU each process normalises its own part (CUDA has SyncBatchNorm).
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from gkd_core.training import distributed
from tests.unit.stripes import network
from tests.unit.training import side_by_side

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.slow  # every method, in one process and in two


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> tuple[dict, list[dict]]:
    """What one process comes to, and each of two."""
    folder = tmp_path_factory.mktemp("side by side")

    def run(name: str, *launcher: str) -> list[dict]:
        (folder / name).mkdir()
        command = [sys.executable, *launcher, "-m", side_by_side.__name__, folder / name]
        subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True)
        return [torch.load(file, weights_only=True) for file in sorted((folder / name).glob("*.pt"))]

    (one,) = run("one")
    return one, run("two", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def names() -> list[str]:
    more = {
        "mixed": side_by_side.MIXED,
        "unlabelled": side_by_side.UNLABELLED,
        "head first": side_by_side.HEAD_FIRST,
        **side_by_side.BALANCED,
    }
    return [*side_by_side.CASES, *(f"{name} {how}" for how, some in more.items() for name in some)]


@pytest.mark.parametrize("name", names())
def test_two_processes_come_to_the_weights_of_one(results, name):
    one, two = results
    expected = one["cases"][name]
    for rank in range(2):
        state = two[rank]["cases"][name]["state"]
        assert state.keys() == expected["state"].keys()
        for key, value in expected["state"].items():
            torch.testing.assert_close(state[key], value, rtol=1e-9, atol=1e-11, msg=lambda m, key=key: f"{key}: {m}")
        for row, wanted in zip(two[rank]["cases"][name]["history"], expected["history"], strict=True):
            assert row == pytest.approx(wanted, rel=1e-5, abs=1e-6)


def test_a_number_that_is_none_in_one_process_stops_both_with_the_same_sentence(results):
    _, (first, second) = results
    assert first["poisoned"] == second["poisoned"]
    assert "at epoch 1, step 2 of 2, poison" in first["poisoned"]


def test_both_processes_resume_each_with_its_own_random_numbers(results):
    _, both = results
    for result in both:
        for key, value in both[0]["uninterrupted"]["state"].items():
            assert torch.equal(result["resumed"]["state"][key], value), key
    states = [result["uninterrupted"]["state"] for result in both]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0]), "the processes drifted apart"


def test_alone_nothing_is_asked_of_anybody():
    assert (distributed.processes(), distributed.rank()) == (1, 0)
    module, numbers = torch.nn.Linear(1, 1), torch.arange(3)
    assert distributed.replicated(module) is module
    assert distributed.total(numbers) is numbers
    assert distributed.of_first(lambda: "made") == "made"
    assert distributed.of_each("mine") == ["mine"]
    vote = distributed.Vote()
    assert (vote(15), vote.settle(), vote(0)) == (15, 0, 0)


@pytest.mark.parametrize("name", ["resnet8x4", "vgg8", "MobileNetV2", "ShuffleNetV2"])
def test_on_gpus_batch_norms_are_replaced_around_the_same_parameters(name):
    """What can be seen of it on a CPU, where SyncBatchNorm refuses to run."""
    module = network(name, seed=0)
    parameters = dict(module.named_parameters())
    state = {key: value.clone() for key, value in module.state_dict().items()}
    norms = {key: (m.momentum, m.eps) for key, m in module.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert norms
    found = distributed.synchronised(module)
    assert found is module, "the loop goes on with the network it was given"
    assert norms == {key: (m.momentum, m.eps) for key, m in module.named_modules() if isinstance(m, nn.SyncBatchNorm)}
    assert not [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    assert dict(module.named_parameters()).keys() == parameters.keys()
    assert all(parameter is parameters[key] for key, parameter in module.named_parameters()), "the optimiser has these"
    assert module.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())
