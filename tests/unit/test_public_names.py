"""The examples in the docstrings of the public names run, and give what they say."""

import doctest
import importlib
import subprocess
import sys

import pytest
import torch

import gkd_core as gkd

MODULES = sorted({*gkd._HOME.values(), "gkd_core"})


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_run(name, capsys):
    module = importlib.import_module(name)
    known = {"torch": torch, **{public: getattr(gkd, public) for public in gkd.__all__}}
    failed, _ = doctest.testmod(module, extraglobs=known, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert not failed, capsys.readouterr().out


def test_every_public_function_has_an_example():
    for name in gkd._HOME:
        assert ">>>" in (getattr(gkd, name).__doc__ or ""), name


def test_importing_the_library_imports_no_torch():
    program = "import gkd_core, sys; dir(gkd_core); assert not {'torch', 'numpy', 'pydantic'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        gkd.trian  # noqa: B018
