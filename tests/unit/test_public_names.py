"""The examples in the docstrings of the public names run, and give what they say."""

import doctest
import importlib
import pkgutil
import subprocess
import sys

import pytest
import torch

import gkd_core as gkd
from tests.unit.stripes import network

LOSSES = {f"gkd_core.losses.{module.name}" for module in pkgutil.iter_modules(gkd.losses.__path__)}
MODULES = sorted({*gkd._HOME.values(), *LOSSES, "gkd_core", "gkd_core.errors"})


@pytest.fixture(scope="module")
def known() -> dict[str, object]:
    """The public names; and what the examples of losses take for granted: two networks of 4 classes and a batch."""
    return {public: getattr(gkd, public) for public in gkd.__all__} | {
        "torch": torch,
        "student": network("resnet8", 0),
        "teacher": network("wrn_16_2", 1).eval().requires_grad_(False),
        "images": torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0)),
        "labels": torch.tensor([0, 1, 2, 3, 0, 1]),
    }


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_run(name, known, capsys, forget_plugins):
    module = importlib.import_module(name)
    failed, _ = doctest.testmod(module, extraglobs=known, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert not failed, capsys.readouterr().out


def test_every_public_function_has_an_example():
    for name in gkd._HOME:
        assert ">>>" in (getattr(gkd, name).__doc__ or ""), name
    for name in gkd.losses.__all__:
        assert ">>>" in (getattr(gkd.losses, name).__doc__ or ""), name


def test_importing_the_library_imports_no_torch():
    program = "import gkd_core, sys; dir(gkd_core); assert not {'torch', 'numpy', 'pydantic'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        gkd.trian  # noqa: B018
