# SPDX-License-Identifier: MIT
"""The probe as a VSP that misbehaves, its options and GPADLs, and what an old guest is spared."""

from __future__ import annotations

import asyncio
import mmap
from typing import Any

import pytest

from emulator.conformance.rig import PAGE, Port, nothing
from emulator.devices.base import DeviceState, DeviceStateError, save_channel
from emulator.devices.probe import ProbeDevice
from emulator.devices.probe.gpadls import GpadlNote
from emulator.devices.probe.protocol import GUEST_SALT, ProbeType, gpadl_pattern, write_back
from emulator.memory import page_view
from emulator.model.driver import GuestEnds
from emulator.ring import IncomingRing, OutgoingRing
from emulator.wire.ntstatus import NtStatus

pytestmark = pytest.mark.asyncio


class Opened:
    """A probe whose data channel is open, on memory that outlives it."""

    def __init__(self) -> None:
        self.port = Port()
        up, down = (memoryview(mmap.mmap(-1, 2 * PAGE)) for _ in range(2))
        self.memory = up, down
        self.guest = GuestEnds(up, down, nothing)
        self.device = ProbeDevice("probe", "vm", self.port)
        self.device.power_on()
        self.device.resume()
        assert self.device.channels["data"].port_opened(*self.rings()) is NtStatus.SUCCESS

    def rings(self) -> tuple[IncomingRing, OutgoingRing]:
        up, down = self.memory
        return IncomingRing(page_view([up])), OutgoingRing(page_view([down]))

    async def command(self, name: str, **args: Any) -> Any:
        return await self.device.commands()[name](args)

    async def sent_and_paused(self) -> None:
        await self.command("more", packets=9)
        self.device.pause(nothing)

    def restored(self, state: DeviceState, **options: Any) -> ProbeDevice:
        port = Port()
        device = ProbeDevice.make("probe", "vm", port, options)
        port.at_offer = lambda channel: (
            channel.port_restored(*self.rings()) if channel is device.channels["data"] else None
        )
        device.restore(state)
        return device


async def test_a_callback_that_asks_for_ever_more_ends_the_save() -> None:
    probe = Opened()
    await probe.sent_and_paused()
    await probe.command("trial", kind="grow")
    with pytest.raises(DeviceStateError, match="BUFFER_TOO_SMALL"):
        probe.device.save()
    await probe.command("trial", kind="fail")
    with pytest.raises(DeviceStateError, match="UNSUCCESSFUL"):
        probe.device.save()
    assert (await probe.command("counts"))["save_calls"] == 2
    await probe.command("trial")
    assert probe.restored(probe.device.save()).channels["data"].packets_alive == 6


@pytest.mark.parametrize("buffer", [0, 90, 65_536])
async def test_each_size_of_the_buffer_gives_the_same_stream(buffer: int) -> None:
    probe = Opened()
    await probe.sent_and_paused()
    channel = probe.device.channels["data"]
    assert b"".join(save_channel(channel, buffer)) == b"".join(save_channel(channel))


async def test_a_large_state_of_each_packet_comes_back() -> None:
    probe = Opened()
    await probe.sent_and_paused()
    await probe.command("trial", kind="large")
    state = probe.device.save()
    assert sum(map(len, state.channels["data"])) > 6 * 100_000
    assert probe.restored(state).channels["data"].packets_alive == 6


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"restore_trial": "allocate"}, "INSUFFICIENT_RESOURCES"),
        ({"restore_trial": "lib-buffer"}, "INVALID_PARAMETER"),
        ({"restore_trial": "not-restored"}, "UNSUCCESSFUL"),
        ({"restore_trial": "third"}, "UNSUCCESSFUL"),
        ({"maximum_packet_count": 2}, "6 packets are in use, the maximum packet count is 2"),
    ],
)
async def test_a_restore_that_goes_wrong_says_why(options: dict[str, Any], words: str) -> None:
    probe = Opened()
    await probe.sent_and_paused()
    with pytest.raises(DeviceStateError, match=words):
        probe.restored(probe.device.save(), **options)


@pytest.mark.parametrize("options", [{"pair": -1}, {"other": 1}, {"restore_trial": "none such"}])
async def test_bad_options_are_one_line(options: dict[str, Any]) -> None:
    with pytest.raises(DeviceStateError, match=r"^device p: [^\n]+$"):
        ProbeDevice.make("p", "vm", Port(), options)


async def test_a_gpadl_is_let_go_of_when_the_channel_is_suspended() -> None:
    probe = Opened()
    memory = bytearray(gpadl_pattern(3, 2 * PAGE, GUEST_SALT))
    probe.port.gpadls[77] = page_view([memoryview(memory)])
    probe.device._gpadls.notes[3] = GpadlNote(77, 2)
    assert await probe.command("gpadl", do="map", number=3) == {"good": True}
    with pytest.raises(DeviceStateError, match="INVALID_DEVICE_STATE"):
        await probe.command("gpadl", do="map", number=3)
    await probe.command("gpadl", do="write", number=3)
    assert memory == write_back(gpadl_pattern(3, 2 * PAGE, GUEST_SALT))
    probe.device.pause(nothing)
    probe.device.resume()
    assert await probe.command("gpadl", do="map", number=3) == {"good": True}
    memory[5000] ^= 1
    await probe.command("gpadl", do="unmap", number=3)
    assert await probe.command("gpadl", do="map", number=3) == {"good": False}
    with pytest.raises(DeviceStateError, match="has not made a GPADL 4"):
        await probe.command("gpadl", do="map", number=4)
    with pytest.raises(DeviceStateError, match="GPADL 4 is not mapped"):
        await probe.command("gpadl", do="unmap", number=4)


async def test_a_guest_of_version_1_is_not_asked_for_what_it_does_not_know() -> None:
    probe = Opened()
    probe.device._control.restored("an old guest", 0, 1)
    asked = asyncio.create_task(probe.device._control.ask(ProbeType.PING))
    await asyncio.sleep(0)
    assert not asked.done()
    asked.cancel()
    with pytest.raises(DeviceStateError, match="speaks version 1 of the protocol, and REOPEN"):
        await probe.command("reopen")
