"""Every example in a docstring runs, and every public name has one."""

import doctest
import importlib
import inspect
import pkgutil

import pytest

import mbkg_xr as mx

OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
MODULES = sorted(m.name for m in pkgutil.walk_packages(mx.__path__, "mbkg_xr."))


@pytest.mark.parametrize("name", ["mbkg_xr", *MODULES])
def test_examples(name):
    result = doctest.testmod(importlib.import_module(name), optionflags=OPTIONS)
    assert result.failed == 0


@pytest.mark.parametrize("name", [n for n in mx.__all__ if n != "SHUTTER_CENTRES"])
def test_public_names_are_documented(name):
    text = inspect.getdoc(getattr(mx, name)) or ""
    assert "Parameters\n---" in text, f"{name} does not document its parameters"
    assert ">>>" in text, f"{name} has no example"
