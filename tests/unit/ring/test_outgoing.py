# SPDX-License-Identifier: MIT
"""The host's end of the host-to-guest ring, against a guest that may be hostile."""

from __future__ import annotations

import pytest

from emulator.model.ring import (
    WORD_FEATURES,
    WORD_IN,
    WORD_MASK,
    WORD_OUT,
    WORD_PENDING,
    GuestReader,
    GuestRing,
)
from emulator.ring import OutgoingRing, PacketTooLarge, RingCorrupt, RingRule
from emulator.wire.packet import PacketType, TransferPageRange, TransferPages
from tests.unit.ring.support import ViewType, ring_memory


def opened(view_type: ViewType, data_pages: int = 1) -> tuple[OutgoingRing, GuestReader]:
    view, guest = ring_memory(view_type, data_pages)
    ring = OutgoingRing(view)
    ring.init_at_open()
    return ring, GuestReader(guest)


def send(ring: OutgoingRing, transaction_id: int, payload: bytes) -> bool:
    """Write and publish one packet that fits; whether to signal."""
    assert ring.write(PacketType.IN_BAND, transaction_id, payload)
    return ring.publish()


def test_open_announces_the_feature_and_asks_for_no_space(view_type: ViewType) -> None:
    view, guest = ring_memory(view_type)
    guest.control[WORD_FEATURES] = 0
    guest.control[WORD_PENDING] = 99
    OutgoingRing(view).init_at_open()
    assert guest.control[WORD_FEATURES] == 1
    assert guest.control[WORD_PENDING] == 0


def test_golden_bytes_on_the_ring(view_type: ViewType) -> None:
    ring, reader = opened(view_type)
    assert ring.write(PacketType.IN_BAND, 0x1122334455667788, b"hello", completion_requested=True)
    assert ring.write(PacketType.COMPLETION, 5, b"")
    ring.publish()
    assert reader.ring.get(0, 56) == bytes.fromhex(
        "0600 0200 0300 0100 8877665544332211"
        "68656c6c6f000000"
        "00000000 00000000"
        "0b00 0200 0200 0000 0500000000000000"
        "00000000 20000000"
    )
    assert reader.ring.control[WORD_IN] == 56


def test_transfer_pages(view_type: ViewType) -> None:
    ring, reader = opened(view_type)
    transfer = TransferPages(
        0xCAFE, (TransferPageRange(64, 128), TransferPageRange(8, 0)), sender_owns_set=True
    )
    assert ring.write(PacketType.TRANSFER_PAGES, 7, b"ab", transfer=transfer)
    ring.publish()
    assert ring.used_bytes == OutgoingRing.packet_size(2, transfer_ranges=2) == 56
    taken = reader.take()
    assert taken is not None
    packet, _ = taken
    assert packet.data_offset == 40
    assert packet.body == bytes.fromhex(
        "feca 01 00 02000000  40000000 80000000  08000000 00000000  6162000000000000"
    )


@pytest.mark.parametrize(
    ("packet_type", "transfer"),
    [
        (PacketType.TRANSFER_PAGES, None),
        (PacketType.IN_BAND, TransferPages(1, (TransferPageRange(1, 1),))),
        (PacketType.TRANSFER_PAGES, TransferPages(1, ())),
        (PacketType.GPA_DIRECT, None),
    ],
)
def test_headers_must_go_with_the_type(
    view_type: ViewType, packet_type: PacketType, transfer: TransferPages | None
) -> None:
    ring, reader = opened(view_type)
    with pytest.raises(ValueError, match=r"packet|ranges"):
        ring.write(packet_type, 1, b"", transfer=transfer)
    assert ring.publish() is False
    assert reader.take() is None


def test_nothing_shows_before_publish(view_type: ViewType) -> None:
    ring, reader = opened(view_type)
    for n in range(3):
        assert ring.write(PacketType.IN_BAND, n, b"abc")
    assert reader.take() is None
    assert ring.publish() is True
    assert [reader.take() is not None for _ in range(4)] == [True, True, True, False]


