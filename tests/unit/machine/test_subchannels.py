# SPDX-License-Identifier: MIT
"""Sub-channels of a KMCL endpoint: disabled when their primary closes, rescinded before it."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from emulator.kmcl import OfferParams, ServerChannel
from emulator.link import Session
from emulator.machine.config import DeviceConfig, HostConfig
from emulator.machine.host import VmbusHost
from emulator.model.guest import RESCIND
from tests.model.machine import ModelMachine

pytestmark = pytest.mark.asyncio


class SubChannel(ServerChannel):
    """A sub-channel of another channel."""

    def __init__(self, host: VmbusHost, primary: ServerChannel, index: int) -> None:
        super().__init__(host)
        self._params = dataclasses.replace(primary.offer_params(), subchannel_index=index)
        self.init_set_process_packet_callbacks(lambda channel, packet: None)

    def offer_params(self) -> OfferParams:
        return self._params


class Rig:
    """A guest that has opened a channel and its two sub-channels."""

    def __init__(self) -> None:
        self.host = VmbusHost(HostConfig("vm", (DeviceConfig("probe", "probe"),)))
        self.machine = ModelMachine()
        self.session = Session(self.machine.frontend.backend_socket, self.host)
        self.host.attach(self.session)
        self.primary = self.host.devices["probe"].channels["data"]
        self.subs = [SubChannel(self.host, self.primary, index) for index in (1, 2)]

    def close(self) -> None:
        self.session.close()
        self.machine.close()

    def rescinded(self) -> list[int]:
        return [heard["channel_id"] for heard in self.machine.guest.heard if heard.type == RESCIND]


@pytest_asyncio.fixture
async def rig() -> AsyncIterator[Rig]:
    rig = Rig()
    await rig.machine.boot()
    await rig.machine.open(1)
    for sub in rig.subs:
        sub.enable()
        sub.start()
    await rig.machine.until(lambda: {3, 4} <= set(rig.machine.guest.channels))
    for channel_id in (3, 4):
        await rig.machine.open(channel_id)
    yield rig
    rig.close()


async def test_a_guest_that_closes_the_primary_sees_the_sub_channels_go(rig: Rig) -> None:
    rig.machine.guest.close_channel(1)
    await rig.machine.until(lambda: len(rig.rescinded()) == 2)
    assert rig.rescinded() == [4, 3]
    await rig.machine.until(lambda: not rig.machine.doorbells)
    assert [sub.connection.value for sub in rig.subs] == ["disabled"] * 2
    # The device is there to be opened again, and so may its sub-channels be.
    for channel_id in (3, 4):
        rig.machine.guest.release(channel_id)
    await rig.machine.open(1)
    rig.subs[0].enable()
    await rig.machine.until(lambda: 3 in rig.machine.guest.channels)
    assert list(rig.host.guest_errors) == []


async def test_sub_channels_are_rescinded_before_their_primary(rig: Rig) -> None:
    gone: list[str] = []
    rig.primary.disable(lambda: gone.append("primary"))
    await rig.machine.until(lambda: len(rig.rescinded()) == 3)
    assert rig.rescinded() == [4, 3, 1]
    assert gone == ["primary"]
    assert rig.host.bus.subchannels(rig.host.bus.offers()[0].key) == []
