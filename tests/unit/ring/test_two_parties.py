# SPDX-License-Identifier: MIT
"""Both rings under random work of both parties: what goes in comes out, the signals are right."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulator.model.ring import (
    WORD_MASK,
    WORD_OUT,
    WORD_PENDING,
    GuestReader,
    GuestWriter,
    build_packet,
    linux_reader_signals,
)
from emulator.ring import IncomingRing, OutgoingRing
from emulator.wire.packet import (
    GpaRange,
    Packet,
    PacketFlags,
    PacketType,
    TransferPageRange,
    TransferPages,
    decode_body,
    decode_descriptor,
    encode_packet,
    packet_size,
    spanned_pages,
)
from tests.unit.ring.support import VIEW_TYPES, ring_memory

payloads = st.binary(max_size=64) | st.integers(0, 5000).map(
    lambda n: bytes(i & 255 for i in range(n))
)
batches = st.lists(payloads, min_size=1, max_size=4)


@pytest.mark.parametrize("name", sorted(VIEW_TYPES))
@given(
    start=st.integers(0, 1023).map(lambda n: n * 8),
    work=st.lists(
        st.one_of(
            st.tuples(st.just("put"), batches),
            st.tuples(st.just("read"), st.integers(1, 5)),
            st.tuples(st.just("wait"), st.integers(0, 8191)),
            st.tuples(st.just("restore"), st.none()),
        ),
        min_size=10,
        max_size=60,
    ),
)
def test_guest_to_host(name: str, start: int, work: list[tuple[str, object]]) -> None:
    view, guest = ring_memory(VIEW_TYPES[name], 2)
    guest.control[0] = guest.control[1] = start
    ring = IncomingRing(view)
    ring.init_at_open()
    writer = GuestWriter(guest)
    in_ring: deque[tuple[int, bytes]] = deque()
    count = 0
    for action, argument in work:
        match action, argument:
            case "put", list():
                packets = [build_packet(6, count + n, data) for n, data in enumerate(argument)]
                asked = guest.control[WORD_MASK] == 0
                was_empty = not in_ring
                signal = writer.put(*packets)
                if signal is not None:
                    assert signal == (asked and was_empty)
                    in_ring += [(count + n, data) for n, data in enumerate(argument)]
                    count += len(argument)
            case "read", int():
                ring.mask()
                before = guest.control[WORD_OUT]
                for _ in range(argument):
                    packet = ring.read()
                    if not in_ring:
                        assert packet is None
                        break
                    assert packet is not None
                    number, data = in_ring.popleft()
                    assert packet.transaction_id == number
                    assert packet.payload == data + bytes(-len(data) % 8)
                taken = (ring._out - before) % guest.size
                pending = guest.control[WORD_PENDING] & ~7
                space = guest.space(writer.position, (before + taken) % guest.size)
                expected = taken > 0 and linux_reader_signals(pending, space, taken)
                assert ring.commit() == expected
                assert guest.control[WORD_OUT] == (before + taken) % guest.size
                assert ring.unmask() == bool(in_ring)
            case "wait", int():
                guest.control[WORD_PENDING] = argument
            case "restore", None:
                ring = IncomingRing(view)
                ring.attach()
        assert [s.transaction_id for s in ring.scan()] == [number for number, _ in in_ring]


@pytest.mark.parametrize("name", sorted(VIEW_TYPES))
@given(
    start=st.integers(0, 1023).map(lambda n: n * 8),
    work=st.lists(
        st.one_of(
            st.tuples(st.just("write"), batches),
            st.tuples(st.just("take"), st.integers(1, 5)),
            st.tuples(st.just("mask"), st.integers(0, 1)),
            st.tuples(st.just("restore"), st.none()),
        ),
        min_size=10,
        max_size=60,
    ),
)
def test_host_to_guest(name: str, start: int, work: list[tuple[str, object]]) -> None:
    view, guest = ring_memory(VIEW_TYPES[name], 2)
    guest.control[0] = guest.control[1] = start
    ring = OutgoingRing(view)
    ring.init_at_open()
    reader = GuestReader(guest)
    in_ring: deque[tuple[int, bytes]] = deque()
    used = count = waited_for = 0
    for action, argument in work:
        match action, argument:
            case "write", list():
                was_empty = not in_ring
                written = 0
                for data in argument:
                    size = OutgoingRing.packet_size(len(data))
                    fits = used + size <= guest.size - 8
                    assert ring.write(PacketType.IN_BAND, count, data) == fits
                    if not fits:
                        break
                    in_ring.append((count, data))
                    used += size
                    count += 1
                    written += 1
                expected = written > 0 and was_empty and guest.control[WORD_MASK] == 0
                assert ring.publish() == expected
                waited_for = 0
                if written < len(argument):
                    waited_for = OutgoingRing.packet_size(len(argument[written]))
                    assert ring.request_space(waited_for) is False
            case "take", int():
                for _ in range(argument):
                    before = used
                    taken = reader.take()
                    if not in_ring:
                        assert taken is None
                        break
                    assert taken is not None
                    packet, signal = taken
                    number, data = in_ring.popleft()
                    used -= OutgoingRing.packet_size(len(data))
                    assert (packet.type, packet.transaction_id) == (6, number)
                    assert packet.payload == data + bytes(-len(data) % 8)
                    limit = guest.size - 8 - waited_for
                    if waited_for and used <= limit < before:
                        assert signal, "the space asked for is there: without a signal we sleep"
            case "mask", int():
                guest.control[WORD_MASK] = argument
            case "restore", None:
                ring = OutgoingRing(view)
                assert ring.attach() == (bool(in_ring) and guest.control[WORD_MASK] == 0)
                waited_for = 0
        assert ring.used_bytes == used


gpa_ranges = st.builds(
    lambda length, offset, base: GpaRange(
        length, offset, tuple(base ^ n for n in range(spanned_pages(offset, length)))
    ),
    st.integers(1, 40_000),
    st.integers(0, 4095),
    st.integers(0, 2**64 - 1),
)
transfers = st.builds(
    TransferPages,
    st.integers(0, 0xFFFF),
    st.lists(
        st.builds(TransferPageRange, st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)),
        min_size=1,
        max_size=8,
    ).map(tuple),
    st.booleans(),
)


@given(
    flags=st.sampled_from(list(PacketFlags)),
    transaction_id=st.integers(0, 2**64 - 1),
    payload=st.integers(0, 20).flatmap(lambda n: st.binary(min_size=8 * n, max_size=8 * n)),
    header=st.one_of(
        st.sampled_from([PacketType.IN_BAND, PacketType.CANCEL, PacketType.COMPLETION]),
        st.lists(gpa_ranges, min_size=1, max_size=4).map(tuple),
        transfers,
    ),
)
def test_codec_round_trip(
    flags: PacketFlags,
    transaction_id: int,
    payload: bytes,
    header: PacketType | tuple[GpaRange, ...] | TransferPages,
) -> None:
    match header:
        case PacketType():
            packet = Packet(header, flags, transaction_id, payload)
        case TransferPages():
            packet = Packet(
                PacketType.TRANSFER_PAGES, flags, transaction_id, payload, transfer=header
            )
        case _:
            packet = Packet(PacketType.GPA_DIRECT, flags, transaction_id, payload, header)
    data = encode_packet(
        packet.type,
        transaction_id,
        payload,
        flags=flags,
        ranges=packet.ranges,
        transfer=packet.transfer,
    )
    descriptor = decode_descriptor(data[:16], len(data) + 8)
    assert descriptor.length == len(data)
    assert packet_size(len(payload), descriptor.data_offset) == len(data) + 8
    assert decode_body(descriptor, data[16:]) == packet
