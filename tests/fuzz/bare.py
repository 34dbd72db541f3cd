# SPDX-License-Identifier: MIT
"""The bare-metal guests of tests/guest, as guests of the device under test."""

from __future__ import annotations

from pathlib import Path

from emulator.machine.qemu import HYPERV_FLAGS
from tests.fuzz.target import Guest


def bare(
    program: Path,
    words: str,
    *,
    smp: int,
    tick: str,
    paused: bool = False,
    doorbell: int | None = None,
) -> Guest:
    """Return a guest that runs ``words`` on all of ``smp`` processors; paused: when it is let go.

    It has no device to end QEMU with, so that the machine is still there when the program is over.
    """
    features = ",".join(flag.removeprefix("hv-").partition("=")[0] for flag in HYPERV_FLAGS)
    return Guest(
        (
            *("-kernel", str(program), "-append", f"cpus={smp} hv={features} {words}"),
            *("-device", "isa-debugcon,iobase=0xe9,chardev=console"),
            *(("-S",) if paused else ()),
        ),
        tick,
        smp=smp,
        memory_mib=128,
        doorbell=doorbell,
    )


def storm(program: Path) -> Guest:
    """Return the guest that posts and signals on three processors, and ticks on the first."""
    return bare(program, "run=storm", smp=4, tick="^storm tick", doorbell=0x2001)
