# SPDX-License-Identifier: MIT
"""The scenarios, run on an endpoint that does the other thing where no document decides.

A scenario that notices the other reading is recorded, with what was seen, in place of passing or
failing: it tells the author of a driver what would change. Every other scenario has to hold as it
does with the defaults.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from emulator.conformance.rig import choosing
from emulator.conformance.suite import Result, Verdict, run
from emulator.kmcl.inferred import DEFAULTS, SWITCHES, Inferred, parse_inferred

_WITH_A_PACKET_IN_THE_RING: Final = frozenset(
    [*range(1, 5), *range(6, 11), 12, 13, 14, 17, *range(19, 35), 39, 40, 41, 43]
) | frozenset([*range(45, 50), 58, 67, 68, 69, 71])
"""Scenarios that pause a channel whose guest has not completed a packet."""

NOTICED: Final[dict[str, frozenset[int]]] = {
    "pause": _WITH_A_PACKET_IN_THE_RING,
    "opened": frozenset({39, 40}),
    "save_packet": frozenset({20, 21}),
    "unopened": frozenset(),
    "unregistered": frozenset({4}),
    "growing": frozenset({21}),
    "save_size": frozenset({7, 13, 22}),
    "unrestored": frozenset({31}),
    "failed_queue": frozenset({52}),
    "pending": frozenset({54}),
    "first_packets": frozenset({39}),
    "unknown": frozenset(),
    "retired": frozenset({32, 63, 69}),
}
"""Which scenarios notice a switch; tests/unit/kmcl/test_kmcl_inferred.py tests all of them."""


def settings(words: Iterable[str]) -> Inferred:
    """Read SWITCH=READING words; raises ValueError with one clear line."""
    return parse_inferred(words)


def switched(inferred: Inferred) -> list[str]:
    """Name the switches that are not at their default."""
    return [
        switch.name
        for switch in SWITCHES
        if getattr(inferred, switch.name) is not getattr(DEFAULTS, switch.name)
    ]


def run_with(inferred: Inferred, numbers: Iterable[int] = ()) -> list[Result]:
    """Run scenarios, as :func:`~emulator.conformance.suite.run`, with these settings."""
    names = switched(inferred)
    noticing: frozenset[int] = frozenset().union(*(NOTICED[name] for name in names))
    with choosing(inferred):
        results = run(numbers)
    return [
        _recorded(result, inferred) if result.scenario.number in noticing else result
        for result in results
    ]


def _recorded(result: Result, inferred: Inferred) -> Result:
    if result.verdict is Verdict.BROKEN:
        return result
    return replace(result, verdict=Verdict.RECORDED, observed=f"with {inferred}: {result.observed}")
