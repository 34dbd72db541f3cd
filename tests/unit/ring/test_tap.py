# SPDX-License-Identifier: MIT
"""A tap sees each packet as it lies on the ring, and changes nothing about what the ring does."""

from __future__ import annotations

import pytest

from emulator.model.ring import GuestReader, GuestWriter, RawPacket, build_packet, gpa_direct_header
from emulator.ring import IncomingRing, OutgoingRing, RingCorrupt
from emulator.wire.packet import PacketType, TransferPageRange, TransferPages, encode_packet
from tests.unit.ring.support import ViewType, ring_memory

Seen = list[tuple[int, bytes, bool]]


def test_packets_are_seen_as_the_guest_wrote_them(view_type: ViewType) -> None:
    view, guest = ring_memory(view_type)
    ring, writer = IncomingRing(view), GuestWriter(guest)
    ring.init_at_open()
    seen: Seen = []
    packets = [
        build_packet(6, number, b"payload!" * (number % 40), flags=number & 1)
        for number in range(100)
    ]
    packets[7] = build_packet(9, 7, b"gpa", header=gpa_direct_header((10, 5, (3,))))
    read = []
    offset = 0
    offsets = []
    for number, packet in enumerate(packets):
        # On, off and on again while packets lie in the ring: around its end several times.
        if number == 1:
            ring.tap(lambda *found: seen.append(found))
        if number == 90:
            ring.tap(None)
        offsets.append(offset)
        offset = (offset + len(packet) + 8) % 4096
        assert writer.put(packet) is not None
        read.append(ring.read())
        ring.commit()
    assert [packet.transaction_id for packet in read if packet] == list(range(100))
    assert seen == [(offsets[n], packets[n], False) for n in range(1, 90)]


def test_a_packet_that_is_refused_is_seen_too(view_type: ViewType) -> None:
    view, guest = ring_memory(view_type)
    ring, writer = IncomingRing(view), GuestWriter(guest)
    ring.init_at_open()
    seen: Seen = []
    ring.tap(lambda *found: seen.append(found))
    bad_type = build_packet(8, 1, b"payload!")
    writer.put(bad_type)
    with pytest.raises(RingCorrupt):
        ring.read()
    assert seen == [(0, bad_type[:16], True)]
    bad_range = build_packet(9, 1, b"", header=gpa_direct_header((0, 0, (3,))))
    view, guest = ring_memory(view_type)
    ring, writer = IncomingRing(view), GuestWriter(guest)
    ring.init_at_open()
    ring.tap(lambda *found: seen.append(found))
    writer.put(bad_range)
    with pytest.raises(RingCorrupt):
        ring.read()
    assert seen[1:] == [(0, bad_range, True)]


def test_packets_are_seen_as_the_guest_reads_them(view_type: ViewType) -> None:
    view, guest = ring_memory(view_type)
    ring, reader = OutgoingRing(view), GuestReader(guest)
    ring.init_at_open()
    seen: Seen = []
    ring.tap(lambda *found: seen.append(found))
    transfer = TransferPages(1, (TransferPageRange(10, 20),))
    assert ring.write(PacketType.IN_BAND, 1, b"hello", completion_requested=True)
    assert ring.write(PacketType.TRANSFER_PAGES, 2, b"pages", transfer=transfer)
    while ring.write(PacketType.COMPLETION, 3, b"fill" * 100):
        pass
    ring.publish()
    filled = encode_packet(PacketType.COMPLETION, 3, b"fill" * 100)
    assert [packet for _, packet, _ in seen[:2]] == [
        encode_packet(PacketType.IN_BAND, 1, b"hello", flags=1),
        encode_packet(PacketType.TRANSFER_PAGES, 2, b"pages", transfer=transfer),
    ]
    assert {packet for _, packet, _ in seen[2:]} == {filled}
    taken: list[RawPacket] = []
    while len(taken) < len(seen):
        found = reader.take()
        assert found is not None
        taken.append(found[0])
    assert [int.from_bytes(raw.trailer[4:], "little") for raw in taken] == [at for at, _, _ in seen]
    ring.tap(None)
    assert ring.write(PacketType.IN_BAND, 9, b"unseen")
    assert len(seen) == len(taken)
