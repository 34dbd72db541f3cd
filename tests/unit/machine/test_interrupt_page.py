# SPDX-License-Identifier: MIT
"""Versions 0.13 and 1.1: channels share one event each way, and bits of a page tell whose it is.

The model guest does what Linux did until 5.19 (vmbus_connect(), vmbus_isr(), vmbus_chan_sched() and
vmbus_set_event()); no kernel of today speaks these versions.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from emulator.link import Session
from emulator.machine import host as host_module
from emulator.machine.config import DeviceConfig, HostConfig
from emulator.machine.host import VmbusHost
from emulator.model.guest import INTERRUPT_PAGE, PAGE, UNLOAD_COMPLETE, VERSION_RESPONSE
from emulator.wire.version import Version
from tests.model import frontend as fe
from tests.model.machine import SHARED_CONNECTION, ModelMachine, OpenChannel, echo_request

pytestmark = pytest.mark.asyncio

OLD = [Version.V1, Version.WIN7]
CONFIG = HostConfig("vm", (DeviceConfig("a", "probe"), DeviceConfig("b", "probe")))


class Rig:
    """A host with two probes, and a machine before it."""

    def __init__(self, ram_of: ModelMachine | None = None) -> None:
        self.host = VmbusHost(CONFIG)
        self.machine = ModelMachine()
        if ram_of is not None:
            # The same guest, before another backend.
            os.close(self.machine.frontend.ram)
            self.machine.frontend.ram = os.dup(ram_of.guest.ram_fd)
            self.machine.guest = ram_of.guest
            self.machine.guest._post = self.machine._posted
        self.session = Session(self.machine.frontend.backend_socket, self.host)
        self.host.attach(self.session)

    async def open_data(self) -> list[OpenChannel]:
        """Open the data channel of each probe."""
        return [await self.machine.open(channel_id) for channel_id in (1, 3)]

    def close(self) -> None:
        self.session.close()
        self.machine.close()


@pytest_asyncio.fixture
async def rig() -> AsyncIterator[Rig]:
    rig = Rig()
    yield rig
    rig.close()


@pytest.mark.parametrize("version", OLD, ids=str)
async def test_signals_go_by_the_interrupt_page_below_2_4(rig: Rig, version: Version) -> None:
    await rig.machine.boot(version)
    assert SHARED_CONNECTION in rig.machine.doorbells
    for opened in await rig.open_data():
        for number in range(1, 10):
            # The model takes nothing from the ring before the host has said so in the page.
            answer = await rig.machine.ask(opened, echo_request(number))
            assert answer.transaction_id == number
    assert list(rig.host.guest_errors) == []


async def test_one_event_for_several_channels(rig: Rig) -> None:
    await rig.machine.boot(Version.V1)
    first, second = await rig.open_data()
    for opened in (first, second):
        assert opened.writer.put(echo_request(opened.channel_id)) is True
        rig.machine.guest.set_bit(opened.channel_id)
    # Bits of what is not there, or not open, are no bits.
    for nobody in (0, 2, 77, 2047, 16383):
        rig.machine.guest.set_bit(nobody)
    os.eventfd_write(rig.machine.doorbells[SHARED_CONNECTION], 1)
    for opened in (second, first):
        assert (await rig.machine.answer(opened)).transaction_id == opened.channel_id
    assert list(rig.host.guest_errors) == []


async def test_at_1_1_a_dedicated_event_needs_no_bit(rig: Rig) -> None:
    # Linux at 1.1: what is offered as dedicated is signalled by its own connection, and "we must
    # not set the associated bit" (struct vmbus_channel_offer_channel).
    await rig.machine.boot(Version.WIN7)
    opened, _ = await rig.open_data()
    offer = rig.machine.guest.channels[opened.channel_id].offer
    assert offer["is_dedicated"] == 1
    assert opened.writer.put(echo_request(5)) is True
    os.eventfd_write(rig.machine.doorbells[offer["connection_id"]], 1)
    assert (await rig.machine.answer(opened)).transaction_id == 5


@pytest.mark.parametrize("version", OLD, ids=str)
async def test_a_connection_of_an_old_version_is_saved_and_restored(
    rig: Rig, version: Version
) -> None:
    await rig.machine.boot(version)
    opened, _ = await rig.open_data()
    await rig.machine.ask(opened, echo_request(1))
    await rig.machine.frontend.stop()
    # Signalled while nobody looks: the event is lost, and the bit stays in the page.
    assert opened.writer.put(echo_request(2)) is not None
    rig.machine.guest.set_bit(opened.channel_id)
    status, state, text = await rig.machine.frontend.save()
    assert (status, text) == (0, "")

    other = Rig(rig.machine)
    await other.machine.frontend.handshake()
    assert await other.machine.frontend.load(state) == (0, "")
    other.machine.frontend.send(fe.RESUME)
    await other.machine.until(lambda: len(other.machine.interrupts) == 2)
    assert other.machine.targets[opened.channel_id] == (0, 2, 0)
    assert (await other.machine.answer(opened)).transaction_id == 2
    assert (await other.machine.ask(opened, echo_request(3))).transaction_id == 3
    other.close()


@pytest.mark.parametrize("way", ["unload", "contact", "reset"])
async def test_the_page_goes_back_to_the_guest(rig: Rig, way: str) -> None:
    machine = rig.machine
    await machine.boot(Version.WIN7)
    await rig.open_data()
    mark = len(machine.guest.heard)
    match way:
        case "unload":
            machine.guest.unload()
            await machine.until(lambda: machine.guest.since(mark) == [UNLOAD_COMPLETE])
        case "contact":
            machine.guest.contact(Version.IRON)
            await machine.until(lambda: machine.guest.since(mark) == [VERSION_RESPONSE])
        case "reset":
            machine.frontend.reset()
            await machine.until(lambda: not machine.doorbells)
            machine.guest.forget()
    assert SHARED_CONNECTION not in machine.doorbells
    # What the next kernel does with the page is its own business.
    page = slice(INTERRUPT_PAGE, INTERRUPT_PAGE + PAGE)
    machine.guest.ram[page] = b"\xa5" * PAGE
    machine.guest.contact(Version.IRON)
    await machine.until(lambda: machine.guest.connected)
    machine.guest.request_offers()
    await machine.until(lambda: machine.guest.offers_complete)
    for opened in await rig.open_data():
        await machine.ask(opened, echo_request(1))
    assert machine.guest.ram[page] == b"\xa5" * PAGE


async def test_another_contact_brings_another_page(rig: Rig) -> None:
    await rig.machine.boot(Version.V1)
    await rig.open_data()
    old = slice(INTERRUPT_PAGE, INTERRUPT_PAGE + PAGE)
    rig.machine.guest.contact(Version.WIN7, interrupt_page=INTERRUPT_PAGE - PAGE)
    await rig.machine.until(lambda: rig.machine.guest.connected)
    rig.machine.guest.ram[old] = bytes(PAGE)
    rig.machine.guest.request_offers()
    await rig.machine.until(lambda: rig.machine.guest.offers_complete)
    for opened in await rig.open_data():
        assert (await rig.machine.ask(opened, echo_request(7))).transaction_id == 7
    assert rig.machine.guest.ram[old] == bytes(PAGE)


@pytest.mark.parametrize("gpa", [0, 0x3008, 4096 * PAGE, 2**64 - PAGE])
async def test_an_interrupt_page_that_is_not_memory_is_refused(rig: Rig, gpa: int) -> None:
    machine = rig.machine
    await machine.frontend.handshake()
    machine.frontend.send(fe.RESUME)
    machine.guest.contact(Version.WIN7, interrupt_page=gpa)
    await machine.until(lambda: len(machine.guest.heard) == 1)
    # There is no other way to say no to a guest so old.
    assert machine.guest.last["supported"] == 0
    assert f"interrupt page is at {gpa:#x}" in rig.host.guest_errors[0]


async def test_a_restore_needs_the_page(rig: Rig) -> None:
    await rig.machine.boot(Version.V1)
    await rig.machine.frontend.stop()
    _, state, _ = await rig.machine.frontend.save()
    small = Rig()
    small.machine.frontend.ram_size = INTERRUPT_PAGE
    await small.machine.frontend.handshake()
    status, text = await small.machine.frontend.load(state)
    assert status == 1
    assert "interrupt page is at 0x3000" in text
    small.close()


async def test_without_atomics_there_are_no_versions_below_2_4(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(host_module, "ATOMIC", False)
    rig = Rig()
    await rig.machine.frontend.handshake()
    rig.machine.frontend.send(fe.RESUME)
    rig.machine.guest.contact(Version.WIN7)
    await rig.machine.until(lambda: len(rig.machine.guest.heard) == 1)
    assert rig.machine.guest.last["supported"] == 0
    assert "needs the C extension" in rig.host.guest_errors[0]
    rig.close()