def test_signals_only_a_guest_that_has_read_all_and_does_not_mask(view_type: ViewType) -> None:
    ring, reader = opened(view_type)
    assert send(ring, 1, b"") is True
    assert send(ring, 2, b"") is False, "packet 1 is unread"
    reader.take()
    assert send(ring, 3, b"") is False, "packet 2 is unread"
    reader.take()
    reader.take()
    reader.ring.control[WORD_MASK] = 1
    assert send(ring, 4, b"") is False, "masked"
    assert ring.publish() is False, "nothing new"
    reader.ring.control[WORD_MASK] = 0
    assert ring.publish() is False, "nothing new"
    reader.take()
    assert send(ring, 5, b"") is True


@pytest.mark.parametrize("data_pages", [1, 3])
def test_capacity_is_what_an_empty_ring_takes(view_type: ViewType, data_pages: int) -> None:
    ring, reader = opened(view_type, data_pages)
    largest = ring.capacity - 24
    assert OutgoingRing.packet_size(largest) == ring.capacity < 4096 * data_pages - 8
    with pytest.raises(PacketTooLarge) as caught:
        ring.write(PacketType.IN_BAND, 1, bytes(largest + 1))
    assert caught.value.capacity == ring.capacity
    for n in range(50):
        payload = bytes([n]) * largest
        assert send(ring, n, payload) is True
        assert ring.write(PacketType.IN_BAND, 1, b"") is False
        taken = reader.take()
        assert taken is not None
        assert taken[0].payload == payload


def test_capacity_is_bounded_by_length8(view_type: ViewType) -> None:
    ring, reader = opened(view_type, 256)
    assert ring.capacity == 0xFFFF * 8 + 8
    assert send(ring, 1, bytes(ring.capacity - 24)) is True
    taken = reader.ring.run(reader.take_steps())
    assert taken is not None
    with pytest.raises(PacketTooLarge):
        ring.write(PacketType.IN_BAND, 1, bytes(ring.capacity - 23))


def test_free_bytes_counts_what_is_not_published(view_type: ViewType) -> None:
    ring, reader = opened(view_type)
    assert ring.free_bytes == 4088
    ring.write(PacketType.IN_BAND, 1, bytes(8))
    assert (ring.free_bytes, ring.used_bytes) == (4056, 32)
    ring.publish()
    reader.take()
    assert (ring.free_bytes, ring.used_bytes) == (4088, 0)


def test_request_for_space_reaches_the_guest_and_its_signal_comes(view_type: ViewType) -> None:
    ring, reader = opened(view_type)
    for n in range(4):
        send(ring, n, bytes(976))
    assert ring.write(PacketType.IN_BAND, 4, bytes(1976)) is False
    assert ring.request_space(2000) is False
    assert reader.ring.control[WORD_PENDING] == 2000
    signals = []
    for _ in range(4):
        taken = reader.take()
        assert taken is not None
        signals.append(taken[1])
    assert signals == [False, True, False, False]
    assert ring.write(PacketType.IN_BAND, 4, bytes(1976)) is True
    ring.clear_space_request()
    assert reader.ring.control[WORD_PENDING] == 0


def test_request_for_space_that_came_meanwhile_is_withdrawn(view_type: ViewType) -> None:
    ring, reader = opened(view_type)
    send(ring, 1, bytes(4000))
    assert ring.write(PacketType.IN_BAND, 2, bytes(100)) is False
    reader.take()
    assert ring.request_space(128) is True
    assert reader.ring.control[WORD_PENDING] == 0


def test_request_for_space_that_can_never_be_met_is_refused(view_type: ViewType) -> None:
    ring, reader = opened(view_type)
    with pytest.raises(PacketTooLarge):
        ring.request_space(4088)
    assert reader.ring.control[WORD_PENDING] == 0


