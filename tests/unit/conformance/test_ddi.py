# SPDX-License-Identifier: MIT
"""The table of KMCL's functions: complete, true, and on the page."""

from __future__ import annotations

import importlib
from dataclasses import fields
from enum import IntFlag
from pathlib import Path

import pytest

from emulator.conformance import suite
from emulator.conformance.ddi import FUNCTIONS, VOID, Function, markdown
from emulator.conformance.ddi_types import CALLBACKS, FLAGS, Callback, Flag
from emulator.kmcl import InitFlags, ServerInitFlags, StateChangeCallbacks, config, packets
from emulator.kmcl.inferred import SWITCHES

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


@pytest.mark.parametrize("callback", CALLBACKS, ids=lambda callback: callback.ddi)
def test_each_callback_has_a_field_or_type(callback: Callback) -> None:
    for number in callback.scenarios:
        assert number in suite.load()
    owner, _, name = callback.here.rpartition(".")
    if owner:
        assert name in {field.name for field in fields(StateChangeCallbacks)}
    elif name:
        assert hasattr(config, name) or hasattr(packets, name)
    else:
        assert callback.note
    assert bool(callback.basis) is bool(callback.here)


def test_all_callbacks_are_there() -> None:
    # kmcl: eleven types; the _EX variants differ in the context only.
    assert len({callback.ddi for callback in CALLBACKS}) == 11


@pytest.mark.parametrize("flag", FLAGS, ids=lambda flag: flag.ddi)
def test_a_flag_that_is_a_member_has_its_value(flag: Flag) -> None:
    owner, _, name = flag.here.partition(".")
    kinds: dict[str, type[IntFlag]] = {
        "InitFlags": InitFlags,
        "ServerInitFlags": ServerInitFlags,
    }
    if owner in kinds:
        assert kinds[owner][name] == flag.value
    else:
        assert flag.here or flag.note


def test_each_flag_of_a_channel_is_on_the_page() -> None:
    here = {flag.here for flag in FLAGS}
    for kind in (InitFlags, ServerInitFlags):
        assert {f"{kind.__name__}.{member.name}" for member in kind} <= here


def test_a_switch_is_named_by_what_it_switches_and_that_is_marked_inferred() -> None:
    named = {name for entry in (*FUNCTIONS, *CALLBACKS) for name in entry.switches}
    assert named == {switch.name for switch in SWITCHES}
    for entry in (*FUNCTIONS, *CALLBACKS):
        if entry.switches:
            assert "I" in entry.basis, entry.ddi


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.ddi)
def test_a_status_of_what_returns_none_is_marked_inferred(function: Function) -> None:
    if function.statuses and function.note == VOID:
        assert "I" in function.basis


def test_the_page_is_what_the_table_says() -> None:
    again = "python -m emulator.conformance.ddi > docs/kmcl.md"
    assert (ROOT / "docs/kmcl.md").read_text() == markdown(), f"make it anew: {again}"
