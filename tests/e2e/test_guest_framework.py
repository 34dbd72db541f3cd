# SPDX-License-Identifier: MIT
"""The bare-metal framework itself: it counts, finds faults and hangs, and the storm storms."""

from __future__ import annotations

import pytest

from tests.e2e.guest_program import GuestFailed, Programs, Setup

pytestmark = [pytest.mark.asyncio, pytest.mark.e2e]


@pytest.mark.parametrize("bits", [64, 32])
@pytest.mark.parametrize("x2apic", [False, True], ids=["xapic", "x2apic"])
@pytest.mark.parametrize("cpus", [1, 8])
async def test_the_framework_runs_on_all_processors(
    programs: Programs, bits: int, x2apic: bool, cpus: int
) -> None:
    await programs.passes(Setup("self", cpus=cpus, bits=bits, x2apic=x2apic))


async def test_storm_goes_on_whatever_the_host_answers(programs: Programs) -> None:
    async with programs.start(Setup("storm", cpus=4, words=["ticks=5", "connection=77"])) as run:
        line = await run.until("storm tick=4")
        assert "other=0" in line
        assert int(line.partition("unknown=")[2].split()[0]) > 0
        assert await run.ended() == 1


async def test_a_program_that_hangs_is_found_with_its_last_lines(programs: Programs) -> None:
    async with programs.start(Setup("broken", words=["how=hang"])) as run:
        run.silence = 2
        with pytest.raises(GuestFailed, match=r"(?s)hangs.*CPU#0.*before the end"):
            await run.until("never said")


@pytest.mark.parametrize(
    ("how", "shows"),
    [
        ("fail", "not ok 1 - broken: two is three: got 0x2, expected 0x3"),
        ("fault", "Bail out! exception 6"),
        ("triple", "before the end"),
    ],
)
async def test_a_program_that_fails_is_a_failure(programs: Programs, how: str, shows: str) -> None:
    setup = Setup("broken", words=[f"how={how}"], qemu_args=["-no-reboot"])
    with pytest.raises(GuestFailed, match=shows):
        await programs.passes(setup)
