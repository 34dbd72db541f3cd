# SPDX-License-Identifier: MIT
"""Timers, IPIs and messages on all processors at once, and not one of them lost.

``VMBUS_STRESS_SECONDS`` is how long all of it takes together (15); 600 is the run before a release.
"""

from __future__ import annotations

import dataclasses
import os

import pytest

from tests.e2e.guest_program import Programs, Setup
from tests.e2e.test_guest_checks import ALL_FLAGS, ICOUNT, PLAIN

pytestmark = [pytest.mark.asyncio, pytest.mark.e2e]

STRESS = Setup("stress", flags=ALL_FLAGS)
MATRIX = {
    "8-mttcg": dataclasses.replace(STRESS, cpus=8),
    "4-mttcg-plain-x2apic": dataclasses.replace(STRESS, cpus=4, flags=PLAIN, x2apic=True),
    "4-single": dataclasses.replace(STRESS, cpus=4, accel="tcg,thread=single"),
    "2-icount": dataclasses.replace(STRESS, qemu_args=ICOUNT),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MATRIX)
async def test_no_interrupt_is_lost(programs: Programs, name: str) -> None:
    seconds = max(1, int(os.environ.get("VMBUS_STRESS_SECONDS", "15")) // len(MATRIX))
    setup = dataclasses.replace(MATRIX[name], words=(f"seconds={seconds}",))
    async with programs.start(setup) as run:
        run.silence += 10 * seconds  # it says nothing until the end, and virtual time may be slow
        await run.ended()