def test_request_for_space_before_publish_is_refused(view_type: ViewType) -> None:
    ring, _ = opened(view_type)
    ring.write(PacketType.IN_BAND, 1, b"")
    with pytest.raises(RuntimeError, match="publish"):
        ring.request_space(8)


# Restore over a ring in use.


@pytest.mark.parametrize(("mask", "unread", "signal"), [(0, 2, True), (1, 2, False), (0, 0, False)])
def test_attach_goes_on_where_the_last_host_stopped(
    view_type: ViewType, mask: int, unread: int, signal: bool
) -> None:
    view, guest = ring_memory(view_type)
    first = OutgoingRing(view)
    first.init_at_open()
    reader = GuestReader(guest)
    for n in range(4):
        send(first, n, bytes(900))
    assert first.request_space(1000) is False
    first_unread = 4 - unread
    for _ in range(first_unread):
        reader.take()
    guest.control[WORD_MASK] = mask

    second = OutgoingRing(view)
    assert second.attach() is signal
    assert guest.control[WORD_PENDING] == 0, "the last host waited, this one does not"
    assert guest.control[WORD_FEATURES] == 1
    assert second.used_bytes == unread * 928
    send(second, 4, bytes(900))
    seen = []
    while (taken := reader.take()) is not None:
        seen.append(taken[0].transaction_id)
    assert seen == list(range(first_unread, 5))


# Rules that a guest can break.


def prepared(view_type: ViewType) -> tuple[OutgoingRing, GuestRing]:
    """Make a ring with packets at 0, 1000, 2000, of which the first is released; `in` is 3000."""
    ring, reader = opened(view_type)
    for n in range(3):
        send(ring, n, bytes(976))
    reader.take()
    assert ring.used_bytes == 2000
    return ring, reader.ring


@pytest.mark.parametrize(
    ("out", "rule"),
    [
        (4096, RingRule.OUT_RANGE),
        (0xFFFFFFF8, RingRule.OUT_RANGE),
        (1004, RingRule.OUT_RANGE),
        (0, RingRule.OUT_ADVANCE),
        (992, RingRule.OUT_ADVANCE),
        (3032, RingRule.OUT_ADVANCE),
        (4088, RingRule.OUT_ADVANCE),
    ],
)
def test_out_is_checked_wherever_it_is_used(view_type: ViewType, out: int, rule: RingRule) -> None:
    ring, guest = prepared(view_type)
    guest.control[WORD_OUT] = out
    for use in (
        lambda: ring.free_bytes,
        lambda: ring.used_bytes,
        lambda: ring.request_space(4000),
        lambda: ring.write(PacketType.IN_BAND, 1, bytes(3000)),
        lambda: (ring.write(PacketType.IN_BAND, 1, b""), ring.publish()),
    ):
        with pytest.raises(RingCorrupt) as caught:
            use()
        assert caught.value.rule is rule


@pytest.mark.parametrize(
    ("word", "value", "rule"),
    [
        (WORD_IN, 4096, RingRule.IN_RANGE),
        (WORD_IN, 2, RingRule.IN_RANGE),
        (WORD_OUT, 0x80000000, RingRule.OUT_RANGE),
        (WORD_OUT, 9, RingRule.OUT_RANGE),
    ],
)
def test_offsets_are_checked_when_a_ring_is_taken_up(
    view_type: ViewType, word: int, value: int, rule: RingRule
) -> None:
    for method in (OutgoingRing.init_at_open, OutgoingRing.attach):
        view, guest = ring_memory(view_type)
        guest.control[word] = value
        with pytest.raises(RingCorrupt) as caught:
            method(OutgoingRing(view))
        assert caught.value.rule is rule


def test_a_guest_that_writes_in_and_the_data_harms_only_itself(view_type: ViewType) -> None:
    ring, guest = prepared(view_type)
    guest.control[WORD_IN] = 0xFFFFFFFF
    guest.put(0, b"\xff" * 4096)
    assert ring.used_bytes == 2000
    send(ring, 9, b"")
    assert guest.control[WORD_IN] == 3024
