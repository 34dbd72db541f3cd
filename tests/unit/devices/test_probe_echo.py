# SPDX-License-Identifier: MIT
"""G_ECHO (docs/probe.md, section 3): answered at once, byte by byte, and in no ledger."""

from __future__ import annotations

import mmap

import pytest

from emulator.conformance.rig import PAGE, Port, nothing
from emulator.devices.probe.device import ProbeDevice
from emulator.devices.probe.protocol import Header, ProbeType
from emulator.memory import page_view
from emulator.model.driver import COMPLETION, GuestEnds
from emulator.ring import IncomingRing, OutgoingRing
from emulator.wire.ntstatus import NtStatus

pytestmark = pytest.mark.asyncio


async def test_an_echo_is_the_request_and_of_no_ledger() -> None:
    device = ProbeDevice("probe", "vm", Port())
    device.power_on()
    device.resume()
    up, down = (memoryview(mmap.mmap(-1, 2 * PAGE)) for _ in range(2))
    guest = GuestEnds(up, down, nothing)
    channel = device.channels["data"]
    rings = IncomingRing(page_view([up])), OutgoingRing(page_view([down]))
    assert channel.port_opened(*rings) is NtStatus.SUCCESS
    before = device.save_own()
    payload = Header(ProbeType.G_ECHO, 77, arg=5).pack() + b"whatever"
    # More than the device would hold back of requests that it may hold.
    for transaction_id in range(1, 20):
        assert guest.request(transaction_id, payload)
        channel.port_interrupt()
        (answer,) = guest.take_all()
        assert (answer.type, answer.transaction_id) == (COMPLETION, transaction_id)
        assert answer.payload == payload
    assert device.save_own() == before
    assert not device.faults
