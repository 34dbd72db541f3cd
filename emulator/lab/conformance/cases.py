# SPDX-License-Identifier: MIT
"""Which scenarios a guest can see, what is done for each, and why for the others nothing can be.

A case is what is done with whole machines for one scenario of :mod:`emulator.conformance.suite`, or
of :data:`MACHINE`, the ways in which a machine comes back.
"""

from __future__ import annotations

import importlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from emulator.conformance import suite
from emulator.conformance.suite import Basis, Scenario, Section
from emulator.lab.conformance.bench import Bench
from emulator.lab.conformance.unseen import UNSEEN

Work = Callable[[Bench], Awaitable[str]]


@dataclass(frozen=True)
class Case:
    """``run`` returns what was seen, or raises :class:`~emulator.conformance.suite.Mismatch`.

    ``uses`` names the control commands of docs/probe.md that the guest is given, ``quick`` says
    that it belongs to the reduced set of every test run, and ``linux`` that it needs the shell of
    the Linux test guest.
    """

    key: str
    uses: str
    quick: bool
    linux: bool
    run: Work


CASES: dict[str, Case] = {}


def case(
    key: str, *, uses: str, quick: bool = False, linux: bool = False
) -> Callable[[Work], Work]:
    """Register what is done for the scenario ``key``."""

    def register(run: Work) -> Work:
        assert key not in CASES, f"{key} is defined twice"
        assert key not in UNSEEN, f"{key} cannot be seen, and is"
        CASES[key] = Case(key, uses, quick, linux, run)
        return run

    return register


def _machine(
    number: int,
    title: str,
    expected: str,
    source: str,
    basis: tuple[Basis, ...],
    specified: bool = True,
) -> Scenario:
    return Scenario(number, Section.MACHINE, title, expected, basis, source, specified, None)


_C: Final = (Basis.CORROBORATED,)
_I: Final = (Basis.INFERRED,)

MACHINE: Final = {
    made.key: made
    for made in (
        _machine(0, "pause and resume", "the guest sees nothing", "QMP stop, cont", _I),
        _machine(
            1,
            "a restore in which the channels stay open",
            "rings and transaction ids as they were; at most one interrupt too many; packets in "
            "flight are completed later",
            "mu_msvm RingBuffer.c; OpenVMM, vmbus_server: restore",
            _C,
        ),
        _machine(
            2,
            "a restore in which the device has no state",
            "Rescind, then a new Offer; the client's channel is closed and a new one opened",
            "OpenVMM, vmbus_server: revoke_unclaimed_channels",
            _C,
        ),
        _machine(
            3,
            "a channel taken back and offered again, live",
            "as R2, without a restore",
            "OpenVMM, vmbus_server: revoke, offer",
            _C,
        ),
        _machine(
            4,
            "the guest hibernates and resumes (S4)",
            "Unload, a new contact, offers of the same instances; relids may differ",
            "Linux, Documentation/virt/hyperv/hibernation.rst",
            _C,
        ),
        _machine(
            5,
            "a second InitiateContact without an Unload",
            "the bus begins anew, and every channel of before is closed",
            "OpenVMM, vmbus_server: initiate_contact; crash kernels, firmware",
            _C,
        ),
        _machine(
            6,
            "the back-end ends and is started again",
            "nothing is seen if its state is kept; else the channels begin anew",
            "vhost-user's reconnect",
            _I,
            specified=False,
        ),
        _machine(
            7,
            "a restore under a lower limit of version",
            "refused before the guest runs, or the channels are offered anew",
            "OpenVMM #3482",
            _C,
        ),
    )
}


def scenarios() -> dict[str, Scenario]:
    """Return all scenarios by key, in order; the 71, then R0 to R7."""
    return {scenario.key: scenario for _, scenario in sorted(suite.load().items())} | MACHINE


def load() -> dict[str, Case]:
    """Register all cases, and return them by key."""
    for name in ("flight", "saving", "refusing", "control", "machine", "gpadls"):
        importlib.import_module(f"emulator.lab.conformance.{name}")
    return CASES
