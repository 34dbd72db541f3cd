# SPDX-License-Identifier: MIT
"""A packet that comes once more: nothing overtakes it, and nothing ends before it."""

from __future__ import annotations

import pytest

from emulator.conformance.rig import Rig
from emulator.kmcl import Connection, ExternalDataPending, IncomingPacket, KmclError, ServerChannel
from emulator.wire.ntstatus import NtStatus


def deferring(rig: Rig, times: int = 1) -> list[tuple[bytes, bool]]:
    """Have the VSP defer its first packet; returns what it is given, and at which level."""
    seen: list[tuple[bytes, bool]] = []

    def process(packet: IncomingPacket) -> None:
        payload = packet.payload.rstrip(b"\0")
        seen.append((payload, packet.at_passive))
        if payload == b"first" and sum(each[0] == b"first" for each in seen) <= times:
            packet.defer()
        else:
            packet.complete(payload)

    rig.vsp.on_packet = process
    return seen


def turns(rig: Rig) -> None:
    while rig.port.take_turn():
        pass


def test_nothing_overtakes_a_deferred_packet() -> None:
    rig = Rig().running()
    seen = deferring(rig)
    for number, name in enumerate((b"first", b"second", b"third")):
        rig.guest.request(number, name)
    rig.ring()
    assert seen == [(b"first", False)]
    # More come, and the guest rings, or not: what is read is read after the retry.
    rig.guest.request(3, b"fourth")
    turns(rig)
    assert seen == [
        (b"first", False),
        (b"first", True),
        (b"second", False),
        (b"third", False),
        (b"fourth", False),
    ]
    assert [packet.transaction_id for packet in rig.guest.take_all()] == [0, 1, 2, 3]


def test_a_doorbell_may_bring_the_retry_and_is_no_second_one() -> None:
    rig = Rig().running()
    seen = deferring(rig)
    rig.guest.request(0, b"first")
    rig.ring()
    rig.channel.port_interrupt()
    turns(rig)
    assert seen == [(b"first", False), (b"first", True)]


def test_a_packet_at_passive_cannot_be_deferred_to_it() -> None:
    rig = Rig().running()
    rig.channel.set_incoming_processing_at_passive(True)
    refused: list[NtStatus] = []

    def process(packet: IncomingPacket) -> None:
        with pytest.raises(KmclError) as caught:
            packet.defer()
        refused.append(caught.value.status)
        packet.complete()

    rig.vsp.on_packet = process
    rig.guest.request(0, b"first")
    rig.ring()
    assert refused == [NtStatus.INVALID_DEVICE_STATE]


def test_what_was_ended_meanwhile_does_not_come_again() -> None:
    rig = Rig().running()
    held: list[IncomingPacket] = []

    def process(packet: IncomingPacket) -> None:
        held.append(packet)
        packet.defer()

    rig.vsp.on_packet = process
    rig.guest.request(0, b"first")
    rig.ring()
    held[0].complete(b"out of the callback")
    turns(rig)
    assert len(held) == 1
    rig.vsp.on_packet = None
    rig.guest.request(1, b"second")
    rig.ring()
    assert [packet.transaction_id for packet in rig.guest.take_all()] == [0, 1]


@pytest.mark.parametrize("end", ["close", "disable"])
def test_a_channel_ends_after_the_retry(end: str) -> None:
    rig = Rig().running()
    seen = deferring(rig)
    rig.guest.request(0, b"first")
    rig.ring()
    over: list[bool] = []
    if end == "close":
        rig.channel.port_closed(lambda: over.append(True))
    else:
        rig.channel.disable(lambda: over.append(True))
    assert not over
    assert "suspend" not in rig.vsp.trace
    turns(rig)
    assert over
    assert seen == [(b"first", False), (b"first", True)]
    assert rig.vsp.trace[-2:] == ["suspend", "closed"]
    wanted = Connection.ENABLED if end == "close" else Connection.DISABLED
    assert rig.channel.connection is wanted


def test_memory_that_is_not_there_is_asked_for_until_it_is() -> None:
    rig = Rig(answer=False).running()
    rig.port.ram_is_there = False
    found: list[int] = []

    def process(packet: IncomingPacket) -> None:
        try:
            found.append(sum(map(len, packet.external_data())))
        except ExternalDataPending:
            return
        packet.complete()

    rig.vsp.on_packet = process
    rig.guest.external(0, (100, 0, [1]))
    rig.guest.external(1, (50, 0, [1]))
    rig.ring()
    for _ in range(3):
        assert rig.port.take_turn()
        assert found == []
    rig.port.ram_is_there = True
    turns(rig)
    assert found == [100, 50]


def test_a_pause_in_the_callback_that_defers_waits_for_the_retry() -> None:
    rig = Rig().running()
    over: list[bool] = []
    levels: list[bool] = []

    def process(packet: IncomingPacket) -> None:
        levels.append(packet.at_passive)
        if not packet.at_passive:
            packet.defer()
            rig.channel.pause(lambda: over.append(True))
        else:
            packet.complete()

    rig.vsp.on_packet = process
    rig.guest.request(0, b"first")
    rig.guest.request(1, b"second")
    rig.ring()
    assert not over
    turns(rig)
    assert over == [True]
    assert levels == [False, True]
    rig.vsp.on_packet = None
    rig.channel.start()
    assert [packet.transaction_id for packet in rig.guest.take_all()] == [0, 1]


def test_a_subchannel_pauses_starts_and_ends_with_its_primary() -> None:
    primary, sub = Rig().running(), Rig()
    sub.channel.init_set_primary_channel(primary.channel, 1)
    with pytest.raises(KmclError) as caught:
        Rig().channel.init_set_primary_channel(sub.channel, 1)
    assert caught.value.status is NtStatus.INVALID_PARAMETER_2
    with pytest.raises(KmclError) as caught:
        Rig().channel.init_set_primary_channel(primary.channel, 0)
    assert caught.value.status is NtStatus.INVALID_PARAMETER_3
    sub.running()
    twin = Rig()
    twin.channel.init_set_primary_channel(primary.channel, 1)
    with pytest.raises(KmclError, match="has a sub-channel 1 already"):
        twin.channel.enable()
    sub.vsp.answer = sub.vsp.drain_in_suspend = False
    sub.guest.request(0, b"held")
    sub.ring()
    over: list[bool] = []
    primary.channel.pause(lambda: over.append(True))
    assert not over, "the sub-channel holds a packet"
    sub.vsp.drain()
    assert over
    primary.channel.start()
    assert sub.vsp.trace.count("started") == 2
    order: list[ServerChannel] = []
    for rig in (primary, sub):
        rig.vsp.hooks["closed"] = order.append
    primary.channel.port_closed(lambda: None)
    assert order == [sub.channel, primary.channel]
    assert primary.channel.subchannels == ()
