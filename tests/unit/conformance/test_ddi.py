# SPDX-License-Identifier: MIT
"""The table of KMCL's functions: complete, true, and on the page."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from emulator.conformance import suite
from emulator.conformance.ddi import FUNCTIONS, Function, markdown

ROOT = Path(__file__).parents[3]


def test_each_function_is_there_once() -> None:
    names = [function.ddi for function in FUNCTIONS]
    assert len(set(names)) == len(names)
    # 41 of client interface V1, 3 + 2 + 2 + 9 of V2 to V5, 14 + 1 for servers, 2 exports.
    assert len(names) == 41 + 3 + 2 + 2 + 9 + 14 + 1 + 2


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.ddi)
def test_what_stands_for_it_exists_and_says_so(function: Function) -> None:
    for number in function.scenarios:
        assert number in suite.load()
    if not function.python:
        assert function.note
        return
    path, _, name = function.python.rpartition(".")
    module, _, owner = path.rpartition(".")
    found = getattr(getattr(importlib.import_module(module), owner), name)
    words = found.__doc__
    if name == "__init__":
        words = getattr(importlib.import_module(module), owner).__doc__
    assert function.ddi in words, f"{function.python} does not name it"


def test_the_page_is_what_the_table_says() -> None:
    again = "python -m emulator.conformance.ddi > docs/kmcl.md"
    assert (ROOT / "docs/kmcl.md").read_text() == markdown(), f"make it anew: {again}"
