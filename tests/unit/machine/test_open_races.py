# SPDX-License-Identifier: MIT
"""What happens around an open: packets that come before everybody is ready for them."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from emulator.kmcl import ServerChannel, StateChangeCallbacks
from emulator.link import Session
from emulator.machine.config import DeviceConfig, HostConfig
from emulator.machine.host import VmbusHost
from emulator.machine.signals import looks_stuck
from tests.model.machine import ModelMachine

pytestmark = pytest.mark.asyncio


class Rig:
    """A host with a channel that sends a packet as soon as it is opened."""

    def __init__(self) -> None:
        self.host = VmbusHost(HostConfig("vm", (DeviceConfig("probe", "probe"),)))
        self.machine = ModelMachine()
        self.session = Session(self.machine.frontend.backend_socket, self.host)
        self.host.attach(self.session)
        self.channel = ServerChannel(self.host)
        self.channel.init_set_target_interface_id(uuid.UUID(int=1), uuid.UUID(int=2))
        self.channel.init_set_process_packet_callbacks(lambda channel, packet: packet.complete())
        self.channel.init_set_state_change_callbacks(StateChangeCallbacks(post_started=self._send))

    @staticmethod
    def _send(channel: ServerChannel) -> None:
        channel.packet_allocate().send(b"early bird")

    def close(self) -> None:
        self.session.close()
        self.machine.close()


@pytest_asyncio.fixture
async def rig() -> AsyncIterator[Rig]:
    rig = Rig()
    await rig.machine.boot()
    rig.channel.enable()
    rig.channel.start()
    await rig.machine.until(lambda: 3 in rig.machine.guest.channels)
    yield rig
    rig.close()


async def test_a_guest_that_lost_its_first_interrupt_gets_another(rig: Rig) -> None:
    opened = await rig.machine.open(3)
    # The one for the packet came before the guest knew that the channel is open: it is dropped.
    assert os.eventfd_read(rig.machine.interrupts[3]) == 1
    assert looks_stuck(rig.channel)
    async with asyncio.timeout(30):
        await rig.machine.interrupted(3)
    taken = opened.reader.take()
    assert taken is not None
    assert taken[0].body.startswith(b"early bird")
    assert not looks_stuck(rig.channel)


async def test_who_reads_by_itself_does_not_look_stuck(rig: Rig) -> None:
    opened = await rig.machine.open(3)
    # As Linux does while it reads a ring (hv_begin_read()).
    opened.down.control[2] = 1
    assert not looks_stuck(rig.channel)
    opened.down.control[2] = 0
    assert looks_stuck(rig.channel)
    rig.machine.guest.close_channel(3)
    await rig.machine.until(lambda: 3 not in rig.machine.interrupts)
    assert not looks_stuck(rig.channel)
