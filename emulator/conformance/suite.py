# SPDX-License-Identifier: MIT
"""What a scenario is, and how scenarios are run.

A scenario is one numbered statement about KMCL: what is done, what is expected, what the
expectation rests on and where that stands. It passes, or fails with what was seen instead. Where
no document says what has to happen (n/s), it is *recorded*: what our endpoint does is told, and
only what must hold in any case (nothing lost, nothing corrupted, the channel can be disabled) is
checked.
"""

from __future__ import annotations

import importlib
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum


class Basis(Enum):
    """What an expectation rests on."""

    DOCUMENTED = "D"
    """The WDK header or Microsoft Learn."""
    CORROBORATED = "C"
    """Open source of Microsoft's (OpenVMM, mu_msvm) or Linux."""
    INFERRED = "I"
    """Not stated anywhere public; to be measured on Windows before it is taken for truth."""


class Section(Enum):
    """The chapters."""

    API = "A. Registration and the save API"
    SAVE_PACKET = "B. EvtSavePacket"
    RESTORE = "C. The restore API"
    STATES = "D. States and callbacks around save and restore"
    TRAFFIC = "E. Traffic goes on"
    MEMORY = "F. External data and GPADLs"
    CONTROL = "G. Control plane and the guest's view"
    MACHINE = "R. Ways in which a machine comes back"


class Verdict(Enum):
    """How a scenario ended."""

    PASSED = "pass"
    RECORDED = "n/s"
    """Nothing is specified; what was seen is recorded, and nothing was harmed."""
    FAILED = "FAIL"
    BROKEN = "ERROR"
    """The scenario itself could not be run to its end."""
    INVISIBLE = "not visible"
    """End to end only: a guest cannot bring it about or tell it; the reason is given."""

    @property
    def good(self) -> bool:
        """Whether this is no reason to fail the run."""
        return self in (Verdict.PASSED, Verdict.RECORDED, Verdict.INVISIBLE)


class Mismatch(Exception):
    """Something else was seen than what is expected; the text says what."""


@dataclass(frozen=True)
class Scenario:
    """One numbered statement. ``run`` returns what was seen, or raises :class:`Mismatch`.

    It is None for the ways in which a machine comes back (R0 to R7), which need a machine
    (``emulator.lab.conformance``).
    """

    number: int
    section: Section
    title: str
    expected: str
    basis: tuple[Basis, ...]
    source: str
    specified: bool
    run: Callable[[], str] | None

    @property
    def key(self) -> str:
        """What a person calls it: 1 to 71, or R0 to R7."""
        return f"R{self.number}" if self.section is Section.MACHINE else str(self.number)


@dataclass(frozen=True)
class Result:
    """How one scenario ended; ``observed`` is what was seen, or what was wrong."""

    scenario: Scenario
    verdict: Verdict
    observed: str
    seconds: float


SCENARIOS: dict[int, Scenario] = {}
"""All scenarios by number; filled by the modules of :mod:`emulator.conformance.scenarios`."""


def scenario(
    number: int,
    section: Section,
    title: str,
    *,
    expected: str,
    basis: str,
    source: str,
    specified: bool = True,
) -> Callable[[Callable[[], str]], Callable[[], str]]:
    """Register a function as the scenario ``number``; ``basis`` is of D, C, I, such as "DI"."""

    def register(run: Callable[[], str]) -> Callable[[], str]:
        assert number not in SCENARIOS, f"scenario {number} is defined twice"
        SCENARIOS[number] = Scenario(
            number,
            section,
            title,
            expected,
            tuple(Basis(letter) for letter in basis),
            source,
            specified,
            run,
        )
        return run

    return register


def expect(condition: bool, otherwise: str) -> None:
    """Raise :class:`Mismatch` with ``otherwise``, what is the case, unless ``condition`` holds."""
    if not condition:
        raise Mismatch(otherwise)


def same(found: object, wanted: object, what: str) -> None:
    """Raise :class:`Mismatch` unless ``found`` is ``wanted``."""
    expect(found == wanted, f"{what}: {found!r} instead of {wanted!r}")


def run_one(which: Scenario) -> Result:
    """Run a scenario of one process; never raises."""
    assert which.run is not None, f"{which.key} needs a machine"
    began = time.perf_counter()
    try:
        observed = which.run()
        verdict = Verdict.PASSED if which.specified else Verdict.RECORDED
    except Mismatch as mismatch:
        observed, verdict = str(mismatch), Verdict.FAILED
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        observed = f"{type(error).__name__}: {error} ({where.name}, line {where.lineno})"
        verdict = Verdict.BROKEN
    return Result(which, verdict, observed, time.perf_counter() - began)


def load() -> dict[int, Scenario]:
    """Register all scenarios, and return them by number."""
    for name in ("api", "save_packet", "restore", "states", "traffic", "memory", "control"):
        importlib.import_module(f"emulator.conformance.scenarios.{name}")
    return SCENARIOS


def run(numbers: Iterable[int] = ()) -> list[Result]:
    """Run these scenarios, or all, in the order of their numbers; raises KeyError for no such."""
    load()
    wanted = sorted(set(numbers)) or sorted(SCENARIOS)
    return [run_one(SCENARIOS[number]) for number in wanted]
