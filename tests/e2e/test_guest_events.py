# SPDX-License-Identifier: MIT
"""What the guest's crash and reset MSRs do outside of the guest."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.e2e.guest_program import SILENCE, Programs, Run, Setup

pytestmark = [pytest.mark.asyncio, pytest.mark.e2e]


async def event(run: Run, name: str) -> Any:
    async with asyncio.timeout(SILENCE):
        while True:
            message = await run.events.get()
            if message["event"] == name:
                return message["data"]


@pytest.mark.parametrize("cpus", [1, 4])
async def test_a_crash_is_reported_with_its_parameters(programs: Programs, cpus: int) -> None:
    async with programs.start(Setup("crash", cpus=cpus)) as run:
        await run.until("notify")
        data = await event(run, "GUEST_PANICKED")
        assert data["action"] == "pause"
        info = data["info"]
        assert info.pop("type") == "hyper-v"
        assert info == {f"arg{n + 1}": 0x1111000011110000 * (n + 1) + n for n in range(5)}
        await run.resume()
        await run.ended()


@pytest.mark.parametrize("accel", ["tcg", "tcg,thread=single"])
@pytest.mark.parametrize("x2apic", [False, True], ids=["xapic", "x2apic"])
@pytest.mark.parametrize("cpus", [1, 4])
async def test_a_reset_leaves_nothing(
    programs: Programs, cpus: int, x2apic: bool, accel: str
) -> None:
    async with programs.start(Setup("reset", cpus=cpus, x2apic=x2apic, accel=accel)) as run:
        await run.until("reset")
        data = await event(run, "RESET")
        assert data == {"guest": True, "reason": "guest-reset"}
        await run.ended()
