"""The examples in docstrings run, and give what they say."""

from __future__ import annotations

import doctest
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted((ROOT / "bliss_index").rglob("*.py"))
    if ">>> " in path.read_text()
]


def test_there_are_examples():
    assert {"bliss_index.search.exact", "bliss_index.scoring.thresholds"} <= set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_examples_of(module):
    failed, _ = doctest.testmod(import_module(module), verbose=False)
    assert failed == 0
