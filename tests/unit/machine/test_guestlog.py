# SPDX-License-Identifier: MIT
"""A flood of log lines is cut to its limit, counted, and nobody else's lines are lost in it."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulator.machine.guestlog import LimitedHandler, vm_logger


class Rig:
    """A logger on a limited handler, and a clock that the test moves."""

    def __init__(self, limits: dict[str, int], other: int = 3) -> None:
        self.now = 100.0
        self.text = io.StringIO()
        self.logger = logging.Logger("module")
        self.handler = LimitedHandler(limits, other, self.text, lambda: self.now)
        self.logger.addHandler(self.handler)

    def lines(self) -> list[str]:
        return [line.split(" ", 2)[2] for line in self.text.getvalue().splitlines()]


@pytest.fixture
def rig() -> Rig:
    return Rig({"one": 5, "two": 2})


def test_lines_within_the_limit_are_all_there(rig: Rig) -> None:
    log = vm_logger(rig.logger, "one")
    for number in range(5):
        log.warning("line %d", number)
    assert rig.lines() == [f"WARNING module: one: line {number}" for number in range(5)]


def test_a_flood_is_cut_and_counted_when_there_is_room_again(rig: Rig) -> None:
    log = vm_logger(rig.logger, "one")
    for number in range(1000):
        log.warning("line %d", number)
    assert len(rig.lines()) == 5
    rig.now += 1
    log.warning("the next")
    assert rig.lines()[5:] == [
        "WARNING module: one: 995 more lines were suppressed: too many in a second",
        "WARNING module: one: the next",
    ]


class FakeLoop:
    """Timers that the test fires."""

    def __init__(self) -> None:
        self.timers: list[Callable[[], None]] = []

    def call_later(self, delay: float, callback: Callable[[], None]) -> None:
        assert delay == 1
        self.timers.append(callback)


def test_the_last_lines_of_a_flood_are_counted_by_one_timer(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = FakeLoop()
    monkeypatch.setattr("asyncio.get_running_loop", lambda: loop)
    log = vm_logger(rig.logger, "two")
    for _ in range(10):
        for _ in range(10):
            log.warning("flood")
        rig.now += 1
        assert len(loop.timers) == 1
    while loop.timers:
        rig.now += 1
        loop.timers.pop()()
    text = rig.text.getvalue()
    suppressed = sum(map(int, re.findall(r"(\d+) more lines", text)))
    assert text.count("flood") + suppressed == 100


def test_vms_and_modules_have_limits_of_their_own(rig: Rig) -> None:
    one, two = vm_logger(rig.logger, "one"), vm_logger(rig.logger, "two")
    for _ in range(100):
        one.error("flood")
    for _ in range(3):
        two.error("mine")
        rig.logger.error("ours")
    assert [line.split(": ", 1)[1] for line in rig.lines()] == (
        ["one: flood"] * 5 + ["two: mine", "ours"] * 2 + ["ours"]
    )


def test_a_name_with_percent_signs_is_only_a_name(rig: Rig) -> None:
    vm_logger(rig.logger, "100%d").error("with %s", "arguments")
    assert rig.lines() == ["ERROR module: 100%d: with arguments"]


@given(st.lists(st.floats(0, 0.7), max_size=200), st.integers(1, 6))
def test_no_second_has_more_lines_than_the_limit_and_all_are_counted(
    pauses: list[float], limit: int
) -> None:
    rig = Rig({"vm": limit})
    log = vm_logger(rig.logger, "vm")
    written: list[float] = []
    for pause in [*pauses, 1.5, 1.5]:
        rig.now += pause
        before = len(rig.lines())
        log.warning("line")
        written += [rig.now] * (len(rig.lines()) - before)
    for at in written:
        assert sum(at <= other < at + 1 for other in written) <= limit
    rig.handler.close()
    suppressed = sum(map(int, re.findall(r"(\d+) more lines", rig.text.getvalue())))
    shown = sum(line.endswith("line") for line in rig.lines())
    assert shown + suppressed == len(pauses) + 2
