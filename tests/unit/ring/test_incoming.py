# SPDX-License-Identifier: MIT
"""The host's end of the guest-to-host ring, against a guest that may be hostile."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from emulator.model.ring import (
    WORD_IN,
    WORD_MASK,
    WORD_OUT,
    WORD_PENDING,
    GuestRing,
    GuestWriter,
    build_packet,
    gpa_direct_header,
    transfer_header,
)
from emulator.ring import IncomingRing, RingCorrupt, RingRule
from emulator.wire.packet import (
    GpaRange,
    PacketFlags,
    PacketRule,
    PacketType,
    TransferPageRange,
    TransferPages,
)
from tests.unit.ring.support import ViewType, WrappedView, ring_memory


def opened(view_type: ViewType, data_pages: int = 1) -> tuple[IncomingRing, GuestWriter]:
    view, guest = ring_memory(view_type, data_pages)
    ring = IncomingRing(view)
    ring.init_at_open()
    return ring, GuestWriter(guest)


def test_a_ring_needs_a_data_page(view_type: ViewType) -> None:
    with pytest.raises(ValueError, match="no data page"):
        IncomingRing(view_type([memoryview(bytearray(4096))]))


def test_open_masks_doorbells_until_the_first_unmask(view_type: ViewType) -> None:
    ring, writer = opened(view_type)
    assert writer.ring.control[WORD_MASK] == 1
    assert writer.put(build_packet(6, 1)) is False
    assert ring.unmask() is True
    assert ring.read() is not None
    ring.commit()
    assert ring.unmask() is False
    assert writer.put(build_packet(6, 2)) is True


def test_reads_every_type_of_packet(view_type: ViewType) -> None:
    ring, writer = opened(view_type)
    ranges = ((5000, 4000, (7, 1 << 40, 9)), (1, 0, (3,)))
    writer.put(
        build_packet(6, 1, b"payload!", flags=1),
        build_packet(7, 2, b"12345678", header=transfer_header(0xCAFE, (64, 128), (8, 0))),
        build_packet(9, 3, b"x", header=gpa_direct_header(*ranges), flags=1),
        build_packet(10, 4),
        build_packet(11, 5, b"done"),
    )
    first = ring.read()
    assert first is not None
    assert (first.type, first.transaction_id, first.payload) == (PacketType.IN_BAND, 1, b"payload!")
    assert first.completion_requested
    second = ring.read()
    assert second is not None
    assert second.transfer == TransferPages(
        0xCAFE, (TransferPageRange(64, 128), TransferPageRange(8, 0))
    )
    assert second.payload == b"12345678"
    assert not second.completion_requested
    third = ring.read()
    assert third is not None
    assert third.ranges == tuple(GpaRange(*fields) for fields in ranges)
    assert third.payload == b"x\0\0\0\0\0\0\0"
    fourth, fifth = ring.read(), ring.read()
    assert fourth is not None
    assert fifth is not None
    assert (fourth.type, fourth.payload) == (PacketType.CANCEL, b"")
    assert (fifth.type, fifth.payload) == (PacketType.COMPLETION, b"done\0\0\0\0")
    assert ring.read() is None


def test_slack_between_gpa_ranges_and_payload_is_skipped(view_type: ViewType) -> None:
    """Linux storvsc sends its whole page array whatever part of it is in use."""
    ring, writer = opened(view_type)
    header = gpa_direct_header((4096, 0, (5,))) + b"\xee" * 64
    writer.put(build_packet(9, 1, b"SCSIcmd.", header=header))
    packet = ring.read()
    assert packet is not None
    assert packet.ranges == (GpaRange(4096, 0, (5,)),)
    assert packet.payload == b"SCSIcmd."


def test_a_long_header_of_an_in_band_packet_is_skipped(view_type: ViewType) -> None:
    ring, writer = opened(view_type)
    writer.put(build_packet(6, 1, b"payload!", header=b"\xff" * 24))
    packet = ring.read()
    assert packet is not None
    assert packet.payload == b"payload!"


def test_nothing_is_released_before_commit(view_type: ViewType) -> None:
    ring, writer = opened(view_type)
    writer.put(build_packet(6, 1, b"abcdefgh"), build_packet(6, 2))
    assert ring.unread_bytes == 32 + 24
    ring.read()
    assert writer.ring.control[WORD_OUT] == 0
    assert ring.unread_bytes == 24
    ring.read()
    ring.commit()
    assert writer.ring.control[WORD_OUT] == 32 + 24
    assert ring.unread_bytes == 0


def test_unmask_with_uncommitted_packets_is_refused(view_type: ViewType) -> None:
    ring, writer = opened(view_type)
    writer.put(build_packet(6, 1))
    ring.read()
    with pytest.raises(RuntimeError, match="commit"):
        ring.unmask()


def test_scan_consumes_nothing_and_starts_at_the_first_unread(view_type: ViewType) -> None:
    ring, writer = opened(view_type)
    for round_ in range(200):  # around the end of the ring
        writer.put(
            build_packet(6, round_, b"r" * (round_ % 40), flags=1),
            build_packet(11, round_ + 1000, b"s" * 16),
        )
        for _ in range(2):
            assert [
                (s.type, s.flags, s.transaction_id, s.completion_requested) for s in ring.scan()
            ] == [
                (PacketType.IN_BAND, PacketFlags.COMPLETION_REQUESTED, round_, True),
                (PacketType.COMPLETION, PacketFlags.NONE, round_ + 1000, False),
            ]
        ring.read()
        assert [s.transaction_id for s in ring.scan()] == [round_ + 1000]
        ring.read()
        ring.commit()
        assert list(ring.scan()) == []


@pytest.mark.parametrize("garbage", [b"\xff" * 8, b"\0" * 8])
def test_the_trailer_may_hold_anything(view_type: ViewType, garbage: bytes) -> None:
    ring, writer = opened(view_type)
    writer.put(build_packet(6, 1), build_packet(6, 2))
    writer.ring.put(16, garbage)
    first, second = ring.read(), ring.read()
    assert first is not None
    assert second is not None
    assert second.transaction_id == 2


# The signal to a guest that waits for room.


@pytest.mark.parametrize("wanted", [1088, 1096, 2000, 2088])
def test_commit_signals_once_when_free_space_reaches_the_request(
    view_type: ViewType, wanted: int
) -> None:
    ring, writer = opened(view_type)
    big = build_packet(6, 1, b"x" * (1000 - 24))
    for _ in range(4):
        assert writer.put(big) is not None
    assert writer.put(big) is None
    assert writer.ring.run(writer.wait_steps(wanted)) is False
    signals = []
    for _ in range(4):
        ring.read()
        signals.append(ring.commit())
    # 88 are free, then 1088, 2088, 3088, 4088.
    assert signals == [wanted == 1088, wanted != 1088, False, False]


def test_a_request_for_all_but_one_byte_is_met_by_the_empty_ring(view_type: ViewType) -> None:
    """Windows writes size - 1; with its low bits it could never be reached."""
    ring, writer = opened(view_type)
    writer.put(build_packet(6, 1), build_packet(6, 2))
    writer.ring.control[WORD_PENDING] = 4095
    ring.read()
    assert ring.commit() is False
    ring.read()
    assert ring.commit() is True


def test_commit_of_a_batch_that_crosses_the_request_signals(view_type: ViewType) -> None:
    ring, writer = opened(view_type)
    for n in range(4):
        writer.put(build_packet(6, n, b"x" * (1000 - 24)))
    writer.ring.control[WORD_PENDING] = 2000
    for _ in range(4):
        ring.read()
    assert ring.commit() is True
    assert ring.commit() is False


@pytest.mark.parametrize("request_size", [0, 1, 7, 4096, 0xFFFFFFFF])
def test_requests_that_cannot_be_met_or_ask_for_nothing(
    view_type: ViewType, request_size: int
) -> None:
    ring, writer = opened(view_type)
    writer.put(build_packet(6, 1))
    writer.ring.control[WORD_PENDING] = request_size
    ring.read()
    assert ring.commit() is False


# Restore over a ring in use.


def test_attach_goes_on_where_the_last_host_stopped(view_type: ViewType) -> None:
    view, guest = ring_memory(view_type)
    first = IncomingRing(view)
    first.init_at_open()
    writer = GuestWriter(guest)
    writer.put(*(build_packet(6, n, b"y" * 480) for n in range(8)))
    for n in range(6):
        packet = first.read()
        assert packet is not None
        assert packet.transaction_id == n
        if n < 5:
            first.commit()
    guest.control[WORD_PENDING] = 4088

    second = IncomingRing(view)  # the first one read packet 5 but had not released it
    second.attach()
    assert guest.control[WORD_MASK] == 0
    assert guest.control[WORD_PENDING] == 4088, "the guest's word"
    assert [s.transaction_id for s in second.scan()] == [5, 6, 7]
    writer.put(build_packet(6, 8, b"y" * 480))  # around the end
    seen = []
    while (packet := second.read()) is not None:
        seen.append(packet.transaction_id)
    assert seen == [5, 6, 7, 8]
    assert second.commit() is True
    assert second.read() is None  # a stray doorbell
    assert second.unmask() is False


# Rules that a guest can break. Each case gives what it writes at the start of an open ring of one
# page.


def lie(words: dict[int, int]) -> Callable[[GuestRing], None]:
    def write(guest: GuestRing) -> None:
        for word, value in words.items():
            guest.control[word] = value

    return write


def packet(data: bytes, published: int | None = None) -> Callable[[GuestRing], None]:
    def write(guest: GuestRing) -> None:
        guest.put(0, data)
        guest.control[WORD_IN] = len(data) + 8 if published is None else published

    return write


RULES: list[tuple[RingRule | PacketRule, Callable[[GuestRing], None]]] = [
    (RingRule.IN_RANGE, lie({WORD_IN: 4096})),
    (RingRule.IN_RANGE, lie({WORD_IN: 0xFFFFFFF8})),
    (RingRule.IN_RANGE, lie({WORD_IN: 28})),
    (RingRule.PACKET_START, packet(build_packet(6, 1), published=8)),
    (RingRule.PACKET_START, packet(build_packet(6, 1), published=16)),
    *((PacketRule.TYPE, packet(build_packet(t, 1))) for t in (0, 1, 5, 8, 12, 0x106, 0xFFFF)),
    *((PacketRule.FLAGS, packet(build_packet(6, 1, flags=f))) for f in (2, 3, 0x100, 0xFFFF)),
    (PacketRule.DATA_OFFSET_LOW, packet(build_packet(6, 1, offset8=0))),
    (PacketRule.DATA_OFFSET_LOW, packet(build_packet(6, 1, offset8=1))),
    (PacketRule.DATA_OFFSET_LOW, packet(build_packet(11, 1, offset8=1))),
    (PacketRule.DATA_OFFSET_LOW, packet(build_packet(7, 1, bytes(16), offset8=2))),
    (PacketRule.DATA_OFFSET_LOW, packet(build_packet(9, 1, bytes(16), offset8=2))),
    (PacketRule.DATA_OFFSET_HIGH, packet(build_packet(6, 1, offset8=3))),
    (PacketRule.DATA_OFFSET_HIGH, packet(build_packet(6, 1, length8=0))),
    (PacketRule.DATA_OFFSET_HIGH, packet(build_packet(9, 1, bytes(16), offset8=0xFFFF))),
    (PacketRule.AVAILABLE, packet(build_packet(6, 1, length8=3))),
    (PacketRule.AVAILABLE, packet(build_packet(6, 1, length8=0xFFFF))),
    (PacketRule.AVAILABLE, packet(build_packet(6, 1, bytes(8)), published=24)),
    (PacketRule.RANGE_COUNT, packet(build_packet(9, 1, header=gpa_direct_header()))),
    (PacketRule.RANGE_COUNT, packet(build_packet(9, 1, header=gpa_direct_header(count=1)))),
    (
        PacketRule.RANGE_COUNT,
        packet(build_packet(9, 1, header=gpa_direct_header((1, 0, (5,)), count=2**32 - 1))),
    ),
    (
        # Room for two ranges by the count alone, but the first one takes it all.
        PacketRule.RANGE_COUNT,
        packet(build_packet(9, 1, header=gpa_direct_header((3 * 4096, 0, (5, 6, 7)), count=2))),
    ),
    (PacketRule.RANGE_COUNT, packet(build_packet(7, 1, header=transfer_header(1)))),
    (
        PacketRule.RANGE_COUNT,
        packet(build_packet(7, 1, header=transfer_header(1, (1, 1), count=2))),
    ),
    (
        PacketRule.RANGE_COUNT,
        packet(build_packet(7, 1, header=transfer_header(1, (1, 1), (2, 2), count=1))),
    ),
    (
        PacketRule.RANGE_COUNT,
        packet(build_packet(7, 1, header=transfer_header(1, (1, 1), count=0x20000001))),
    ),
    (PacketRule.RANGE_LENGTH, packet(build_packet(9, 1, header=gpa_direct_header((0, 0, (5,)))))),
    (
        PacketRule.RANGE_OFFSET,
        packet(build_packet(9, 1, header=gpa_direct_header((1, 4096, (5,))))),
    ),
    (
        PacketRule.RANGE_OFFSET,
        packet(build_packet(9, 1, header=gpa_direct_header((1, 2**32 - 1, (5,))))),
    ),
    (PacketRule.RANGE_PFNS, packet(build_packet(9, 1, header=gpa_direct_header((4097, 0, (5,)))))),
    (PacketRule.RANGE_PFNS, packet(build_packet(9, 1, header=gpa_direct_header((2, 4095, (5,)))))),
    (
        # The second page number would be the payload.
        PacketRule.RANGE_PFNS,
        packet(build_packet(9, 1, bytes(64), header=gpa_direct_header((4097, 0, (5,))))),
    ),
    (
        PacketRule.RANGE_PFNS,
        packet(build_packet(9, 1, header=gpa_direct_header((2**32 - 1, 0, (5,))))),
    ),
]


@pytest.mark.parametrize(("rule", "break_it"), RULES)
def test_a_broken_rule_is_named_and_nothing_is_consumed(
    view_type: ViewType,
    rule: RingRule | PacketRule,
    break_it: Callable[[GuestRing], None],
) -> None:
    ring, writer = opened(view_type)
    break_it(writer.ring)
    for _ in range(2):
        with pytest.raises(RingCorrupt) as caught:
            ring.read()
        assert caught.value.rule is rule
        assert rule.value in str(caught.value)
    assert ring.commit() is False
    assert writer.ring.control[WORD_OUT] == 0


@pytest.mark.parametrize(
    "words",
    [{WORD_IN: 4096}, {WORD_IN: 4}, {WORD_OUT: 4096}, {WORD_OUT: 12}, {WORD_OUT: 2**32 - 8}],
)
def test_offsets_are_checked_when_a_ring_is_taken_up(
    view_type: ViewType, words: dict[int, int]
) -> None:
    for method in (IncomingRing.init_at_open, IncomingRing.attach):
        view, guest = ring_memory(view_type)
        lie(words)(guest)
        with pytest.raises(RingCorrupt) as caught:
            method(IncomingRing(view))
        expected = RingRule.IN_RANGE if WORD_IN in words else RingRule.OUT_RANGE
        assert caught.value.rule is expected


@pytest.mark.parametrize(
    ("after", "unread"),
    [(48, None), (72, None), (112, None), (120, 24), (4088, 3992), (0, 4000), (40, 4040)],
)
def test_in_must_not_go_back_nor_pass_what_is_released(
    view_type: ViewType, after: int, unread: int | None
) -> None:
    ring, writer = opened(view_type)
    writer.put(*(build_packet(6, n) for n in range(5)))
    ring.read()
    ring.read()
    ring.commit()
    ring.read()
    ring.read()  # released up to 48, read up to 96, published up to 120
    writer.ring.control[WORD_IN] = after
    if unread is not None:
        assert ring.unread_bytes == unread
        return
    with pytest.raises(RingCorrupt) as caught:
        _ = ring.unread_bytes
    assert caught.value.rule is RingRule.IN_ADVANCE


def test_a_broken_rule_shows_in_scan_too(view_type: ViewType) -> None:
    ring, writer = opened(view_type)
    writer.put(build_packet(6, 1), build_packet(8, 2))
    scan = ring.scan()
    assert next(scan).transaction_id == 1
    with pytest.raises(RingCorrupt):
        next(scan)


def test_every_packet_rule_and_every_rule_of_in_has_a_case() -> None:
    tested = {rule for rule, _ in RULES} | {RingRule.IN_ADVANCE}
    # Those of `out` are the outgoing ring's, where the guest writes it.
    assert tested == {*PacketRule, *RingRule} - {RingRule.OUT_RANGE, RingRule.OUT_ADVANCE}


class ReadOnceView(WrappedView):
    """Spoils every byte and every control word of the guest's as soon as it was read."""

    def read(self, offset: int, length: int, /) -> bytes:
        data = self.inner.read(offset, length)
        self.inner.write(offset, b"\xa5" * length)
        return data

    def load_u32(self, offset: int, /) -> int:
        value = self.inner.load_u32(offset)
        self.inner.store_u32(offset, 0xA5A5A5A5)
        return value


def test_each_field_is_read_once(view_type: ViewType) -> None:
    view, guest = ring_memory(view_type)
    ranges = (5000, 4000, (7, 8, 9))
    GuestWriter(guest).put(
        build_packet(9, 3, b"ABCDEFGH", header=gpa_direct_header(ranges)),
        build_packet(6, 4, b"12345678"),
    )
    ring = IncomingRing(ReadOnceView(view))
    first, second = ring.read(), ring.read()
    assert first is not None
    assert second is not None
    assert first.ranges == (GpaRange(*ranges),)
    assert (first.payload, second.payload) == (b"ABCDEFGH", b"12345678")
