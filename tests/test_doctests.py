"""The examples in the package's docstrings do what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import burnish

WITH_EXAMPLES = [
    module.name
    for module in pkgutil.walk_packages(burnish.__path__, "burnish.")
    if ">>> " in (importlib.util.find_spec(module.name).loader.get_source(module.name) or "")
]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples(name: str) -> None:
    failed, _ = doctest.testmod(importlib.import_module(name))
    assert not failed, "see what doctest printed"
