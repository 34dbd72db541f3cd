# SPDX-License-Identifier: MIT
"""Hyper-V state over save and load, at each point where ``tests/guest/checkpoint.c`` stops.

Two ways: into a file, loaded by a new QEMU; and an internal snapshot, loaded by the QEMU that made
it after the guest has gone on to the next point, so that the load has much to undo.
"""

from __future__ import annotations

import asyncio
import re
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import pytest

from tests.e2e.guest_program import Programs, Run, Setup, without
from tests.e2e.test_guest_checks import ALL_FLAGS

pytestmark = [pytest.mark.asyncio, pytest.mark.e2e]

POINTS: Final = (
    "registers",
    "time",
    "timers",
    "expired",
    "in service",
    "lazy EOI outstanding",
    "lazy EOI done",
    "lazy EOI withdrawn",
    "SynIC disabled",
    "hypercall page locked",
    "end",
)
LIES: Final = 1.0
"""How long, at least, the state made at "time" lies around, in seconds."""
ICOUNT: Final = ("-icount", "shift=2")
FASTER: Final = 40
"""With ``-icount``, so much faster than the host's time the guest's may be."""

ALL: Final = Setup("checkpoint", flags=ALL_FLAGS)
NO_AVIC: Final = without(ALL_FLAGS, "hv-avic")


@dataclass
class Clock:
    """Bounds what the guest's reference counter may count at the point "time".

    A machine can only have run from the moment before it was told to go on, to the moment after
    it was known to be stopped; that is exact, however slow the host is.
    """

    factor: int = 1
    ran: float = 0.0
    since: float | None = None
    counts: dict[str, int] = field(default_factory=dict)

    def goes_on(self) -> None:
        """Call before the machine is told to go on."""
        self.since = time.monotonic()

    def stopped(self) -> None:
        """Call when the machine is known to be stopped, or to be beyond what is measured."""
        assert self.since is not None
        self.ran += time.monotonic() - self.since
        self.since = None

    def check(self, lines: list[str]) -> None:
        """Compare with what the guest has printed."""
        found = re.findall(r"reference time (before|after) (\d+)", "\n".join(lines))
        before, after = (int(count) for _, count in found[-2:])
        assert [name for name, _ in found[-2:]] == ["before", "after"]
        assert before <= after
        assert (after - before) / 1e7 <= self.ran * self.factor


def _name(stop: str) -> str:
    return stop.partition(" ")[2]


async def _lie(since: float) -> None:
    """Let the saved state get old."""
    await asyncio.sleep(max(0.0, LIES - (time.monotonic() - since)))


def _assert_complete(seen: list[str], setup: Setup) -> None:
    wanted = [p for p in POINTS if "hv-vapic" in setup.flags or not p.startswith("lazy EOI")]
    # A state that was over when the machine stopped is tried again.
    assert list(dict.fromkeys(seen)) == wanted


@pytest.mark.parametrize(
    "setup",
    [
        pytest.param(replace(ALL, cpus=8), id="8-vcpus"),
        pytest.param(replace(ALL, cpus=4, flags=NO_AVIC), id="4-vcpus-no-avic"),
        pytest.param(replace(ALL, cpus=1, x2apic=True), id="1-vcpu-x2apic"),
        pytest.param(replace(ALL, cpus=4, qemu_args=ICOUNT), id="4-vcpus-icount"),
    ],
)
async def test_state_in_a_file_is_loaded_by_another_qemu(
    programs: Programs, tmp_path: Path, setup: Setup
) -> None:
    setup = replace(setup, words=["checkpoints"])
    clock = Clock(FASTER if ICOUNT[0] in setup.qemu_args else 1)
    seen: list[str] = []
    lines: list[str] = []
    state: Path | None = None
    while True:
        async with programs.start(setup, incoming=state is not None) as run:
            if state is not None:
                run.lines = lines
                await run.load(state)
                if seen[-1] == "time":
                    clock.goes_on()
                await run.resume()
                if seen[-1] == "time":
                    await run.until("reference time after")
                    clock.stopped()
            while (stop := await run.stopped()) is not None and _name(stop) == "mark":
                clock.goes_on()
                await run.resume()
            if stop is None:
                assert await run.ended() > 0
                break
            seen.append(_name(stop))
            if seen[-1] == "time":
                clock.stopped()
            saved = time.monotonic()
            state = tmp_path / f"state-{len(seen)}"
            await run.save(state)
            lines = run.lines
        if seen[-1] == "time":
            await _lie(saved)
    _assert_complete(seen, setup)
    clock.check(lines)


async def _disk(qemu: Path, folder: Path) -> tuple[str, str]:
    disk = folder / "vmstate.qcow2"
    create = ("create", "-q", "-f", "qcow2", str(disk), "1M")
    maker = await asyncio.create_subprocess_exec(qemu.with_name("qemu-img"), *create)
    assert await maker.wait() == 0
    return "-blockdev", f"qcow2,node-name=disk,file.driver=file,file.filename={disk}"


@pytest.mark.parametrize(
    "setup",
    [
        pytest.param(replace(ALL, cpus=8, x2apic=True), id="8-vcpus-x2apic"),
        pytest.param(replace(ALL, cpus=4, accel="tcg,thread=single"), id="4-vcpus-one-thread"),
        pytest.param(replace(ALL, cpus=1, flags=NO_AVIC), id="1-vcpu-no-avic"),
        pytest.param(replace(ALL, cpus=2, qemu_args=ICOUNT), id="2-vcpus-icount"),
    ],
)
async def test_a_snapshot_is_loaded_by_the_same_qemu(
    programs: Programs, tmp_path: Path, setup: Setup
) -> None:
    disk = await _disk(programs.qemu, tmp_path)
    setup = replace(setup, words=["checkpoints"], qemu_args=(*setup.qemu_args, *disk))
    clock = Clock(FASTER if ICOUNT[0] in setup.qemu_args else 1)
    seen: list[str] = []
    async with AsyncExitStack() as stack:
        run = await stack.enter_async_context(programs.start(setup))
        stop = await run.stopped()
        while stop is not None:
            if _name(stop) == "mark":
                clock.goes_on()
                await run.resume()
                stop = await run.stopped()
                continue
            seen.append(_name(stop))
            if seen[-1] == "time":
                clock.stopped()
            saved = time.monotonic()
            if seen[-1] == "end":
                await run.resume()
                assert await run.ended() > 0
                break
            where = {"vmstate": "disk", "tag": f"at-{len(seen)}", "devices": ["disk"]}
            await run.job("snapshot-save", **where)
            known = len(run.lines)
            await _next_stop(run)
            # What was printed meanwhile never was.
            del run.lines[known:]
            if seen[-1] == "time":
                await _lie(saved)
            await run.job("snapshot-load", **where)
            if seen[-1] == "time":
                clock.goes_on()
            await run.resume()
            if seen[-1] == "time":
                await run.until("reference time after")
                clock.stopped()
            stop = await run.stopped()
        lines = run.lines
    _assert_complete(seen, setup)
    clock.check(lines)


async def _next_stop(run: Run) -> None:
    await run.resume()
    if await run.stopped() is None:
        raise run.failure("the program ended before its last stop")
