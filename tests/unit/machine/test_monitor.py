# SPDX-License-Identifier: MIT
"""Monitored notifications: a trigger is seen in time, and nobody looks where none can come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio

from emulator.bus.pages import MonitorPage
from emulator.devices import DeviceStateError
from emulator.link import Session
from emulator.machine import host as host_module
from emulator.machine.config import DeviceConfig, HostConfig
from emulator.machine.host import VmbusHost
from emulator.machine.inspect import inspect
from emulator.machine.monitor import IDLE_SECONDS, PATIENCE, MonitorTriggers
from emulator.memory import page_view
from emulator.model.guest import MONITOR_PAGES
from tests.model import frontend as fe
from tests.model.machine import ModelMachine, echo_request

CONFIG = HostConfig("vm", (DeviceConfig("probe", "probe", {"data": 500}),))


class Rig:
    """A host whose data channel is monitored, and a machine before it."""

    def __init__(self) -> None:
        self.host = VmbusHost(CONFIG)
        self.machine = ModelMachine()
        self.session = Session(self.machine.frontend.backend_socket, self.host)
        self.host.attach(self.session)

    def monitor_id(self, channel_id: int) -> int:
        offer = self.machine.guest.channels[channel_id].offer
        assert offer["monitor_allocated"] == 1
        return offer["monitor_id"]

    def close(self) -> None:
        self.session.close()
        self.machine.close()


def looking(rig: Rig) -> bool:
    return rig.host._signals.triggers.looking


@pytest_asyncio.fixture
async def rig() -> AsyncIterator[Rig]:
    rig = Rig()
    await rig.machine.boot()
    yield rig
    rig.close()


@pytest.mark.asyncio
async def test_a_trigger_is_answered_without_an_event(rig: Rig) -> None:
    opened = await rig.machine.open(1)
    monitor_id = rig.monitor_id(1)
    guest = rig.machine.guest
    for number in range(1, 20):
        assert opened.writer.put(echo_request(number)) is True
        guest.trigger(monitor_id)
        assert (await rig.machine.answer(opened)).transaction_id == number
    (channel,) = inspect(rig.host, 1).channels
    assert channel.open is not None
    assert channel.open.monitor_id == monitor_id
    assert channel.counters.doorbells == 19
    # The guest can read how often it is looked at, in units of 100 ns.
    at = MONITOR_PAGES[1] + 576 + 2 * monitor_id
    assert int.from_bytes(guest.ram[at : at + 2], "little") == 5000
    # The control channel was not asked for.
    assert guest.channels[2].offer["monitor_allocated"] == 0


@pytest.mark.asyncio
async def test_a_monitored_channel_may_be_signalled_by_its_event(rig: Rig) -> None:
    # As Linux does with a channel in low-latency mode.
    opened = await rig.machine.open(1)
    assert (await rig.machine.ask(opened, echo_request(3))).transaction_id == 3


@pytest.mark.asyncio
async def test_a_trigger_set_while_the_machine_stood_still(rig: Rig) -> None:
    opened = await rig.machine.open(1)
    await rig.machine.frontend.stop()
    assert not looking(rig)
    assert opened.writer.put(echo_request(8)) is not None
    rig.machine.guest.trigger(rig.monitor_id(1))
    rig.machine.frontend.send(fe.RESUME)
    assert (await rig.machine.answer(opened)).transaction_id == 8
    assert looking(rig)


@pytest.mark.asyncio
@pytest.mark.parametrize("way", ["close", "unload", "reset"])
async def test_nobody_looks_when_nobody_has_a_trigger(rig: Rig, way: str) -> None:
    machine, triggers = rig.machine, rig.host._signals.triggers
    assert not looking(rig)
    opened = await machine.open(1)
    assert looking(rig)
    match way:
        case "close":
            machine.guest.close_channel(1)
        case "unload":
            machine.guest.unload()
        case "reset":
            machine.frontend.reset()
    await machine.until(lambda: opened.channel_id not in machine.interrupts)
    assert not looking(rig)
    # The page is the guest's again.
    machine.guest.ram[MONITOR_PAGES[1] : MONITOR_PAGES[1] + 4096] = b"\xff" * 4096
    looks = triggers.looks
    await machine.frontend.stop()
    assert triggers.looks == looks


@pytest.mark.asyncio
async def test_without_atomics_there_are_no_triggers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_module, "ATOMIC", False)
    rig = Rig()
    await rig.machine.boot()
    assert rig.machine.guest.channels[1].offer["monitor_allocated"] == 0
    rig.close()


def test_a_channel_that_a_device_does_not_have() -> None:
    with pytest.raises(DeviceStateError, match="names a channel 'dta'; it has data, control"):
        VmbusHost(HostConfig("vm", (DeviceConfig("probe", "probe", {"dta": 500}),)))


class Clock:
    """Timers that run when they are told to."""

    def __init__(self) -> None:
        self.intervals: list[float] = []
        self.loop = asyncio.new_event_loop()
        self.due: list[Callable[[], None]] = []

    def call_later(self, seconds: float, call: Callable[[], None]) -> asyncio.TimerHandle:
        self.intervals.append(seconds)
        self.due.append(call)
        return self.loop.call_later(3600, call)

    def tick(self) -> None:
        """The last timer fires; those before it were cancelled."""
        call = self.due[-1]
        self.due.clear()
        call()


def test_the_less_comes_the_more_seldom_somebody_looks() -> None:
    clock, memory, rung = Clock(), bytearray(4096), 0
    triggers = MonitorTriggers(clock.call_later)

    def ring() -> None:
        nonlocal rung
        rung += 1

    triggers.use(MonitorPage(page_view([memoryview(memory)])))
    triggers.add(33, 1, ring, 20_000)
    assert clock.intervals == []
    triggers.run(True)
    triggers.add(34, 2, ring, 10_000)
    assert clock.intervals == [0.002, 0.001]
    clock.intervals.clear()
    for _ in range(PATIENCE + 8):
        clock.tick()
    assert clock.intervals[:PATIENCE] == [0.001] * PATIENCE
    assert clock.intervals[PATIENCE:] == [0.002, 0.004, 0.008] + [IDLE_SECONDS] * 5
    # A trigger that is found, and one that is expected, bring the interval back.
    memory[16] = 0b110
    clock.tick()
    assert (rung, clock.intervals[-1]) == (2, 0.001)
    for _ in range(PATIENCE + 8):
        clock.tick()
    assert clock.intervals[-1] == IDLE_SECONDS
    timers = len(clock.intervals)
    triggers.expect()
    triggers.expect()
    assert clock.intervals[timers:] == [0.001]
    # What is expected all the time does not put the look off.
    clock.tick()
    triggers.expect()
    assert len(clock.intervals) == timers + 2
    triggers.remove(34, 1)
    triggers.remove(34, 2)
    triggers.remove(33, 1)
    clock.tick()
    assert clock.due == []
    clock.loop.close()
